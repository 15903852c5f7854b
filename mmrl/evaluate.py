"""Held-out evaluation: fixed prompts, fixed noise, deterministic sampling, every reward counted.

Names of the numbers: `REWARD[/KEY=VALUE[,KEY=VALUE]][/media | /blind | /chance]`, and `/failed`, `/skipped` for what is no
number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrl.advantage.types import Scored
from mmrl.animation import preview
from mmrl.distributed import Group, slice_of, slice_of_groups
from mmrl.objective.objective import Objective
from mmrl.policy import Policy
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, OK, SKIPPED, Draw, Prompt, Sample, Scores
from mmrl.seeding import derive_seed
from mmrl.tiles import Tile, groups_of, within

MESSAGES = 3
"""Failures that an evaluation tells of; their number is in the metrics."""
SIDE = 256
"""Most pixels of a side of what is kept of a prompt's pictures."""

By = Sequence[str | tuple[str, ...]]
"""Keys of `Prompt.meta`, alone or several together."""
Table = tuple[np.ndarray, np.ndarray]
"""Values `(N, K)` float64 and statuses `(N, K)` of K rewards."""


@dataclass
class Evaluation:
    """`metrics`: reward name -> mean over ok samples, and counts. `pictures`: the first sample of the first prompts."""

    metrics: dict[str, float]
    pictures: list[Picture]
    failed: int = 0
    """Samples on which some reward failed."""
    messages: tuple[str, ...] = ()
    """Why, the first few of them."""


@dataclass
class Picture:
    """One sample for the eye: its prompt, the image (H, W, 3) uint8, the video or the text, and its reward values (None = not
    ok)."""

    prompt: str
    image: np.ndarray | None
    text: str | None
    rewards: dict[str, float | None]
    media: Sequence[Sequence[Tile]] = ()
    """What the prompt shows: images side by side, every video as a row of frames."""
    answer: str | None = None
    """What would have been right."""
    about: str = ""
    """Kind and level of the prompt."""
    video: np.ndarray | None = None
    """A preview of a video, uint8 (T, H, W, 3)."""
    fps: float = 0.0
    """Frames per second of the preview."""


def evaluation_draws(prompts: Sequence[Prompt], samples_per_prompt: int, seed: int) -> list[Draw]:
    """The same draws at every evaluation and in every run: seeds come from the prompt's id alone."""
    return [
        Draw(
            prompt,
            group,
            member,
            derive_seed("evaluation", seed, prompt.id, member),
            derive_seed("evaluation", seed, prompt.id, member),
        )
        for group, prompt in enumerate(prompts)
        for member in range(samples_per_prompt)
    ]


def evaluate(
    policy: Policy, plan: Any, draws: Sequence[Draw], rewards: RewardSet, pictures: int, batch_size: int, group: Group,
    by: By = (), blind: bool = False, objective: Objective | None = None,
) -> Evaluation:  # fmt: skip
    """Generate and score `draws` (split over ranks). Collective: every rank calls it and gets the same metrics.

    `by` are keys of `Prompt.meta`: every reward is also averaged over the prompts of each value ("exact/kind=count"), or
    of each combination of values ("exact/kind=count,level=1"). With `blind`, the prompts with media are also asked
    through the policy's blind view ("exact/blind", "exact/kind=count/blind"); where others have none, what looking earned on
    those with media is given too ("exact/media", "exact/kind=count/media"). With an `objective`, what its shapings want
    to know of held-out samples is measured too ("measured/rac").
    """
    mine = draws[_slice(draws, rewards, group)]
    samples = _generate(policy, plan, mine, batch_size)
    scores = rewards.score(samples, [draw.group for draw in mine])
    shown = _pictures(mine, samples, scores.values, rewards.names, pictures)
    parts = group.gather((scores.values, scores.status, shown, scores.messages[:MESSAGES]))
    table = _joined([(part[0], part[1]) for part in parts])
    messages = tuple(message for part in parts for message in part[3])[:MESSAGES]
    failed = int((table[1] == FAILED).any(axis=1).sum())
    every = [picture for part in parts for picture in part[2]]
    prompts = [draw.prompt for draw in draws]
    metrics = _means(rewards.names, table, prompts, by)
    if objective is not None and objective.evaluates:
        metrics |= _measured(objective, policy, samples, table, draws, rewards, batch_size, group)
    if blind and policy.blind_view is not None:
        metrics |= _with_media(rewards.names, table, prompts, by)
        asked = [draw for draw in draws if draw.prompt.media]
        own = asked[_slice(asked, rewards, group)]
        seen = _generate(policy, plan, own, batch_size, policy.blind_view)
        scores = rewards.score(seen, [draw.group for draw in own])
        table = _joined(group.gather((scores.values, scores.status)))
        metrics |= _means(rewards.names, table, [draw.prompt for draw in asked], by, "/blind")
    return Evaluation(metrics, every, failed, messages)


def _slice(draws: Sequence[Draw], rewards: RewardSet, group: Group) -> slice:
    """This rank's part of the draws: whole groups where a reward compares inside them."""
    if rewards.reads_groups:
        return slice_of_groups([draw.group for draw in draws], group.rank, group.world)
    return slice_of(len(draws), group.rank, group.world)


def chance(prompts: Sequence[Prompt], rewards: RewardSet, group: Group, by: By = ()) -> dict[str, float]:
    """What answers without looking earn: `meta["guesses"]` of a prompt is a list of whole answers by someone who knows the question
    alone. Their mean reward is that of the prompt, and a number is the mean over prompts ("exact/chance",
    "exact/kind=count/chance"). Collective.

    A number is left out where one of its prompts has no guesses. Guesses that a reward failed on, or does not judge, are in no
    mean and are counted ("exact/chance/failed", "exact/chance/skipped").
    """
    mine = prompts[slice_of(len(prompts), group.rank, group.world)]
    scores = rewards.score([Sample(prompt, text=guess) for prompt in mine for guess in _guesses(prompt)])
    values, status = _joined(group.gather((scores.values, scores.status)))
    counts = np.array([len(_guesses(prompt)) for prompt in prompts], dtype=np.int64)
    table = _per_prompt(values, status, np.repeat(np.arange(len(prompts)), counts), len(prompts))
    counted = summarise(rewards.names, values, status)
    metrics = {f"{name}/chance{rest}": counted[name + rest] for name in rewards.names
               for rest in ("/failed", "/skipped") if name + rest in counted}  # fmt: skip
    for part, rows in _all_and_parts(prompts, by):
        if (counts[rows] > 0).all():
            found = summarise(rewards.names, table[0][rows], table[1][rows])
            metrics |= {f"{name}{part and '/'}{part}/chance": found[name] for name in rewards.names if name in found}
    return metrics


def _per_prompt(values: np.ndarray, status: np.ndarray, owner: np.ndarray, count: int) -> Table:
    """Means of `values (M, K)` over the ok samples of each of `count` prompts, `owner (M,)` being theirs; a prompt without any is
    skipped."""
    ok = status == OK
    number, total = np.zeros((count, values.shape[1])), np.zeros((count, values.shape[1]))
    np.add.at(number, owner, ok)
    np.add.at(total, owner, np.where(ok, values, 0.0))
    return total / np.maximum(number, 1), np.where(number > 0, OK, SKIPPED)


def _generate(
    policy: Policy, plan: Any, draws: Sequence[Draw], batch_size: int, view: str = "original"
) -> list[Sample]:
    samples: list[Sample] = []
    for start in range(0, len(draws), batch_size):
        samples += policy.generate(draws[start : start + batch_size], plan, view)
    return samples


def _measured(
    objective: Objective, policy: Policy, samples: Sequence[Sample], table: Table, draws: Sequence[Draw],
    rewards: RewardSet, batch_size: int, group: Group,
) -> dict[str, float]:  # fmt: skip
    """What the policy measures of the texts of this rank's `samples`, and what the shapings say about all of them, whose
    scores are in `table`. Collective."""
    written = [row for row, sample in enumerate(samples) if sample.text]
    own = {name: np.full(len(samples), np.nan) for name in objective.evaluates}
    if written:
        asked: Any = policy
        given = asked.given([samples[row] for row in written])
        for name, values in own.items():
            values[written] = asked.measure(name, given, batch_size).cpu().numpy()
    parts = group.gather(own)
    extra = {name: np.concatenate([part[name] for part in parts]) for name in own}
    groups = np.array([draw.group for draw in draws])
    total = rewards.total(Scores(rewards.names, *table), groups)
    scored = Scored(total, groups, table[0], np.asarray(rewards.weights), names=rewards.names, extra=extra)
    known = {name: values[np.isfinite(values)] for name, values in extra.items()}
    means = {f"measured/{name}": float(values.mean()) for name, values in known.items() if values.size}
    return means | objective.metrics(scored)


def _joined(parts: Sequence[Table]) -> Table:
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _means(names: Sequence[str], table: Table, prompts: Sequence[Prompt], by: By, how: str = "") -> dict[str, float]:
    """Means and counts of all rows, and means of the rows of every part that `by` makes; `how` follows their names."""
    values, status = table
    found = summarise(names, values, status)
    metrics = {f"{name}{how}{rest}": found[name + rest] for name in names
               for rest in ("", "/failed", "/skipped") if name + rest in found}  # fmt: skip
    for part, rows in _parts(prompts, by):
        found = summarise(names, values[rows], status[rows])
        metrics |= {f"{name}/{part}{how}": found[name] for name in names if name in found}
    return metrics


def _with_media(names: Sequence[str], table: Table, prompts: Sequence[Prompt], by: By) -> dict[str, float]:
    """What blind numbers are to be compared with: means over the prompts with media, of all and of every part where others have
    none."""
    seeing = np.array([bool(prompt.media) for prompt in prompts])
    metrics: dict[str, float] = {}
    for part, rows in _all_and_parts(prompts, by):
        if not seeing[rows].all():
            found = summarise(names, table[0][rows & seeing], table[1][rows & seeing])
            metrics |= {f"{name}{part and '/'}{part}/media": found[name] for name in names if name in found}
    return metrics


def _all_and_parts(prompts: Sequence[Prompt], by: By) -> Iterator[tuple[str, np.ndarray]]:
    """("", every row), and what `_parts` gives."""
    yield "", np.ones(len(prompts), dtype=bool)
    yield from _parts(prompts, by)


def _parts(prompts: Sequence[Prompt], by: By) -> Iterator[tuple[str, np.ndarray]]:
    """("kind=count,level=1", rows `(N,)` bool) of every combination of values that the prompts have."""
    for keys in by:
        keys = (keys,) if isinstance(keys, str) else keys
        found = [tuple(str(prompt.meta[key]) for key in keys) if all(prompt.meta.get(key) is not None for key in keys)
                 else None for prompt in prompts]  # fmt: skip
        for values in sorted({one for one in found if one is not None}):
            name = ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
            yield name, np.array([one == values for one in found])


def summarise(names: Sequence[str], values: np.ndarray, status: np.ndarray) -> dict[str, float]:
    """Mean of each reward over its ok samples, and how many failed or were skipped."""
    metrics: dict[str, float] = {}
    for column, name in enumerate(names):
        ok = status[:, column] == OK
        if ok.any():
            metrics[name] = float(values[ok, column].mean())
        for label, code in (("failed", FAILED), ("skipped", SKIPPED)):
            if (status[:, column] == code).any():
                metrics[f"{name}/{label}"] = float((status[:, column] == code).sum())
    return metrics


def _pictures(
    draws: Sequence[Draw], samples: Sequence[Sample], values: np.ndarray, names: Sequence[str], count: int
) -> list[Picture]:
    return [
        picture_of(sample, {name: _number(values[row, column]) for column, name in enumerate(names)})
        for row, (draw, sample) in enumerate(zip(draws, samples, strict=True))
        if draw.member == 0 and draw.group < count
    ]


def picture_of(sample: Sample, rewards: dict[str, float | None]) -> Picture:
    """A sample for the eye, with what its prompt shows. Raises UserError for media that cannot be read."""
    prompt = sample.prompt
    image = sample.images[0] if sample.images else None
    video, fps = (None, 0.0) if sample.video is None else preview(sample.video, float(sample.meta["fps"]))
    media = [[Tile(within(tile.image, SIDE), tile.label) for tile in row]
             for row in groups_of(prompt.media, prompt.meta.get("fps"))]  # fmt: skip
    answer = prompt.target.get("answer") if isinstance(prompt.target, Mapping) else prompt.target
    about = [str(prompt.meta["kind"])] if "kind" in prompt.meta else []
    about += [f"level {prompt.meta['level']}"] if "level" in prompt.meta else []
    return Picture(prompt.text, image, sample.text, rewards, media,
                   str(answer) if isinstance(answer, str | int | float) else None, " · ".join(about), video, fps)  # fmt: skip


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _guesses(prompt: Prompt) -> Sequence[str]:
    found: Sequence[str] = prompt.meta.get("guesses", ())
    return found

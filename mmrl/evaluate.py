"""Held-out evaluation: fixed prompts, fixed noise, deterministic sampling, every reward counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrl.distributed import Group, slice_of
from mmrl.policy import Policy
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, OK, SKIPPED, Draw, Prompt, Sample
from mmrl.seeding import derive_seed

MESSAGES = 3
"""Failures that an evaluation tells of; their number is in the metrics."""


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
    """One sample for the eye: its prompt, the image (H, W, 3) uint8 or text, and its reward values (None = not ok)."""

    prompt: str
    image: np.ndarray | None
    text: str | None
    rewards: dict[str, float | None]


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
    by: Sequence[str] = (), blind: bool = False,
) -> Evaluation:  # fmt: skip
    """Generate and score `draws` (split over ranks). Collective: every rank calls it and gets the same metrics.

    `by` are keys of `Prompt.meta`: every reward is also averaged over the prompts of each value ("exact/kind=count").
    With `blind`, the prompts with media are also asked through the policy's blind view ("exact/blind").
    """
    mine = draws[slice_of(len(draws), group.rank, group.world)]
    samples = _generate(policy, plan, mine, batch_size)
    scores = rewards.score(samples)
    shown = _pictures(mine, samples, scores.values, rewards.names, pictures)
    parts = group.gather((scores.values, scores.status, shown, scores.messages[:MESSAGES]))
    values = np.concatenate([part[0] for part in parts])
    status = np.concatenate([part[1] for part in parts])
    messages = tuple(message for part in parts for message in part[3])[:MESSAGES]
    failed = int((status == FAILED).any(axis=1).sum())
    every = [picture for part in parts for picture in part[2]]
    metrics = summarise(rewards.names, values, status) | _by_value(rewards.names, values, status, draws, by)
    if blind and policy.blind_view is not None:
        seeing = np.array([bool(draw.prompt.media) for draw in draws])
        if not seeing.all():  # what a blind number is to be compared with
            found = summarise(rewards.names, values[seeing], status[seeing])
            metrics |= {f"{name}/media": value for name, value in found.items() if name in rewards.names}
        metrics |= _blind(policy, plan, [draw for draw in draws if draw.prompt.media], rewards, batch_size, group)
    return Evaluation(metrics, every, failed, messages)


def _generate(
    policy: Policy, plan: Any, draws: Sequence[Draw], batch_size: int, view: str = "original"
) -> list[Sample]:
    samples: list[Sample] = []
    for start in range(0, len(draws), batch_size):
        samples += policy.generate(draws[start : start + batch_size], plan, view)
    return samples


def _blind(
    policy: Policy, plan: Any, draws: Sequence[Draw], rewards: RewardSet, batch_size: int, group: Group
) -> dict[str, float]:
    """Mean of every reward over its ok samples when the policy sees nothing, and how many failed. Collective."""
    mine = draws[slice_of(len(draws), group.rank, group.world)]
    scores = rewards.score(_generate(policy, plan, mine, batch_size, policy.blind_view or "original"))
    parts = group.gather((scores.values, scores.status))
    values, status = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    found = summarise(rewards.names, values, status)
    return {f"{name}/blind{rest}": found[name + rest] for name in rewards.names
            for rest in ("", "/failed", "/skipped") if name + rest in found}  # fmt: skip


def _by_value(
    names: Sequence[str], values: np.ndarray, status: np.ndarray, draws: Sequence[Draw], by: Sequence[str]
) -> dict[str, float]:
    """Mean of each reward over the ok samples of every value of the meta keys `by`."""
    metrics: dict[str, float] = {}
    for key in by:
        found = [draw.prompt.meta.get(key) for draw in draws]
        for value in sorted({str(one) for one in found if one is not None}):
            rows = np.array([one is not None and str(one) == value for one in found])
            for column, name in enumerate(names):
                ok = rows & (status[:, column] == OK)
                if ok.any():
                    metrics[f"{name}/{key}={value}"] = float(values[ok, column].mean())
    return metrics


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
    found = []
    for row, (draw, sample) in enumerate(zip(draws, samples, strict=True)):
        if draw.member == 0 and draw.group < count:
            verdicts = {name: _number(values[row, column]) for column, name in enumerate(names)}
            image = sample.images[0] if sample.images else sample.video[0] if sample.video is not None else None
            found.append(Picture(sample.prompt.text, image, sample.text, verdicts))
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def as_json(pictures: Sequence[Picture]) -> list[Mapping[str, Any]]:
    return [{"prompt": p.prompt, "text": p.text, "rewards": p.rewards} for p in pictures]

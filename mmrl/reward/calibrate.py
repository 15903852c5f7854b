"""How well a reward agrees with labelled pairs, and what else it likes: `mmrl reward calibrate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mmrl.errors import UserError
from mmrl.image import read_image
from mmrl.options import unknown_key
from mmrl.reward.base import Failed, Reward, lacking
from mmrl.reward.combined import RewardSet
from mmrl.reward.named import named
from mmrl.reward.pairwise import PairwiseReward, Verdict
from mmrl.rollout import FAILED, OK, Prompt, Sample
from mmrl.terminal import show_line
from mmrl.video import read_clip

BETTER = {"a": 1.0, "b": 0.0, "tie": 0.5}
EXPECTED = '{"prompt": "...", "a": {"image": "1.png"}, "b": {"image": "2.png"}, "better": "a"}'
RELATIVE = "names of files are relative to the JSONL file"


@dataclass(frozen=True)
class Pair:
    """Two candidates for one prompt; `label` is 1 where `a` is better, 0 where `b` is, 0.5 for a tie."""

    a: Sample
    b: Sample
    label: float


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a JSON-lines file: `prompt`, optionally `media` and `target`, `a` and `b` with `text`, `image` or `video` (files beside
    it), and `better`: a, b or tie. Raises UserError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"{path}: cannot be read ({why})") from None
    found = [
        _pair(line, f"{path}:{number}", path.parent, number) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise UserError(f"{path}: no pairs; expected lines like {EXPECTED}")
    return found


def _pair(line: str, where: str, folder: Path, number: int) -> Pair:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: no JSON ({error}); expected {EXPECTED}") from None
    if not isinstance(record, dict) or not {"prompt", "a", "b", "better"} <= record.keys():
        raise UserError(f"{where}: expected the keys prompt, a, b and better, as in {EXPECTED}")
    other = sorted(record.keys() - {"prompt", "a", "b", "better", "media", "target"})
    if other:
        raise UserError(f"{where}: {unknown_key(other[0], ['prompt', 'a', 'b', 'better', 'media', 'target'])}")
    if record["better"] not in list(BETTER):
        raise UserError(f"{where}: better is {record['better']!r}; expected one of: {', '.join(BETTER)}")
    given = record.get("media", [])
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise UserError(f"{where}: media is {given!r}; expected a list of files")
    media = tuple(str(folder / one) for one in given)
    missing = next((one for one in media if not Path(one).is_file()), None)
    if missing is not None:
        raise UserError(f"{where}: media: no file {Path(missing).absolute()}; {RELATIVE}")
    prompt = Prompt(str(number), str(record["prompt"]), media=media, target=record.get("target"))
    a, b = (_candidate(record[key], prompt, f"{where}: {key}", folder) for key in ("a", "b"))
    return Pair(a, b, BETTER[record["better"]])


def _candidate(value: Any, prompt: Prompt, where: str, folder: Path) -> Sample:
    if not isinstance(value, dict) or not value or value.keys() - {"text", "image", "video"}:
        raise UserError(f"{where}: got {value!r}; expected an object with text, image or video")
    for key, one in value.items():
        if not isinstance(one, str):
            raise UserError(
                f"{where}: {key} is {one!r}; expected {'a text' if key == 'text' else 'the name of a file'}"
            )
    try:
        images = (read_image(folder / value["image"]),) if "image" in value else ()
        video = read_clip(folder / value["video"], None, None)[0] if "video" in value else None
    except UserError as error:
        raise UserError(f"{where}: {error}; {RELATIVE}") from None
    return Sample(prompt, text=value.get("text"), images=images, video=video)


def verdicts(reward: Reward, pairs: Sequence[Pair], name: str = "it") -> list[list[Verdict]]:
    """How a reward judges `a` against `b`: of one that compares, once as (a, b) and once as (b, a), turned round; of one that
    scores, once, by which score is better. A pair that lacks what the reward needs is not judged."""
    lacks = [_lacks(reward, one) for one in pairs]
    told = iter(_told(reward, [one for one, why in zip(pairs, lacks, strict=True) if why is None], name))
    return [next(told) if why is None else [Failed(why)] for why in lacks]


def _lacks(reward: Reward, pair: Pair) -> str | None:
    """What of a pair the reward needs and does not get, in words."""
    for name, sample in (("a", pair.a), ("b", pair.b)):
        needs = lacking(reward, sample)
        if needs:
            needed = ", ".join(reward.needs)
            return f"line {sample.prompt.id}: {name} has no {' and no '.join(needs)}; the reward needs {needed}"
    return None


def _told(reward: Reward, pairs: Sequence[Pair], name: str) -> list[list[Verdict]]:
    if not pairs:
        return []
    if isinstance(reward, PairwiseReward):
        shown = reward.verdicts([(one.a, one.b) for one in pairs] + [(one.b, one.a) for one in pairs])
        there, back = shown[: len(pairs)], shown[len(pairs) :]
        turned = [1 - one if isinstance(one, float) else one for one in back]
        return [list(both) for both in zip(there, turned, strict=True)]
    samples = [sample for one in pairs for sample in (one.a, one.b)]
    scores = RewardSet({name: (reward, 1.0)}).score(samples, [k // 2 for k in range(len(samples))])
    sign = 1 if reward.higher_is_better else -1
    found: list[list[Verdict]] = []
    for k in range(len(pairs)):
        if (scores.status[2 * k : 2 * k + 2] != OK).any():
            own = [message for message in scores.messages if message.count(f"prompt '{pairs[k].a.prompt.id}'")]
            takes = ", ".join(reward.inputs()) or reward.takes
            skipped = f"line {pairs[k].a.prompt.id}: it skipped a sample; it takes {takes}"
            failed = (scores.status[2 * k : 2 * k + 2] == FAILED).any()
            found.append([Failed((own or scores.messages)[0] if failed else skipped)])
            continue
        a, b = (sign * float(scores.values[2 * k + j, 0]) for j in range(2))
        found.append([0.5 if a == b else float(a > b)])
    return found


def measured(pairs: Sequence[Pair], found: Sequence[Sequence[Verdict]]) -> dict[str, tuple[float, int]]:
    """Numbers in 0..1, each with how many pairs it is over:

    `accuracy`: over pairs with a verdict (in both orders) and a label that is no tie; the mean of the orders decides, an even one
    counts a half. `unread`: pairs without. `order`: pairs judged differently when the order changes; `first`: how often what is shown
    first wins (0.5: it does not matter). `longer`: how often the longer text wins, and
    `longer, labels` how often it should, over the pairs of `accuracy`.
    """
    read = [k for k, verdict in enumerate(found) if all(isinstance(one, float) for one in verdict)]
    mean = {k: float(np.mean([float(one) for one in found[k]])) for k in read}  # type: ignore[arg-type]
    decided = [k for k in read if pairs[k].label != 0.5]
    right = [0.5 if mean[k] == 0.5 else float((mean[k] > 0.5) == (pairs[k].label > 0.5)) for k in decided]
    rows = {"accuracy": right, "unread": [float(k not in mean) for k in range(len(pairs))]}
    if any(len(found[k]) == 2 for k in read):
        both = [[float(one) for one in found[k]] for k in read]  # type: ignore[arg-type]
        rows["order"] = [float(there != back) for there, back in both]
        rows["first"] = [(there + 1 - back) / 2 for there, back in both]
    longer = [(k, len(pairs[k].a.text or "") - len(pairs[k].b.text or "")) for k in decided]
    unequal = [(k, more > 0) for k, more in longer if more]
    rows["longer"] = [mean[k] if a else 1 - mean[k] for k, a in unequal]
    rows["longer, labels"] = [pairs[k].label if a else 1 - pairs[k].label for k, a in unequal]
    return {name: (float(np.mean(row)), len(row)) for name, row in rows.items() if row}


SAID = {
    "accuracy": "agrees with the label",
    "unread": "no verdict",
    "order": "judged differently when the order changes",
    "first": "what is shown first wins (0.5: the order does not matter)",
    "longer": "the longer text wins",
    "longer, labels": "the longer text wins by the labels",
}


def run(name: str, options: Mapping[str, Any], path: Path, console: Console) -> None:
    """Show how a reward judges the labelled pairs of `path`. Raises UserError for a file or a reward that cannot be used, and where no
    pair gets a verdict."""
    pairs = read_pairs(path)
    reward = named(name, options)
    found = verdicts(reward, pairs, name)
    numbers = measured(pairs, found)
    why = next((one.reason for verdict in found for one in verdict if isinstance(one, Failed)), None)
    if numbers["unread"][0] == 1:
        raise UserError(f"{name} has no verdict on any of the {len(pairs)} pairs of {path}: {why or 'it says none'}")
    show_line(console, f"{name} on {len(pairs)} pairs of {path}")
    for key, (value, number) in numbers.items():
        error = (value * (1 - value) / number) ** 0.5
        show_line(console, f"  {SAID[key]}: {value:.3f} +- {error:.3f} of {number}")
    if why is not None:
        show_line(console, f"  first failure: {why}")

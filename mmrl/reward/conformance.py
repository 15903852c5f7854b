"""Does a reward keep its promises? What `mmrl reward test` runs, one check after another.

Samples are made up. A check says ok, FAIL, or - where it does not apply.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from rich.console import Console

from mmrl.errors import line_of
from mmrl.reward.base import FROZEN, Need, Reward, bounds, worded
from mmrl.reward.combined import RewardSet
from mmrl.reward.made_up import broken, digest, made_up
from mmrl.reward.named import named
from mmrl.reward.pairwise import PairwiseReward
from mmrl.rollout import OK, Sample, Scores
from mmrl.terminal import show_line

CLOSE = 1e-5
"""Largest difference between two scores that should be equal, relative to them where they are above 1."""
PIXELS = 1e-2
"""The same between `score` and `score_tensor`, whose pictures may be prepared on different ways."""

_SLIP = re.compile(
    rf" returned | raised (AttributeError|ImportError|ModuleNotFoundError|NameError): |{re.escape(FROZEN)}"
)
"""Failures that other samples would not mend."""


class Check(NamedTuple):
    """`ok` is None where the check does not apply; `said` is why, or what was found."""

    name: str
    ok: bool | None
    said: str

    def __str__(self) -> str:
        return f"{ {True: 'ok  ', False: 'FAIL', None: '-   '}[self.ok] } {self.name}: {self.said}"


def run(
    reward: str, options: Mapping[str, Any], size: int, target: Any, console: Console, prompt: str | None = None
) -> bool:
    """Show every check of a reward, one line each, on samples with pictures of `size` pixels; whether none failed.

    Raises UserError for a name or options that mean no reward.
    """
    built = named(reward, options)
    fine = True
    for check in checks(built, made_up(size, target, prompt), reward):
        fine &= check.ok is not False
        show_line(console, str(check))
    return fine


def checks(reward: Reward, samples: Sequence[Sample], name: str = "it") -> Iterator[Check]:
    """Every check in turn; `setup` was called, and `name` is what failures call the reward. Without a score on any sample there is
    nothing more to check."""
    yield facts(reward)
    before = [_copy(sample) for sample in samples]
    seen = [digest(sample) for sample in samples]
    first = RewardSet({name: (reward, 1.0)}).score(samples, _groups(samples))
    touched = [
        row for row, sample in enumerate(samples) if digest(sample) != seen[row] or not _has(sample, before[row])
    ]
    samples = before  # as they were, but for what was written into their arrays
    yield scored(samples, first)
    if not (first.status == OK).any():
        return
    yield deterministic(reward, samples, first)
    yield alone(reward, samples, first)
    yield reordered(reward, samples, first)
    yield both_places(reward, samples)
    yield broken_samples(reward, samples, first)
    yield lacking_samples(reward, samples)
    yield gradient(reward, samples, first)
    yield _check(
        "leaves samples alone", not touched, f"changed {_rows(touched)}", "text, media, prompts and meta as before"
    )


def facts(reward: Reward) -> Check:
    """What a reward says about itself."""
    problems = []
    if (reward.scope == "pairwise") != isinstance(reward, PairwiseReward):
        problems.append("a pairwise reward is a subclass of mmrl.reward.pairwise.PairwiseReward, and no other one is")
    problems += [f"needs an unknown {need!r}; known: {', '.join(get_args(Need))}"
                 for need in reward.inputs() if need not in get_args(Need)]  # fmt: skip
    low = high = None
    try:
        low, high = bounds(reward.limits())
    except Exception as error:
        problems.append(f"limits() gave {_raised(error)}")
    if not reward.revision:
        problems.append("no revision")
    if reward.licence in ("", "unknown"):
        problems.append("no licence")
    if type(reward).__doc__ in (None, Reward.__doc__):
        problems.append("no docstring")
    direction = "higher" if reward.higher_is_better else "lower"
    needs = ", ".join(reward.inputs()) or "nothing"
    good = f"{reward.scope}, needs {needs}, range {low} to {high}, {direction} is better, licence {reward.licence}"
    return _check("facts", not problems, "; ".join(problems), good)


def scored(samples: Sequence[Sample], first: Scores) -> Check:
    """No sample fails, and some are not skipped."""
    ok = first.status[:, 0] == OK
    why = first.messages[0] if first.messages else "it skipped every sample"
    hint = "" if _SLIP.search(why) else "; --size, --target and --prompt make samples that suit it"
    values = first.values[ok, 0]
    good = f"{ok.sum()} of {len(samples)} samples, {values.min():.4g} to {values.max():.4g}" if ok.any() else ""
    return _check("scores inside its range", bool(ok.any()) and not first.messages, f"{why}{hint}", good)


def deterministic(reward: Reward, samples: Sequence[Sample], first: Scores) -> Check:
    """The same again; of a pairwise reward its verdicts, as win rates would come from those that are kept."""
    name = "deterministic"
    if not reward.deterministic:
        return Check(name, None, "it does not say so")
    if isinstance(reward, PairwiseReward):
        pairs = _pairs(samples)
        same = _verdicts(reward, pairs) == _verdicts(reward, pairs)
        return _check(name, same, "other verdicts the second time", "the same verdicts twice")
    return _same(name, first, _score(reward, samples), "the second time")


def alone(reward: Reward, samples: Sequence[Sample], first: Scores) -> Check:
    """A batch equals its samples one by one; of groups, all of them equal each."""
    name = "batch equals single"
    if not reward.deterministic:
        return Check(name, None, "not deterministic")
    groups = _groups(samples)
    keys = range(len(samples)) if reward.scope == "pointwise" else groups
    values, status = np.full(first.values.shape, np.nan), np.zeros(first.status.shape, dtype=np.int64)
    for key in dict.fromkeys(keys):
        rows = [row for row, own in enumerate(keys) if own == key]
        part = _score(reward, [samples[row] for row in rows])
        values[rows], status[rows] = part.values, part.status
    return _same(name, first, Scores(first.names, values, status), "alone")


def reordered(reward: Reward, samples: Sequence[Sample], first: Scores) -> Check:
    """Scores go with their samples whatever the order; of pairwise rewards with all pairs in both orders."""
    name = "order does not matter"
    if not reward.deterministic:
        return Check(name, None, "not deterministic")
    if isinstance(reward, PairwiseReward):
        reward = reward.model_copy(update={"orders": "both", "max_pairs": None})
        first = _score(reward, samples)
    order = list(range(len(samples)))[::-1]
    back = _score(reward, [samples[row] for row in order])
    return _same(name, first, Scores(first.names, back.values[order], back.status[order]), "in another order")


def both_places(reward: Reward, samples: Sequence[Sample]) -> Check:
    """What a pairwise judge says of both orders of a pair; a liking for one place is told and no failure."""
    name = "verdicts"
    if not isinstance(reward, PairwiseReward):
        return Check(name, None, "not pairwise")
    pairs = _pairs(samples)
    told = _verdicts(reward, [*pairs, *((second, first) for first, second in pairs)])
    both = [(told[k], told[k + len(pairs)]) for k in range(len(pairs))]
    valid = [(one, other) for one, other in both if isinstance(one, float) and isinstance(other, float)]
    liked = sum(abs(one + other - 1) > CLOSE for one, other in valid)
    good = f"{len(valid)} of {len(pairs)} pairs readable in both orders, {liked} of them judged by their places"
    return _check(name, bool(valid), "no pair has a verdict in both orders", good)


def broken_samples(reward: Reward, samples: Sequence[Sample], first: Scores) -> Check:
    """A picture or video that is none has no score, and costs no other sample its own."""
    row = int(np.flatnonzero(first.status[:, 0] == OK)[0])
    problems = []
    for need, what, sample in broken(samples[row]):
        given = [sample if at == row else one for at, one in enumerate(samples)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what numpy says of a mean over nothing is not news here
            found = _score(reward, given)
        unread = need not in reward.inputs() and found.values[row, 0] == first.values[row, 0]
        if found.status[row, 0] == OK and not unread:
            problems.append(f"{what} scores {found.values[row, 0]:.4g}")
        others = np.arange(len(samples)) != row
        if reward.scope == "pointwise" and not (found.status[others] == first.status[others]).all():
            problems.append(f"{what} takes other samples with it")
    return _check("broken media are no number", not problems, "; ".join(problems), "failed or skipped")


def lacking_samples(reward: Reward, samples: Sequence[Sample]) -> Check:
    """A sample without what a run must offer has no score."""
    name = "missing inputs are no number"
    without: dict[str, Callable[[Sample], Sample]] = {
        "text": lambda one: replace(one, text=None),
        "image": lambda one: replace(one, images=()),
        "video": lambda one: replace(one, video=None),
        "target": lambda one: replace(one, prompt=replace(one.prompt, target=None)),
        "source": lambda one: replace(one, prompt=replace(one.prompt, media=())),
    }
    if not reward.inputs():
        return Check(name, None, "it needs nothing")
    problems = [need for need in reward.inputs()
                if (_score(reward, [without[need](one) for one in samples]).status == OK).any()]  # fmt: skip
    return _check(name, not problems, f"scored without {', '.join(problems)}", f"{', '.join(reward.inputs())}")


def gradient(reward: Reward, samples: Sequence[Sample], first: Scores) -> Check:
    """`score_tensor` of a differentiable reward: what `score` says, with a finite gradient."""
    name = "gradient"
    if not reward.differentiable:
        return Check(name, None, "it does not say that it has one")
    rows: list[int] = [
        row for row in np.flatnonzero(first.status[:, 0] == OK).tolist() if len(samples[row].images) == 1
    ]
    shape = samples[rows[0]].images[0].shape if rows else ()
    rows = [row for row in rows if samples[row].images[0].shape == shape]
    if not rows:
        return Check(name, False, "no sample of one picture was scored")
    pictures = torch.tensor(np.stack([samples[row].images[0] for row in rows])).permute(0, 3, 1, 2).float() / 255
    pictures.requires_grad_(True)
    try:
        with torch.enable_grad():
            found = reward.score_tensor(pictures, [samples[row].prompt.text for row in rows])
            if not isinstance(found, torch.Tensor):
                return Check(name, False, f"score_tensor returned a {type(found).__name__}; expected a tensor")
            if tuple(found.shape) != (len(rows),) or not found.requires_grad:
                got = f"{tuple(found.shape)}, requires_grad {found.requires_grad}"
                return Check(name, False, f"score_tensor returned {got}; expected ({len(rows)},) with a gradient")
            (grad,) = torch.autograd.grad(found.sum(), pictures, materialize_grads=True)
    except Exception as error:
        return Check(name, False, f"score_tensor raised {_raised(error)}")
    wanted = first.values[rows, 0]
    apart = float(np.abs(found.detach().double().cpu().numpy() - wanted).max() / max(1.0, np.abs(wanted).max()))
    fine = bool(torch.isfinite(grad).all()) and bool((grad != 0).any()) and apart <= PIXELS
    said = f"finite {bool(torch.isfinite(grad).all())}, largest {float(grad.abs().max()):.3g}, {apart:.2g} from score"
    return _check(name, fine, said, said)


def _score(reward: Reward, samples: Sequence[Sample]) -> Scores:
    return RewardSet({"it": (reward, 1.0)}).score([_copy(one) for one in samples], _groups(samples))


def _copy(sample: Sample) -> Sample:
    """A sample that shares media and prompt alone."""
    return replace(sample, meta=dict(sample.meta))


def _has(sample: Sample, before: Sample) -> bool:
    """What was in `meta` is there as it was; more may be."""
    return all(key in sample.meta and sample.meta[key] == value for key, value in before.meta.items())


def _raised(error: Exception) -> str:
    return f"{worded(error)}{line_of(error, __file__)}"


def _groups(samples: Sequence[Sample]) -> list[int]:
    """Samples of one prompt are a group."""
    numbers = {id: number for number, id in enumerate(dict.fromkeys(one.prompt.id for one in samples))}
    return [numbers[one.prompt.id] for one in samples]


def _pairs(samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """All pairs inside groups."""
    groups = _groups(samples)
    return [(samples[i], samples[j]) for i in range(len(samples)) for j in range(i) if groups[i] == groups[j]]


def _verdicts(reward: PairwiseReward, pairs: Sequence[tuple[Sample, Sample]]) -> list[float | None]:
    return [one if isinstance(one, float) else None for one in reward.compared(pairs)]


def _same(name: str, first: Scores, second: Scores, when: str) -> Check:
    a, b = first.values[:, 0], second.values[:, 0]
    apart = (first.status != second.status)[:, 0] | (np.abs(a - b) > CLOSE * np.maximum(1, np.abs(a)))
    rows = np.flatnonzero(apart).tolist()
    said = "".join(f"; {a[row]:.6g} became {b[row]:.6g} {when}" for row in rows[:1])
    return _check(name, not rows, f"other scores of {_rows(rows)}{said}", f"{len(a)} samples")


def _rows(rows: Sequence[int]) -> str:
    return "sample " + ", ".join(map(str, rows))


def _check(name: str, ok: bool, bad: str, good: str) -> Check:
    return Check(name, ok, good if ok else bad)

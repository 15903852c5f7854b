"""What the numbers of an evaluation are about, read from their names (written by `mmrl.evaluate`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmrl.report.data import COUNTS, Stage
from mmrl.report.grid import VERDICTS

HOWS = ("blind", "chance", "media")


@dataclass(frozen=True)
class Measure:
    """`reward` over the prompts of a `part` ("kind=count,level=1"; "" is all of them), asked as `how` says: "" as usual,
    "blind", what guesses earn by "chance"; "media": as usual, those with media alone, where others have none."""

    reward: str
    part: str = ""
    how: str = ""

    @property
    def key(self) -> str:
        """Its name in metrics.jsonl."""
        return "/".join(piece for piece in ("eval", self.reward, self.part, self.how) if piece)


def measure(key: str) -> Measure | None:
    """The inverse of `Measure.key`; None for what is no mean of a reward."""
    if not key.startswith("eval/") or key.endswith(COUNTS):
        return None
    name, how, part = key.removeprefix("eval/"), "", ""
    head, _, tail = name.rpartition("/")
    if head and tail in HOWS:
        name, how = head, tail
    head, _, tail = name.rpartition("/")
    if head and "=" in tail:
        name, part = head, tail
    return Measure(name, part, how)


def measures(stage: Stage) -> list[Measure]:
    """Everything a stage's evaluations have measured, in order of appearance."""
    keys = dict.fromkeys(key for line in stage.evaluations for key in line)
    return [found for key in keys if (found := measure(key)) is not None]


def reward_names(stage: Stage) -> list[str]:
    """Names of the rewards of a stage's evaluations, in order of appearance."""
    return list(dict.fromkeys(found.reward for found in measures(stage)))


def deciding(names: Iterable[str], held_out: Iterable[str]) -> str | None:
    """The reward that says whether a sample is right: by its name, else the first one that is never trained on, else the
    first one."""
    names = list(names)
    first = [*(name for name in VERDICTS if name in names), *(name for name in held_out if name in names), *names]
    return first[0] if first else None

"""What `mmrl reward test` checks: rewards of every kind pass, and each broken promise is found by its own check."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import Tensor

from mmrl.errors import UserError
from mmrl.reward import Reward, Scope, rgb
from mmrl.reward.conformance import checks, run
from mmrl.reward.made_up import made_up
from mmrl.reward.pairwise import PairwiseReward, Verdict
from mmrl.rewards.colour import Colour
from mmrl.rollout import Sample

COUNT = itertools.count()


class Red(Reward):
    """Mean of the red channel."""

    range = (0.0, 1.0)
    needs = ("image",)
    licence = "Apache-2.0"

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [self.one(sample, place, len(samples)) for place, sample in enumerate(samples)]

    def one(self, sample: Sample, place: int, size: int) -> Any:
        return float(rgb(sample.images[0])[..., 0].mean()) / 255


class Share(Red):
    """Red, compared with the group."""

    scope = "groupwise"

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        values = [self.one(sample, 0, 0) for sample in samples]
        return [value / sum(values) for value in values]


class Redder(PairwiseReward):
    """The redder picture is the better."""

    needs = ("image",)
    licence = "Apache-2.0"

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        return [float(rgb(a.images[0])[..., 0].mean() > rgb(b.images[0])[..., 0].mean()) for a, b in pairs]


def failed(reward: Reward) -> set[str]:
    return {check.name for check in checks(reward, made_up()) if check.ok is False}


@pytest.mark.parametrize(
    "reward", [Red(), Share(), Redder(), Redder(orders="one", max_pairs=3), Colour(colour=(1, 0, 0))]
)
def test_rewards_of_every_scope_pass(reward: Reward) -> None:
    assert failed(reward) == set()


class NoLicence(Red):
    """Says nothing about its licence."""

    licence = "unknown"


class OutOfRange(Red):
    """Scores above its range."""

    def one(self, sample: Sample, place: int, size: int) -> Any:
        return 1 + super().one(sample, place, size)


class Moody(Red):
    """Another score every time."""

    def one(self, sample: Sample, place: int, size: int) -> Any:
        return super().one(sample, place, size) / (2 + next(COUNT))


class Batched(Red):
    """Depends on how many samples there are."""

    def one(self, sample: Sample, place: int, size: int) -> Any:
        return super().one(sample, place, size) / size


class Placed(Red):
    """Depends on the place in the batch."""

    def one(self, sample: Sample, place: int, size: int) -> Any:
        return super().one(sample, place, size) / (1 + place)


class FirstOfGroup(Share):
    """The first of a group wins."""

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [float(place == 0) for place, _ in enumerate(samples)]


class Forgiving(Red):
    """Gives broken pictures a 0."""

    def one(self, sample: Sample, place: int, size: int) -> Any:
        try:
            return super().one(sample, place, size)
        except Exception:
            return 0.0


class Guessing(Red):
    """Does without the target that it says it looks at."""

    def inputs(self) -> tuple[Any, ...]:
        return ("image", "target")


class Painter(Red):
    """Writes into the picture."""

    def one(self, sample: Sample, place: int, size: int) -> Any:
        sample.images[0][0, 0, 1] += 1
        return super().one(sample, place, size)


class Cleaner(Red):
    """Takes away what others left."""

    def one(self, sample: Sample, place: int, size: int) -> Any:
        sample.meta.clear()
        return super().one(sample, place, size)


class Writer(Red):
    """Puts another answer in the place of the sample's."""

    def one(self, sample: Sample, place: int, size: int) -> Any:
        sample.text = "mine"
        return super().one(sample, place, size)


class Broken(Red):
    """Has a gradient that raises, or is what `gives` says."""

    differentiable = True
    gives: Any = None

    def score_tensor(self, images: Tensor, prompts: Sequence[str]) -> Any:
        if self.gives is None:
            raise RuntimeError("no gradient today")
        return self.gives if isinstance(self.gives, float) else self.gives.requires_grad_(True)


class Endless(Red):
    """Has limits that are none."""

    def limits(self) -> Any:
        return None


class NoGradient(Red):
    """Says that it has a gradient, and that is of something else."""

    differentiable = True

    def score_tensor(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 2 * images[:, 0].mean((1, 2))


class Timid(Redder):
    """Raises whatever it is shown."""

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        raise ValueError("too many")


class OneByOne(Redder):
    """Compares one pair at a time alone."""

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        if len(pairs) > 1:
            raise ValueError("too many")
        return super().compare(pairs)


class Silent(Redder):
    """Says nothing where the first is the better."""

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        return [one if one == 0 else None for one in super().compare(pairs)]


@pytest.mark.parametrize(
    ("reward", "names"),
    [
        (NoLicence(), {"facts"}),
        (OutOfRange(), {"scores inside its range"}),
        (Moody(), {"deterministic", "batch equals single", "order does not matter", "broken media are no number"}),
        (Batched(), {"batch equals single"}),
        (Placed(), {"batch equals single", "order does not matter"}),
        (FirstOfGroup(), {"order does not matter", "broken media are no number"}),
        (Forgiving(), {"broken media are no number"}),
        (Guessing(), {"missing inputs are no number"}),
        (Painter(), {"leaves samples alone"}),
        (Cleaner(), {"leaves samples alone"}),
        (Writer(), {"leaves samples alone"}),
        (Broken(), {"gradient"}),
        (Broken(gives=3.0), {"gradient"}),
        (Broken(gives=torch.full((6,), 0.5)), {"gradient"}),
        (Endless(), {"facts", "scores inside its range"}),
        (Timid(), {"scores inside its range"}),
        (OneByOne(), set()),
        (NoGradient(), {"gradient"}),
        (Silent(unreadable="half"), {"verdicts"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Reward) else "",
)
def test_each_broken_promise_is_found(reward: Reward, names: set[str]) -> None:
    assert failed(reward) == names


def test_a_scope_that_is_not_what_the_class_is() -> None:
    class Odd(Red):
        """Pairs without `compare`."""

        scope: ClassVar[Scope] = "pairwise"

    assert "facts" in failed(Odd())


def test_the_template_of_the_docs_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    text = "# contrast.py" + page.split("```python\n# contrast.py", 1)[1].split("```", 1)[0]
    assert text.count("\n") < 40
    (tmp_path / "contrast.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    console = Console(record=True, width=200)
    assert run("contrast.py:Contrast", {"limit": 0.4}, 24, None, console)
    lines = console.export_text().splitlines()
    assert len(lines) == 10 and not any(line.startswith("FAIL") for line in lines)
    with pytest.raises(UserError, match=r"contrast\.py:Contrast.*limit"):
        run("contrast.py:Contrast", {"limit": -1}, 24, None, console)

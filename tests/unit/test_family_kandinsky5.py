"""Kandinsky 5: text to video and text to picture, on tiny pipelines of the published classes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import pytest
from family_contract import FamilyContract
from tiny_families.kandinsky5 import tiny_kandinsky5

from mmrl.errors import UserError
from mmrl.generative.families.kandinsky5 import Kandinsky5, Kandinsky5Image
from mmrl.generative.policy import DenoisingPolicy


class VideoContract(FamilyContract):
    policy_type = Kandinsky5
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 32, "num_frames": 5}
    wrong: Any = (
        ({"height": 40}, r"multiples of 16, got \(40, 32\)"),
        ({"num_frames": 6}, "1 more than a multiple of 4, got 6; nearest: 5"),
    )


class TestVideo(VideoContract):
    """Of the published kind: room for a first frame among the channels."""

    def build(self) -> Any:
        return tiny_kandinsky5(visual_cond=True)

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.size(policy.plan_type()) == (512, 768, 121)
        sample = policy.generate(self.draws(1, 1), self.planned(policy, 1.0))[0]
        assert sample.video is not None and sample.video.shape == (5, 32, 32, 3) and sample.meta["fps"] == 24

    def test_a_checkpoint_with_sparse_attention_is_refused(self, tmp_path: Path) -> None:
        tiny_kandinsky5(attention_type="nabla").save_pretrained(tmp_path)
        with pytest.raises(UserError, match="attention of type 'nabla' \\(sparse\\)"):
            self.load(tmp_path)


class TestImage(FamilyContract):
    """The pipeline draws in seven shapes of a million pixels only; here it is told two small ones."""

    policy_type = Kandinsky5Image
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 48}
    wrong: Any = (
        ({"height": 48}, r"must be one of 32x48, 32x32, got \(48, 48\); nearest: \(32, 32\)"),
        ({"num_frames": 5}, "num_frames is 1, got 5"),
    )

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from diffusers import Kandinsky5T2IPipeline

        made = Kandinsky5T2IPipeline.__init__

        @functools.wraps(made)
        def small(pipe: Any, *arguments: Any, **named: Any) -> None:
            made(pipe, *arguments, **named)
            pipe.resolutions = [(48, 32), (32, 32)]

        monkeypatch.setattr(Kandinsky5T2IPipeline, "__init__", small)

    def build(self) -> Any:
        return tiny_kandinsky5(image=True)

    def test_the_published_sizes_are_those_of_the_pipeline(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        policy = self.load(folder)
        assert policy.adapter.size(policy.plan_type()) == (1024, 1024, 1)
        with pytest.raises(
            UserError, match=r"one of 1024x1024, 1408x640, .* got \(512, 1024\); nearest: \(640, 1408\)"
        ):
            policy.adapter.size(policy.plan_type(height=512, width=1024))

"""Qwen-Image-Edit and Qwen-Image-Edit-Plus, on tiny pipelines of the published classes.

Pipelines bring a source picture to about a million pixels; here both sides bring it to 1/256 of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from family_contract import CAPTIONS, every
from PIL import Image
from test_family_qwen_image import QwenContract
from tiny_families.qwen_image import tiny_qwen_image

from mmrl.errors import UserError
from mmrl.generative.conditioning import by_kind
from mmrl.generative.families.qwen_edit import QwenEdit, QwenEditPlus
from mmrl.generative.policy import DenoisingPolicy
from mmrl.rollout import Draw, Prompt

SOURCE, WIDE = (
    np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8) for shape in ((48, 48, 3), (32, 64, 3))
)


class EditContract(QwenContract):
    @pytest.fixture(autouse=True)
    def _small_sources(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
            plain: Any = module.calculate_dimensions
            monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio, f=plain: f(area / 256, ratio))
        yield

    def call(self, prompt: Prompt) -> dict[str, Any]:
        pictures = [Image.fromarray(item) for item in prompt.media if isinstance(item, np.ndarray)]
        return {"prompt": prompt.text, "image": pictures[0] if len(pictures) == 1 else pictures}

    def edits(self, *media: tuple[Any, ...]) -> list[Draw]:
        """The same noise and text beside several media."""
        return [Draw(Prompt(str(i), CAPTIONS[0], media=one), i, 0, 7, 7) for i, one in enumerate(media)]

    def test_a_picture_is_seen_and_one_of_another_shape_beside_it_changes_nothing(
        self, policy: DenoisingPolicy
    ) -> None:
        plan = self.planned(policy, 3.0)
        draws = self.edits((WIDE,), (SOURCE,), (255 - WIDE,))
        both = policy.rollout(draws, plan, every(plan)).payload.final
        alone = torch.cat([policy.rollout([draw], plan, every(plan)).payload.final for draw in draws])
        torch.testing.assert_close(alone, both, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(both[0], both[1], atol=1e-3) and not torch.allclose(both[0], both[2], atol=1e-3)


class TestQwenEdit(EditContract):
    policy_type = QwenEdit
    media = (SOURCE,)

    def build(self) -> Any:
        return tiny_qwen_image("QwenImageEditPipeline")

    def test_two_pictures_are_refused(self, policy: DenoisingPolicy) -> None:
        with pytest.raises(UserError, match="edits 1 picture, but the prompt has 2"):
            policy.generate(self.edits((SOURCE, WIDE)), self.planned(policy, 1.0))


class TestQwenEditPlus(EditContract):
    """With `zero_cond_t`, as 2511 has it: the tokens of the sources are told timestep 0."""

    policy_type = QwenEditPlus
    media = (SOURCE, WIDE)

    def build(self) -> Any:
        return tiny_qwen_image("QwenImageEditPlusPipeline", zero_cond_t=True)

    def test_one_and_two_pictures_go_side_by_side(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 3.0)
        draws = self.edits((SOURCE, WIDE), (WIDE,))
        both = policy.rollout(draws, plan, every(plan)).payload.final
        alone = torch.cat([policy.rollout([draw], plan, every(plan)).payload.final for draw in draws])
        torch.testing.assert_close(alone, both, rtol=1e-4, atol=1e-5)


def test_rows_of_one_key_run_together_and_stay_in_order() -> None:
    keys = torch.tensor([[[2, 4], [0, 0]], [[2, 2], [2, 4]], [[2, 4], [0, 0]]])
    seen: list[list[int]] = []

    def run(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.tolist())
        return 10.0 * rows[:, None]

    assert by_kind(keys, run).tolist() == [[0.0], [10.0], [20.0]]
    assert sorted(seen) == [[0, 2], [1]]

"""Video guards and foresight: tiny random models of the real classes, and the formulas around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrl.errors import UserError
from mmrl.reward import RewardSet
from mmrl.rewards.visual.foresight import Foresight, agreement, prepared
from mmrl.rewards.visual.motion import Motion, TemporalConsistency
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample
from tests.unit.test_preference_models import tiny_clip

CPU = torch.device("cpu")


def clip(frames: int = 8, seed: int = 0, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def video(frames: np.ndarray, fps: float | None = 8) -> Sample:
    return Sample(Prompt("p", "x"), video=frames, meta={} if fps is None else {"fps": fps})


def tiny_vjepa(folder: Path) -> Path:
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    config = VJEPA2Config(
        patch_size=8, crop_size=32, frames_per_clip=8, hidden_size=24, num_attention_heads=2, num_hidden_layers=2, mlp_ratio=2.0,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=2, pred_mlp_ratio=2.0, pred_num_mask_tokens=1,
        num_pooler_layers=1, pred_zero_init_mask_tokens=False,
    )  # fmt: skip
    model = VJEPA2Model(config)
    with torch.no_grad():
        model.encoder.layernorm.weight.normal_(1, 0.5)
        model.encoder.layernorm.bias.normal_(0, 0.5)
    model.save_pretrained(folder)
    return folder


def test_foresight_sees_the_first_part_only(tmp_path: Path) -> None:
    from transformers import VJEPA2Model

    folder = tiny_vjepa(tmp_path)
    model = VJEPA2Model.from_pretrained(folder).eval()
    pixels = torch.randn(1, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = agreement(model, pixels, 0.5)
    with torch.no_grad():
        out = model.encoder(pixel_values_videos=pixels).last_hidden_state
        seen = model.encoder(pixel_values_videos=pixels[:, :4]).last_hidden_state
        known, total = seen.shape[1], out.shape[1]
        places = torch.arange(total)[None]
        guess = model.predictor(seen, [places[:, :known]], [places[:, known:]]).last_hidden_state
    cosines = []
    for k in range(total - known):
        wanted = out[0, known + k] - out[0, known + k].mean()  # layer-normalised; the length does not matter
        cosines.append(float(guess[0, k] @ wanted / guess[0, k].norm() / wanted.norm()))
    assert known * 2 == total and float(found.detach()) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    guesses = []
    for future in (pixels[:, 4:], torch.zeros_like(pixels[:, 4:])):  # the guess does not depend on what comes
        whole = torch.cat([pixels[:, :4], future], 1)
        context = model.encoder(pixel_values_videos=whole[:, :4]).last_hidden_state
        guesses.append(model.predictor(context, [places[:, :known]], [places[:, known:]]).last_hidden_state)
    assert torch.equal(*guesses)
    with pytest.raises(ValueError, match="one to foresee"):
        agreement(model, pixels[:, :2], 0.5)

    reward = Foresight(path=str(folder), frames=8)
    reward.setup(CPU)
    scores = RewardSet({"f": (reward, 1.0)}).score(
        [video(clip(12)), video(clip(12, 1)), video(clip(4)), Sample(Prompt("p", "x"))]
    )
    assert scores.status[:, 0].tolist() == [OK, OK, FAILED, SKIPPED] and scores.values[0, 0] != scores.values[1, 0]


def test_foresight_prepares_frames_as_the_reference_processor_does() -> None:
    from transformers import VJEPA2VideoProcessor

    for height, width in ((40, 56), (300, 200), (33, 32)):
        frames = np.random.default_rng(height).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
        processor = VJEPA2VideoProcessor(crop_size=32)
        wanted = processor(torch.from_numpy(frames).permute(0, 3, 1, 2), return_tensors="pt")["pixel_values_videos"][0]
        found = prepared(torch.from_numpy(frames), 32)
        # the processor rounds to bytes after resizing, this does not: half a byte over the smallest std
        assert found.shape == wanted.shape and float((found - wanted).abs().max()) < 1.1 / 255 / 0.224


class Known(Motion):
    """Everything moves by the same step."""

    step: tuple[float, float] = (3.0, 4.0)

    def setup(self, device: torch.device) -> None:
        pass

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.tensor(self.step)[None, :, None, None].expand(len(first), 2, *first.shape[-2:])


def test_motion_is_flow_per_diagonal_and_second() -> None:
    still = video(clip(size=128))
    diagonal = 128 * 2**0.5
    assert Known(enough=10).score([still]) == [pytest.approx(5 / diagonal * 8 / 10)]
    assert Known(enough=0.01).score([still]) == [1.0] and Known(step=(0.0, 0.0)).score([still]) == [0.0]
    rates: tuple[Any, ...] = (None, 0, -8, float("nan"), float("inf"), "8", True)
    scores = RewardSet({"m": (Known(), 1.0)}).score([video(clip(1)), *(video(clip(), fps=rate) for rate in rates)])
    assert (scores.status == FAILED).all() and "two frames or more, got 1" in scores.messages[0]
    assert len(scores.messages) == 1 + len(rates) and all("no frame rate" in one for one in scores.messages[1:])


def test_motion_is_measured_in_the_videos_own_pixels() -> None:
    """RAFT sees sides of at least 128 pixels: of a strip of 16 x 256 it sees heights eight times as large."""
    strip = np.random.default_rng(0).integers(0, 256, (4, 16, 256, 3), dtype=np.uint8)
    for step, length in (((0.0, 8.0), 1.0), ((8.0, 0.0), 8.0), ((3.0, 32.0), 5.0)):
        assert Known(enough=10, step=step).score([video(strip)]) == [
            pytest.approx(length / (16**2 + 256**2) ** 0.5 * 8 / 10)
        ]


def test_a_flow_that_is_no_number_is_no_score() -> None:
    scores = RewardSet({"m": (Known(step=(float("nan"), 0.0)), 1.0)}).score([video(clip())])
    assert scores.status[0, 0] == FAILED and "nan" in scores.messages[0]


def test_raft_from_a_file(tmp_path: Path) -> None:
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), tmp_path / "raft.pth")
    reward = Motion(path=str(tmp_path / "raft.pth"), max_pairs=2, enough=1e6)
    reward.setup(CPU)
    (found,) = reward.score([video(clip(3, size=40))])
    assert found is not None and 0 < found < 1
    torch.save({"x": torch.zeros(1)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="lacks weights"):
        Motion(path=str(tmp_path / "bad.pth")).setup(CPU)


def test_consistency_is_the_cosine_of_neighbours(tmp_path: Path) -> None:
    reward = TemporalConsistency(path=str(tiny_clip(tmp_path)), batch_size=3)
    reward.setup(CPU)
    frames = clip(5)
    features: Any = reward._clip.picture_features(
        [torch.from_numpy(f.copy()).permute(2, 0, 1).float() / 255 for f in frames]
    )
    wanted = np.mean([float((features[k] @ features[k + 1]).detach()) for k in range(4)])
    assert reward.score([video(frames)]) == [pytest.approx(wanted, abs=1e-5)]
    assert reward.score([video(np.repeat(frames[:1], 4, axis=0))]) == [pytest.approx(1.0, abs=1e-5)]

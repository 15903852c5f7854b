"""Videos and edits through the real command: train, evaluate, report, sample, on tiny pipelines of the published classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.helpers import metrics
from tests.end_to_end.vlm_helpers import mmrl_inside

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

pytestmark = pytest.mark.slow

REWARD = '''
def bright(samples):
    """Mean pixel of what was made."""
    made = [sample.video if sample.video is not None else sample.images[0] for sample in samples]
    return [float(one.mean()) / 255 for one in made]
'''
STAGE = """
stages:
  rl:
    kind: rl
    steps: 2
    prompts: {prompts}
    prompts_per_step: 2
    group_size: 2
    micro_batch: 4
    rollout: {{num_steps: 3, {size}}}
    rewards: {{bright: {{name: 'reward.py:bright'}}}}
    objective:
      advantage: {{name: group, scale: group}}
      steps: {{select: {{name: fraction, fraction: 0.7}}}}
      surrogate: {{name: clip, low: 1e-3, high: 1e-3}}
    train: {{mode: lora, rank: 2, alpha: 4}}
    optimizer: {{lr: 1e-3}}
evaluation:
  prompts: {held_out}
  samples_per_prompt: 1
  pictures: 2
  sampling: {{num_steps: 2, {size}}}
"""


def run(tmp_path: Path, policy: str, prompts: str, held_out: str, size: str) -> Path:
    (tmp_path / "reward.py").write_text(REWARD)
    text = f"policy: {policy}\n" + STAGE.format(prompts=prompts, held_out=held_out, size=size)
    (tmp_path / "run.yaml").write_text(text)
    folder = tmp_path / "run"
    mmrl_inside("check", str(tmp_path / "run.yaml"), "--media")
    mmrl_inside("train", str(tmp_path / "run.yaml"), f"run.dir={folder}", "run.threads=1")
    steps = [line for line in metrics(folder) if "grad_norm" in line]
    assert len(steps) == 2 and all(line["failed"] == 0 for line in steps)
    assert steps[0]["ratio"] == pytest.approx(1.0, abs=1e-4)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert {"before", "after"} <= set(summary["stages"]["rl"])
    mmrl_inside("report", str(folder))
    assert (folder / "report.html").stat().st_size > 10_000
    return folder


def test_text_to_video(tmp_path: Path) -> None:
    from tiny_families.wan import tiny_wan

    tiny_wan().save_pretrained(tmp_path / "model", safe_serialization=True)
    policy = f"{{name: wan, path: '{tmp_path / 'model'}', dtype: float32, max_sequence_length: 8}}"
    texts = "{name: list, items: [one red circle, two blue squares]}"
    folder = run(tmp_path, policy, texts, texts, "height: 32, width: 32, num_frames: 5")
    assert list((folder / "samples" / "media").glob("*.webp"))
    assert "image/webp" in (folder / "report.html").read_text()
    (tmp_path / "prompts.txt").write_text("one red circle\n")
    mmrl_inside("sample", str(folder), "--prompts", str(tmp_path / "prompts.txt"))
    drawn = folder / "samples" / "drawn"
    assert [path for path in drawn.iterdir() if path.suffix in (".mp4", ".webp")]


def test_first_frame_to_video(tmp_path: Path) -> None:
    from tiny_families.wan import tiny_wan

    tiny_wan(image=True).save_pretrained(tmp_path / "model", safe_serialization=True)
    policy = f"{{name: wan_image, path: '{tmp_path / 'model'}', dtype: float32, max_sequence_length: 8}}"
    train, held_out = (f"{{name: moving_shapes, first_frame: true, split: {part}}}" for part in ("train", "held_out"))
    folder = run(tmp_path, policy, train, held_out, "height: 32, width: 32, num_frames: 5")
    assert list((folder / "samples" / "media").glob("*.webp"))


def test_editing(tmp_path: Path) -> None:
    from tiny_families.flux import tiny_flux

    tiny_flux("FluxKontextPipeline").save_pretrained(tmp_path / "model", safe_serialization=True)
    policy = (
        f"{{name: flux_kontext, path: '{tmp_path / 'model'}', dtype: float32, max_sequence_length: 2, resize: false}}"
    )
    train, held_out = (f"{{name: shape_edits, kinds: [recolor], number: 4, seed: {seed}}}" for seed in (0, 1))
    folder = run(tmp_path, policy, train, held_out, "height: 32, width: 32")
    assert list((folder / "samples").glob("*.png"))

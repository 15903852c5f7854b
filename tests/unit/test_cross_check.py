"""Parts of a stage that do not fit each other or the policy, told at the line where the part stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.check import check_media
from mmrl.config import load
from mmrl.errors import ConfigError, UserError
from mmrl.media import check_fit
from mmrl.objective.archer import Archer
from mmrl.objective.aspo import Aspo
from mmrl.objective.cispo import Cispo
from mmrl.objective.dcpo import Dcpo
from mmrl.objective.sequence import Gmpo, Gspo
from mmrl.objective.surrogate import Clip, Surrogate
from mmrl.rollout import Prompt
from mmrl.video import write_video
from mmrl.vlm.models import TinyQwen3VL

WRITES = """
policy: {name: tiny_qwen3vl}
stages:
  rl:
    kind: rl
    steps: 1
    prompts: {name: list, items: [{text: a, target: b}, {text: c, target: d}]}
    prompts_per_step: 2
    group_size: 2
    rollout: {max_new_tokens: 2}
    rewards: {right: {name: exact}}
    objective:
      advantage: {name: group, scale: group}
    optimizer: {lr: 1e-4}
"""
DRAWS = """
policy: {name: tiny_sd3}
stages:
  rl:
    kind: rl
    steps: 1
    prompts: {name: shapes, split: train}
    prompts_per_step: 2
    group_size: 4
    rollout: {num_steps: 4, sampler: {kind: flow_sde, level: 0.7}}
    rewards: {exact: {name: shapes, mode: exact}}
    objective:
      advantage: {name: group, scale: group}
    optimizer: {lr: 1e-4}
"""
HERE = "stages.rl.objective"


def read(folder: Path, text: str, *overrides: str) -> None:
    (folder / "base.yaml").write_text(text)
    load(str(folder / "base.yaml"), overrides)


def failures(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, *overrides)
    return str(caught.value).splitlines()


# ---- what a policy must offer


def test_every_part_that_wants_too_much_is_told_at_its_own_line(tmp_path: Path) -> None:
    more = "      surrogate: {name: archer}\n      terms: [{name: dvrp}, {name: entropy, coef: 0.1}]\n"
    before, after = DRAWS.split("    optimizer")
    found = failures(tmp_path, f"{before}{more}    optimizer{after}")
    line = before.count("\n") + 1
    assert [one.partition(" needs ")[0] for one in found if " needs " in one] == [
        f"{tmp_path}/base.yaml:{line}: {HERE}.surrogate: surrogate archer",
        f"{tmp_path}/base.yaml:{line}: {HERE}.surrogate: surrogate archer",
        f"{tmp_path}/base.yaml:{line + 1}: {HERE}.terms.1: term entropy",
    ]


def test_a_correction_without_an_engine_is_told_where_it_stands(tmp_path: Path) -> None:
    (found,) = failures(tmp_path, WRITES, f"{HERE}.correction={{name: tis}}")
    assert found.startswith(
        f"command line: {HERE}.correction={{name: tis}}: correction tis needs log-probs reported by"
    )


def test_another_file_is_named_once(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: base.yaml\nstages:\n  rl:\n    rollout:\n      num_steps: 2\n      height: 24\n      width: 40\n"
    )
    (tmp_path / "base.yaml").write_text(DRAWS)
    with pytest.raises(ConfigError) as caught:
        load(str(child), ["stages.rl.rollout.sampler={kind: cps}", f"{HERE}.surrogate={{name: guard}}"])
    assert f"(and {child}:5, command line: stages.rl.rollout.sampler={{kind: cps}})" in str(caught.value)


# ---- parity and the clip range


@pytest.mark.parametrize(
    ("surrogate", "narrowest"),
    [
        (Clip(low=0.2, high=0.1), 0.1), (Archer(certain=0.3, uncertain=0.4), 0.3), (Aspo(certain=0.5, uncertain=0.4), 0.4),
        (Dcpo(), 0.5 * 1.8**0.5 - 0.5), (Dcpo(low=0.05), 0.5 - 0.5 * 0.8**0.5), (Gspo(), None), (Gmpo(), None), (Cispo(), None),
    ],
)  # fmt: skip
def test_the_clip_range_of_a_step(surrogate: Surrogate, narrowest: float | None) -> None:
    assert surrogate.clip_range == (None if narrowest is None else pytest.approx(narrowest))


@pytest.mark.parametrize(
    ("surrogate", "narrowest"),
    [("clip", 0.2), ("archer", 0.2), ("aspo", 0.2), ("dcpo", 0.17082), ("cispo", None), ("gspo", None)],
)
def test_a_tolerance_beyond_the_clip_range_is_refused(tmp_path: Path, surrogate: str, narrowest: float | None) -> None:
    wide = [f"{HERE}.surrogate={{name: {surrogate}}}", f"{HERE}.aggregate=seq_mean_token_mean"]
    if narrowest is None:
        read(tmp_path, WRITES, *wide, "stages.rl.parity_tolerance=0.3")
    else:
        (found,) = failures(tmp_path, WRITES, *wide, "stages.rl.parity_tolerance=0.3")
        assert f"0.3 is wider than the clip range {narrowest:g}" in found


# ---- advantages that remember


@pytest.mark.parametrize("advantage", ["dcpo", "per_prompt_history"])
def test_what_remembers_groups_keeps_those_without_differences(tmp_path: Path, advantage: str) -> None:
    own = f"{HERE}.advantage={{name: {advantage}}}"
    read(tmp_path, WRITES, own)
    (found,) = failures(tmp_path, WRITES, own, "stages.rl.curriculum.refill={max_rounds: 3}")
    assert "curriculum.refill={max_rounds: 3}: advantage" in found and "a refill drops them; leave one out" in found
    (found,) = failures(tmp_path, WRITES, own, f"{HERE}.selection={{name: signal}}")
    assert f"{HERE}.selection={{name: signal}}: advantage {advantage} compares with the earlier groups" in found


# ---- prompts that the policy cannot be asked


def rows_of(folder: Path, *rows: tuple[str, list[str]]) -> str:
    """The override that reads these texts and media."""
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(folder / "a.png")
    lines = [json.dumps({"text": text, "media": media, "target": "x"}) for text, media in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return f"stages.rl.prompts={{name: jsonl, path: {folder}/rows.jsonl}}"


def test_media_may_stand_in_the_template_of_the_policy(tmp_path: Path) -> None:
    """What a text and the template around it say together is compared with the media."""
    shown = "policy.template='<image> is how it should be. {prompt}'"
    both = rows_of(tmp_path, ("Is <image> alike?", ["a.png", "a.png"]), ("Good?", ["a.png"]))
    read(tmp_path, WRITES, both, shown)
    (found,) = failures(tmp_path, WRITES, both)
    assert "stages.rl.prompts" in found and "has 1 <image> and 0 <video>, but it comes with 2 images" in found
    (found,) = failures(tmp_path, WRITES, rows_of(tmp_path, ("a", ["a.png", "a.png"]), ("b", ["a.png"])), shown)
    assert "has 1 <image> and 0 <video>, but it comes with 2 images and 0 videos" in found


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<IMG_CONTEXT>", "<image_soft_token>"])
def test_a_models_own_placeholder_is_refused_when_the_data_is_read(tmp_path: Path, token: str) -> None:
    (found,) = failures(tmp_path, WRITES, rows_of(tmp_path, ("a", []), (f"{token} how many?", ["a.png"])))
    assert "stages.rl.prompts={name: jsonl, " in found and ": prompt 'rows.jsonl:2': " in found
    assert f"its text holds a model's own placeholder {token}; write <image> or <video>" in found


def test_the_placeholders_of_the_loaded_model_are_looked_for_before_training() -> None:
    policy = TinyQwen3VL()
    policy.load("cpu")
    policy.encoder.tokens["image"] = "<unheard-of>"
    with pytest.raises(UserError, match="prompt 'p': its text holds a model's own placeholder <unheard-of>"):
        policy.fits([Prompt("q", "fine"), Prompt("p", "<unheard-of> ?")])


def test_a_video_of_one_frame_is_refused_when_the_data_is_read(tmp_path: Path) -> None:
    frames = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="a video needs at least 2 frames, this has 1"):
        check_fit([Prompt("p", "?", (frames,), meta={"fps": 2})], TinyQwen3VL(), "tiny_qwen3vl")
    for name, count in (("short", 1), ("long", 3)):
        write_video(tmp_path / f"{name}.mp4", np.zeros((count, 32, 32, 3), dtype=np.uint8), 4)
    more = rows_of(tmp_path, ("a", ["short.mp4"]), ("b", ["long.mp4"]))
    (tmp_path / "base.yaml").write_text(WRITES)
    with pytest.raises(ConfigError) as caught:
        check_media(load(str(tmp_path / "base.yaml"), [more]))
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/rows.jsonl:1: medium 1: a video needs at least 2 frames, this has 1"
    ]

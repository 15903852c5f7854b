"""Every case of the policy goldens is matched or named with the reason, and cases that another test passes over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.components import build
from mmrl.objective.kl import estimate
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, Prompt, Sample
from mmrl.vlm.models import set_bounds

DATA = Path(__file__).parent / "data"

ALL = "*"
MATCHED: dict[str, set[str]] = {
    "mrope_position_ids": {ALL},
    "papo_patch_mask": {ALL},
    "papo_perception_loss": {
        "papo_g gamma=0.02 (3B, no entropy loss)",
        "papo 7B gamma=0.02 double entropy 0.05, masked log-probs constant (repo default)",
        "papo 7B gamma=0.02 double entropy 0.05, masked log-probs recomputed with grad",
        "papo_d gamma=0.01 double entropy 0.03 no ref KL",
        "clipped perception KL at 0.02",
        "annealed coef 0.01 of base 0.02 (entropy terms discounted by 0.5)",
        "seq averaging",
    },
    "prefix_grouper_attention": {ALL},
    "qwen_vl_token_counts": {ALL},
    "seed_aspo": {ALL},
    "seed_dcpo": {ALL},
    "seed_ngrpo_nsr_advantages": {ALL},
    "seed_treepo": {ALL},
    "trl_grpo_losses_a": {
        "grpo", "bnpo", "dr_grpo", "dapo", "sapo", "luspo", "cispo(eps_high=1.2 absolute cap)", "gspo(grpo agg, sequence ratio)",
    },
    "verl_advantages": {"grpo_std", "grpo_nostd_drgrpo", "grpo_vectorized", "rloo", "rloo_vectorized"},
    "verl_agg_loss": {ALL},
    "verl_kl_penalty": {"k1", "abs", "k2", "k3", "low_var_kl"},
    "verl_loss_gspo_sapo": {ALL},
    "verl_loss_ppo_clip": {ALL},
    "verl_rollout_correction": {ALL},
    "visual_jigsaw__rewards": {ALL},
}  # fmt: skip
NOT_OFFERED = "a method that the project does not have"
LEFT_OUT: dict[tuple[str, str], str] = {
    ("papo_perception_loss", "token top-20% mask"): "an option of the original's code; its recipes do not use it",
    (
        "papo_perception_loss",
        "sft loss on correct rollouts 1e-3",
    ): "an option of the original's code; its recipes do not use it",
    ("trl_grpo_losses_a", "vespo"): NOT_OFFERED,
    ("verl_advantages", "grpo_passk_std"): NOT_OFFERED,
    ("verl_advantages", "reinforce_pp_baseline"): NOT_OFFERED,
    ("verl_advantages", "reinforce_pp_gamma0.95"): NOT_OFFERED,
    ("verl_advantages", "opo"): NOT_OFFERED,
    ("verl_advantages", "remax"): NOT_OFFERED,
    ("verl_advantages", "gpg"): NOT_OFFERED,
    ("verl_advantages", "optimal_token_baseline"): NOT_OFFERED,
    ("verl_advantages", "gae_g0.99_l0.95"): "needs a value network, which the project does not have",
    ("verl_kl_penalty", "k3+"): "the original raises NotImplementedError; the formula is tested in the references",
}


def load(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.mark.parametrize("name", MATCHED)
def test_every_case_is_matched_or_named(name: str) -> None:
    found = set(load(name)["outputs"])
    left_out = {case for file, case in LEFT_OUT if file == name}
    matched = found - left_out if ALL in MATCHED[name] else MATCHED[name]
    assert found == matched | left_out and not matched & left_out


def test_low_var_kl_is_k3() -> None:
    golden = load("verl_kl_penalty")
    log_prob, reference = (torch.tensor(golden["inputs"][name]) for name in ("log_prob", "ref_log_prob"))
    value = torch.tensor(golden["outputs"]["low_var_kl"]["value"])
    torch.testing.assert_close(estimate(log_prob, reference, "k3"), value, rtol=1e-5, atol=1e-6)


def test_one_image_has_the_same_positions_in_qwen3() -> None:
    """The file gives them twice; the models are compared with the first."""
    outputs = load("mrope_position_ids")["outputs"]
    assert outputs["qwen3_one_image"] == outputs["one_image"]


@pytest.mark.parametrize("case", load("qwen_vl_token_counts")["outputs"]["image"])
def test_token_counts_of_images_of_any_size(case: str) -> None:
    """From the size alone, so that pictures of millions of pixels need not be drawn."""
    from transformers import Qwen2VLImageProcessor

    golden = load("qwen_vl_token_counts")
    options = {key: int(value) for key, value in (part.split("=") for part in case.split("|"))}
    processor = type("Processor", (), {})()
    processor.image_processor = Qwen2VLImageProcessor(patch_size=options["factor"] // 2)
    set_bounds(processor, options["min"], options["max"])
    for size, row in zip(golden["inputs"]["sizes_hw"], golden["outputs"]["image"][case], strict=True):
        patches = processor.image_processor.get_number_of_image_patches(*size, {})
        assert patches == row[2] * row[3] and patches // 4 == row[4]


def test_patches_of_videos_of_any_size() -> None:
    from transformers import Qwen3VLVideoProcessor

    golden = load("qwen_vl_token_counts")
    processor = Qwen3VLVideoProcessor(cap_pixels_per_frame=False)
    processor.size = {"shortest_edge": 131072, "longest_edge": 786432}
    rows = golden["outputs"]["qwen3_video_factor32_min131072_max786432"]
    for (frames, height, width), (to_height, to_width) in zip(golden["inputs"]["video"], rows, strict=True):
        patches = processor.get_num_of_video_patches(frames, height, width, {})
        assert patches == -(-frames // 2) * (to_height // 16) * (to_width // 16)


@pytest.mark.parametrize(("key", "name"), [("anls", "anls"), ("relaxed", "relaxed_number")])
def test_visual_jigsaw_text_rewards(key: str, name: str) -> None:
    """Differs: an empty truth, of which the original says that an empty answer is right, is a failed reward."""
    golden = load("visual_jigsaw__rewards")
    for (text, gold), output in zip(golden["inputs"][key], golden["outputs"][key], strict=True):
        sample = Sample(Prompt("p", "q", target=gold), text=text)
        scores = RewardSet({"r": (build("reward", {"name": name}), 1.0)}).score([sample])
        if gold == "":
            assert scores.status[0, 0] == FAILED
        else:
            assert float(scores.values[0, 0]) == pytest.approx(float(output)), (text, gold)

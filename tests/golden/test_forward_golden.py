"""DiffusionNFT, GRPO-Guard and the writer of PromptRL against numbers computed by the original implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl.advantage.group import DrAdvantage
from mmrl.generative.forward.guard import guarded, moved
from mmrl.generative.forward.nft import nft
from mmrl.generative.forward.renoise import Noised
from mmrl.objective.aggregate import count
from mmrl.objective.batch import UnitBatch
from mmrl.objective.kl import KL
from mmrl.objective.objective import Objective
from mmrl.objective.surrogate import Clip
from mmrl.rollout import StepOutput

DATA = Path(__file__).parent / "data"


def read(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text())


def tensor(value: dict[str, Any]) -> Tensor:
    return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])


def close(found: Tensor, wanted: Tensor, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found.to(wanted.dtype), wanted, rtol=rtol, atol=atol)


def test_diffusion_nft() -> None:
    case = read("diffusionnft__loss_beta1.0_all")
    given, wanted, params = case["inputs"], case["outputs"], case["params"]
    clean, eps, level = tensor(given["x0"]), tensor(given["noise"]), tensor(given["t"])
    v, old, reference = (tensor(given[f"{key}prediction"]) for key in ("forward_", "old_", "ref_forward_"))
    t = level.reshape(-1, 1, 1, 1)
    new = Noised(v.requires_grad_(), eps - clean, (1 - t) * clean + t * eps, clean, level, torch.zeros(3))
    loss = nft(new, old, tensor(given["advantages"]), params["beta"], params["adv_clip_max"])
    close(loss.mean(), tensor(wanted["policy_loss"]).squeeze())
    kl = (v - reference).square().mean((1, 2, 3))
    close(kl, tensor(wanted["kl_div_loss"]))
    (loss.mean() + params["kl_beta"] * kl.mean()).backward()
    assert v.grad is not None
    close(v.grad, tensor(wanted["grad_forward_prediction"]))


def test_grpo_guard() -> None:
    """`std_dev_t` of the original is without sqrt(D); its advantages are clamped to 5 before the loss."""
    case = read("verl_omni__grpo_guard_loss")
    given, wanted, params = case["inputs"], case["outputs"], case["params"]
    log_prob, mean = tensor(given["log_prob"]).requires_grad_(), tensor(given["prev_sample_mean"]).requires_grad_()
    width = tensor(given["sqrt_dt"]) ** 2
    std = tensor(given["std_dev_t"]) * width.sqrt().reshape(-1, 1, 1)
    drift = moved(mean, tensor(given["old_prev_sample_mean"]), std)
    advantage = tensor(given["advantages"]).clamp(-params["adv_clip_max"], params["adv_clip_max"])
    clip = params["clip_ratio"]
    loss, seen = guarded(log_prob, tensor(given["old_log_prob"]), drift, std.flatten(), advantage, clip, clip)
    total = (loss / width).mean()
    close(total, tensor(wanted["loss"]).squeeze(), atol=1e-5)
    assert float(seen.log_ratio.exp().mean()) == pytest.approx(wanted["metrics"]["actor/ratio_mean"], rel=1e-6)
    total.backward()
    assert log_prob.grad is not None and mean.grad is not None
    close(log_prob.grad, tensor(wanted["grad"]["log_prob"]), atol=1e-5)
    close(mean.grad, tensor(wanted["grad"]["prev_sample_mean"]), atol=1e-5)


def test_promptrl_writer() -> None:
    """The loss of PromptRL's language model is REINFORCE's ratio of 1 with a k3 KL, a mean over tokens and then over answers."""
    case = read("promptrl__lm_loss")
    given, wanted, params = case["inputs"], case["outputs"], case["params"]
    logits, reference = tensor(given["policy_logits"]).requires_grad_(), tensor(given["ref_logits"])
    tokens, start = tensor(given["completion_ids"]), params["prompt_length"] - 1

    def log_probs(values: Tensor) -> Tensor:
        own = values[:, start : start + tokens.shape[1]].log_softmax(-1)
        return own.gather(2, tokens[..., None])[..., 0]

    new, old = log_probs(logits), log_probs(logits).detach()
    mask = tensor(wanted["completion_mask"]).bool()
    objective = Objective(DrAdvantage(), Clip(), terms=(KL(coef=params["kl_coef"]),), aggregate="seq_mean_token_mean")
    advantage = tensor(wanted["advantages"])[:, None].expand_as(new)
    weight = objective.weights(mask, count(mask))
    batch = UnitBatch(old, advantage, weight, torch.ones_like(weight))
    others = {("original", "reference"): StepOutput(log_probs(reference))}
    loss, _ = objective.loss(StepOutput(new), batch, others, lambda p, q, norm: new)  # type: ignore[arg-type]
    close(loss, tensor(wanted["loss"]).squeeze())
    loss.backward()
    assert logits.grad is not None
    close(logits.grad, tensor(wanted["grad_logits"]))

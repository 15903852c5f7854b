"""What only a CUDA device can show: the float32 contract around a bfloat16 network, and equality with the CPU."""

from __future__ import annotations

import pytest
import torch

from mmrl import components
from mmrl.rollout import Draw, Prompt

pytestmark = pytest.mark.gpu


def setup(device: str, dtype: str, **train: object):
    policy = components.build("policy", {"name": "tiny_sd3", "dtype": dtype})
    policy.load(torch.device(device))
    policy.prepare(policy.train_type.model_validate(train), False)
    plan = policy.plan_type.model_validate({"num_steps": 4, "sampler": {"kind": "flow_sde"}})
    draws = [Draw(Prompt(str(g), "two red circles"), g, m, 10 * g + m, g) for g in range(2) for m in range(3)]
    return policy, policy.rollout(draws, plan, torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ratio_is_one_before_the_first_update(dtype: str) -> None:
    policy, rollout = setup("cuda", dtype, mode="lora", rank=4, alpha=4)
    for chunk in policy.chunks(rollout, rollout.mask, 64):
        with torch.no_grad():
            new = policy.replay(rollout, chunk).log_prob.cpu()
        assert float((torch.exp(new - chunk.take(rollout.log_prob)) - 1).abs().max()) < 1e-4


def test_cuda_draws_what_the_cpu_draws() -> None:
    _, here = setup("cpu", "float32")
    _, there = setup("cuda", "float32")
    torch.testing.assert_close(here.log_prob, there.log_prob, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(here.payload.final, there.payload.final.cpu(), rtol=1e-3, atol=1e-3)

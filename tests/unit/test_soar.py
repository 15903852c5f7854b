"""SOAR on a tiny model: what it is at lam 0, on an exact model, and against a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_generative_policy import policy_of

from mmrl.errors import UserError
from mmrl.generative.families.tiny import TinySD15
from mmrl.generative.forward.soar import between, levels_above, mixed, stray
from mmrl.generative.noise import Noise
from mmrl.generative.train import TrainSpec
from mmrl.rollout import Prompt, Sample

SEEDS = [3, 4, 5]


def examples() -> list[Sample]:
    picture = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    return [Sample(Prompt(str(i), "one red circle"), images=(np.roll(picture, i, 0),)) for i in range(3)]


def loss_of(soar: dict[str, Any] | None, **options: Any) -> torch.Tensor:
    return policy_of("sd3", TrainSpec(soar=soar, **options)).supervised_loss(examples(), SEEDS)


def test_weight_zero_is_supervised_training() -> None:
    plain = loss_of(None, noise="logit_normal")
    assert torch.equal(loss_of({"lam": 0.0}, noise="logit_normal"), plain)
    assert not torch.allclose(loss_of({"lam": 1.0}, noise="logit_normal"), plain, rtol=1e-3)


def test_after_an_exact_step_the_points_lie_on_the_path() -> None:
    g = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(3, 2, 4, 4, generator=g), torch.randn(3, 2, 4, 4, generator=g)
    sigma, after = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.8, 0.45, 0.0])
    level = levels_above(after, torch.tensor([0.1, 0.6, 0.9]))
    assert (level > after).all() and (level < 1).all()

    def path(t: torch.Tensor) -> torch.Tensor:
        t = t[:, None, None, None]
        return (1 - t) * clean + t * eps

    point = between(stray(path(sigma), eps - clean, sigma, after), eps, after, level)
    torch.testing.assert_close(point, path(level), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((point - clean) / level[:, None, None, None], eps - clean, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        between(stray(path(sigma), clean, sigma, after), eps, after, level), path(level), rtol=1e-2
    )


def test_the_points_count_beside_the_path() -> None:
    path, others = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    assert mixed(path, others, 0.5).tolist() == pytest.approx([(1 + 0.5 * 8) / 2, (2 + 0.5 * 10) / 2])


def test_the_loss_is_that_of_a_loop() -> None:
    """One example, one point, written out; the model predicts samples."""
    spec = TrainSpec(soar={"draws": 1, "guidance_scale": 2.0, "num_steps": 10}, noise_shift=3.0)
    policy: Any = policy_of("sd3", spec)
    (example, *_), seed = examples(), SEEDS[0]
    found = policy.supervised_loss([example], [seed])
    clean = policy.latents_of([example])
    noise = Noise([seed], clean.shape[1:], policy.device)
    noise.uniform()  # of the caption dropout
    u = float(noise.uniform())
    eps, asks = noise.draw(), policy.asks([example], ["original"])
    blank = policy.asks([example], ["blank"])

    def predicted(x: torch.Tensor, level: float, told: Any) -> torch.Tensor:
        return policy.predict(x, torch.tensor([level * 1000]), policy.supervised_rows(told), 1.0)

    def shifted(v: float) -> float:
        return 3 * v / (1 + 2 * v)

    s, after = shifted(u), shifted(max(u - 0.1, 0.0))
    x = (1 - s) * clean + s * eps
    own, none = predicted(x, s, asks), predicted(x, s, blank)
    path = float(((own - clean) ** 2).mean()) / max(s, 0.05) ** 2
    guided = none + 2.0 * (own - none)
    where = x + (after - s) * (x - guided) / s
    level = after + (1 - after) * float(noise.uniform())
    point = where + (level - after) / (1 - after) * (eps - where)
    other = float(((predicted(point, level, asks) - clean) ** 2).mean()) / max(level, 0.05) ** 2
    assert float(found) == pytest.approx((path + other) / 2, rel=1e-4)


def test_the_step_has_no_gradient_and_the_points_have_one() -> None:
    policy: Any = policy_of("sd3", TrainSpec(soar={"draws": 2}))
    policy.supervised_loss(examples(), SEEDS).sum().backward()
    with_soar = [p.grad.clone() for p in policy.trainable().values() if p.grad is not None]
    plain: Any = policy_of("sd3", TrainSpec())
    plain.supervised_loss(examples(), SEEDS).sum().backward()
    without = [p.grad for p in plain.trainable().values() if p.grad is not None]
    assert max(float((a - b).abs().max()) for a, b in zip(with_soar, without, strict=True)) > 1e-4


def test_a_diffusion_model_refuses_it() -> None:
    with pytest.raises((ValueError, UserError), match=r"train\.soar needs a flow-matching model"):
        TinySD15().check_train(TrainSpec(soar={}))

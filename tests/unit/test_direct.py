"""Direct stages: the gradient of a reward, of the pictures, and what a stage makes of it on a tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_generative_policy import draws_of, nudge, policy_of

from mmrl.errors import RunError
from mmrl.generative.forward.direct import drawn_with_gradient
from mmrl.generative.train import TrainSpec
from mmrl.reward import Use
from mmrl.rewards.colour import Colour, closeness
from mmrl.rewards.jpeg import JpegCompressibility
from mmrl.rollout import Prompt, Sample

RED = (1.0, 0.25, 0.0)


def test_the_gradient_of_the_colour_reward_is_that_of_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 2, 3, generator=g, dtype=torch.float64).requires_grad_()
    (found,) = torch.autograd.grad(Colour(colour=RED).score_tensor(images, ["", ""]).sum(), images)
    for at in np.ndindex(*images.shape):
        values = []
        for sign in (1, -1):
            moved = images.detach().clone()
            moved[at] += sign * 1e-6
            values.append(float(closeness(moved, RED).sum()))
        assert float(found[at]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_the_colour_reward_scores_stored_pictures_alike() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    reward, sample = Colour(colour=RED), Sample(Prompt("a", ""), images=(picture,))
    wanted = 1 - np.mean((picture / 255 - np.array(RED)) ** 2)
    assert reward.score([sample]) == pytest.approx([wanted])
    tensor = torch.tensor(picture).permute(2, 0, 1)[None] / 255
    assert float(reward.score_tensor(tensor, [""])) == pytest.approx(wanted)
    assert reward.score([Sample(Prompt("a", ""), images=(np.full((2, 2, 3), 255, np.uint8),))]) < [1.0]
    with pytest.raises(NotImplementedError, match="JpegCompressibility has no gradient"):
        JpegCompressibility().score_tensor(tensor, [""])


def pictures(policy: Any, method: str, last: int, at: int = 0, penalty: bool = False) -> Any:
    plan = policy.sampling_type(num_steps=3)
    return drawn_with_gradient(policy, draws_of(1, 2), plan, method, last, at, penalty)


def test_the_pictures_are_those_of_an_evaluation() -> None:
    policy: Any = policy_of("sd3")
    drawn = policy.generate(draws_of(1, 2), policy.sampling_type(num_steps=3))
    stored = np.stack([sample.images[0] for sample in drawn])
    images, distance = pictures(policy, "draft", 2)
    found = (images.detach().movedim(1, -1) * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(found, stored)
    assert images.requires_grad and not distance.any()


@pytest.mark.parametrize(("method", "last", "at"), [("draft", 1, 0), ("draft", 3, 0), ("refl", 3, 0)])
def test_the_gradient_of_the_reward_is_that_of_finite_differences(method: str, last: int, at: int) -> None:
    """Along itself. It is the whole derivative where no step without gradient comes before; else that of its steps alone."""
    policy: Any = policy_of("sd3")
    weights = list(policy.trainable().values())

    def score() -> Any:
        return Colour(colour=RED).score_tensor(pictures(policy, method, last, at)[0], ["", ""]).sum()

    grads = torch.autograd.grad(score(), weights, allow_unused=True, materialize_grads=True)
    found = float(torch.stack([grad.square().sum() for grad in grads]).sum().sqrt())
    way = [grad / found for grad in grads]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, way, strict=True):
                w += sign * 1e-2 * d
            values.append(float(score().double()))
            for w, d in zip(weights, way, strict=True):
                w -= sign * 1e-2 * d
    whole = (values[0] - values[1]) / 2e-2
    if last == 3:
        assert found == pytest.approx(whole, rel=0.02)
    else:
        assert abs(found - whole) > 0.02 * abs(whole)


def test_refl_scores_the_clean_prediction_of_the_chosen_step() -> None:
    policy: Any = policy_of("sd3")
    images = [pictures(policy, "refl", 3, at)[0] for at in range(3)]
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    # of a model that predicts samples the last step ends at its prediction
    torch.testing.assert_close(images[2], pictures(policy, "draft", 1)[0], atol=1e-5, rtol=1e-5)


def test_the_distance_to_the_reference() -> None:
    policy: Any = policy_of("sd3", TrainSpec(), reference=True)
    assert pictures(policy, "draft", 2, penalty=True)[1].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    nudge(policy, 0.02)
    distance = pictures(policy, "draft", 2, penalty=True)[1]
    assert (distance > 1e-4).all() and distance.requires_grad


def test_what_does_not_fit_is_refused() -> None:
    policy: Any = policy_of("sd3")
    policy.check_gradient(policy.sampling_type(num_steps=3), 3)
    with pytest.raises(ValueError, match="last 4 steps of 3"):
        policy.check_gradient(policy.sampling_type(num_steps=3), 4)
    with pytest.raises(ValueError, match=r"Euler steps; leave sampling\.solver dpm2m out"):
        policy.check_gradient(policy.sampling_type(num_steps=3, solver="dpm2m"), 1)


def test_a_reward_that_is_not_finite_stops_the_run() -> None:
    from mmrl.meter import Meter
    from mmrl.stages.direct import DirectWork

    class Broken(Colour):
        def score_tensor(self, images: Any, prompts: Any) -> Any:
            return images.sum((1, 2, 3)) * float("nan")

    work = DirectWork.__new__(DirectWork)
    work.stage = type("Stage", (), {"rewards": {"broken": Use(Broken(colour=RED))}})  # type: ignore[assignment]
    with pytest.raises(RunError, match="reward 'broken' is nan for a picture of 'a cat'"):
        work._rewards(torch.rand(1, 3, 2, 2), ["a cat"], Meter())

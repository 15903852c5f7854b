"""Rollout plans against a loop that walks one sample at a time, in float64, from its own noises and the formulas of the steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl.generative.families.tiny import TinySD3
from mmrl.generative.plan import FlowPlan
from mmrl.generative.train import TrainSpec
from mmrl.rollout import Draw, Prompt, Rollout
from mmrl.seeding import derive_seed

SHAPE = (1, 3, 24, 24)
NUM, SHIFT = 8, 3.0
GROUPS, MEMBERS = 2, 4


def policy() -> TinySD3:
    """A policy whose network is a formula of latent, time and text, so that a loop can use it in float64."""
    found = TinySD3(layers=2, heads=2, head_dim=16)
    found.load("cpu")
    found.prepare(TrainSpec(), False)

    def predict(x: Tensor, timestep: Tensor, cond: Any) -> Tensor:
        text = cond["pooled"].double().mean(1).to(x.dtype)
        return clean(x, timestep.to(x.dtype) / 1000, text)

    found.adapter.predict = predict  # type: ignore[method-assign]
    return found


def clean(x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """What the network predicts: a clean picture."""
    rows = [-1, *([1] * (x.dim() - 1))]
    return torch.tanh(0.7 * x + text.reshape(rows)) * (1 - 0.3 * sigma.reshape(rows))


def draws() -> list[Draw]:
    texts = ("one red circle", "two blue squares")
    return [
        Draw(Prompt(f"p{g}", texts[g]), g, m, 1000 + 10 * g + m, 77 + g) for g in range(GROUPS) for m in range(MEMBERS)
    ]


def normal(seed: int, skip: int = 0) -> Tensor:
    g = torch.Generator("cpu").manual_seed(seed)
    for _ in range(skip):
        torch.randn(SHAPE, generator=g)
    return torch.randn(SHAPE, generator=g).double()


class Loop:
    """One sample of a plan: `latents[k]` after k steps, `log_prob[k]`, `mask[k]`, and the final latent."""

    def __init__(self, plan: FlowPlan, draw: Draw, selected: list[bool], text: float) -> None:
        self.plan, self.draw, self.selected, self.text = plan, draw, selected, torch.tensor([text], dtype=torch.float64)
        u = [1 - k / NUM for k in range(NUM + 1)]
        self.sigmas = [SHIFT * one / (1 + (SHIFT - 1) * one) for one in u]
        self.drawn = 0
        self.latents: list[Tensor] = []
        self.log_prob = [0.0] * NUM
        self.mask = [False] * NUM
        self.final = self.walk()

    def clean(self, x: Tensor, sigma: float) -> Tensor:
        return clean(x, torch.tensor([sigma], dtype=torch.float64), self.text)

    def is_noisy(self, k: int) -> bool:
        plan = self.plan
        if plan.fan_out is not None:
            return plan.fan_out.at[self.draw.member % len(plan.fan_out.at)] == k
        if plan.branch is not None and k in plan.branch.at:
            return True
        return plan.stochastic == "all" or self.selected[k]

    def noise(self, k: int) -> Tensor:
        plan, draw = self.plan, self.draw
        if plan.branch is None:
            own = self.drawn + (plan.start_noise == "separate")
            self.drawn += 1
            return normal(draw.seed, own)
        path: list[int] = []
        count = len(plan.branch.at)
        for place, at in enumerate(plan.branch.at):
            if at <= k:
                path.append(draw.member // plan.branch.factor ** (count - 1 - place) % plan.branch.factor)
        single = normal(derive_seed(draw.group_seed, "branch", k, "own", *path))
        if k not in plan.branch.at:
            return single
        if plan.branch.noise == "scaled":
            return plan.branch.spread * single
        common, q = normal(derive_seed(draw.group_seed, "branch", k, *path[:-1])), plan.branch.spread
        return (common + q * single) / math.sqrt(1 + q * q)

    def walk(self) -> Tensor:
        plan, sigmas = self.plan, self.sigmas
        x = normal(self.draw.group_seed if plan.start_noise == "shared" else self.draw.seed)
        last = max((k for k in range(NUM) if self.selected[k]), default=-1)
        history: list[tuple[float, Tensor]] = []
        self.latents.append(x)
        for k in range(NUM):
            if plan.flash is not None and k == last + 1:
                return self.flash(x, k, history)
            s0, s1 = sigmas[k], sigmas[k + 1]
            x0 = self.clean(x, s0)
            v = (x - x0) / s0
            noisy = self.is_noisy(k)
            if noisy:
                g = plan.sampler.level * math.sqrt(s0 / (1 - min(s0, sigmas[1])))
                if plan.sampler.truncate is not None:
                    g = min(g, plan.sampler.truncate / math.sqrt(s0 - s1))
                mean = x - (s0 - s1) * (v + g * g / (2 * s0) * (x + (1 - s0) * v))
                std = g * math.sqrt(s0 - s1)
                x = mean + std * self.noise(k)
                per_dim = -((x - mean) ** 2) / (2 * std * std) - math.log(std) - 0.5 * math.log(2 * math.pi)
                self.log_prob[k] = float(per_dim.mean())
                self.mask[k] = self.selected[k] or (plan.branch is not None and k in plan.branch.at)
            elif plan.solver == "dpm2m":
                x = self.second_order(x, x0, history, s0, s1)
            else:
                x = x - (s0 - s1) * v
            history.append((s0, x0))
            self.latents.append(x)
        return history[-1][1] if plan.decode == "clean" else x

    def second_order(self, x: Tensor, x0: Tensor, history: list[tuple[float, Tensor]], s0: float, s1: float) -> Tensor:
        if s1 == 0:
            return x0
        if s0 == 1:
            return s1 * x + (1 - s1) * x0
        lam = [math.log((1 - s) / s) for s in (s0, s1)]
        slope = x0
        if history and history[-1][0] < 1:
            before = math.log((1 - history[-1][0]) / history[-1][0])
            slope = x0 + 0.5 * (lam[1] - lam[0]) / (lam[0] - before) * (x0 - history[-1][1])
        return s1 / s0 * x + (1 - s1) * (1 - math.exp(lam[0] - lam[1])) * slope

    def flash(self, x: Tensor, start: int, history: list[tuple[float, Tensor]]) -> Tensor:
        assert self.plan.flash is not None
        count = max(2, int((NUM - start + 1) * self.plan.flash.ratio + 1e-9))
        u0 = 1 - start / NUM
        u = [u0 * (1 - k / (count - 1)) for k in range(count)]
        points = [SHIFT * one / (1 + (SHIFT - 1) * one) for one in u]
        for k in range(count - 1):
            x0 = self.clean(x, points[k])
            x = self.second_order(x, x0, history, points[k], points[k + 1])
            history.append((points[k], x0))
        return x


PLANS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "all": ({}, list(range(NUM - 1))),
    "shared start": ({"start_noise": "shared"}, list(range(NUM - 1))),
    "window": ({"stochastic": "selected", "start_noise": "shared"}, [2, 3]),
    "window, separate": ({"stochastic": "selected"}, [2, 3]),
    "window, dpm2m": ({"stochastic": "selected", "start_noise": "shared", "solver": "dpm2m"}, [2, 3]),
    "flash": ({"stochastic": "selected", "start_noise": "shared", "flash": {"ratio": 0.5}}, [1, 2]),
    "flash, late": ({"stochastic": "selected", "start_noise": "shared", "flash": {"ratio": 0.4}}, [6]),
    "fan out": ({"stochastic": "selected", "start_noise": "shared", "fan_out": {"at": [1, 4]}}, list(range(NUM))),
    "branch": ({"start_noise": "shared", "branch": {"at": [0, 3]}, "decode": "clean"}, list(range(NUM - 1))),
    "branch mix": ({"start_noise": "shared", "stochastic": "selected", "branch": {"at": [0, 3]}}, [1]),
    "other spread": ({"start_noise": "shared", "branch": {"at": [0, 3], "spread": 2.0}}, [0, 1]),
    "scaled": ({"start_noise": "shared", "branch": {"at": [0, 3], "noise": "scaled"}}, [0, 1]),
    "truncated": ({"sampler": {"kind": "flow_sde", "truncate": 0.2}}, list(range(NUM))),
}


def rolled(name: str) -> tuple[TinySD3, Rollout, FlowPlan, list[bool]]:
    options, chosen = PLANS[name]
    model, plan = policy(), FlowPlan(num_steps=NUM, shift=SHIFT, micro_batch=3, **options)
    steps = torch.zeros(NUM, dtype=torch.bool)
    steps[chosen] = True
    return model, model.rollout(draws(), plan, steps), plan, steps.tolist()


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_is_a_loop_over_single_samples(name: str) -> None:
    model, rollout, plan, selected = rolled(name)
    payload = rollout.payload
    text = model.cache.frozen([model.ask(draw.prompt, plan) for draw in draws()], torch.device("cpu")).tensors["pooled"]
    for row, draw in enumerate(draws()):
        loop = Loop(plan, draw, selected, float(text[draw.group].double().mean()))
        torch.testing.assert_close(payload.final[row : row + 1].double(), loop.final, rtol=2e-4, atol=2e-4)
        assert rollout.mask[row].tolist() == loop.mask
        for k in range(NUM):
            if loop.mask[k]:
                assert float(rollout.log_prob[row, k]) == pytest.approx(loop.log_prob[k], abs=2e-4)
            if payload.at[row, k] >= 0:
                kept = payload.latents[payload.at[row, k]]
                torch.testing.assert_close(kept.double(), loop.latents[k][0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", PLANS)
def test_replay_gives_ratio_one_and_calls_are_counted(name: str) -> None:
    model, rollout, plan, selected = rolled(name)
    steps = torch.tensor(selected)
    for chunk in model.chunks(rollout, rollout.mask, 5):
        again = model.replay(rollout, chunk).log_prob
        torch.testing.assert_close(again, chunk.take(rollout.log_prob), rtol=0, atol=1e-5)
    trained = int((model.stochastic_steps(plan, steps) & steps).sum())
    assert rollout.stats["nfe"] == model.passes(plan, steps, trained, MEMBERS, 1)["rollout"]


def test_branch_noise_has_unit_variance_and_the_correlation_of_its_spread() -> None:
    q, count = 2.0, 400
    loops = []
    plan = FlowPlan(num_steps=NUM, start_noise="shared", branch={"at": [0], "spread": q})  # type: ignore[arg-type]
    for seed in range(count):
        pair = []
        for member in range(2):
            loop = Loop.__new__(Loop)
            loop.plan, loop.draw, loop.drawn = plan, Draw(Prompt("p", ""), 0, member, 0, seed), 0
            pair.append(loop.noise(0).flatten()[:200])
        loops.append(torch.stack(pair))
    both = torch.stack(loops)
    assert float(both.std()) == pytest.approx(1.0, abs=0.01)
    assert float((both[:, 0] * both[:, 1]).mean()) == pytest.approx(1 / (1 + q * q), abs=0.01)

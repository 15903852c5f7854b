"""Plans, train specs, schedules and components: what is validated before a weight is loaded."""

from __future__ import annotations

import sys
from subprocess import run
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from pydantic import ValidationError

from mmrl import components
from mmrl.errors import UserError
from mmrl.generative.families.tiny import TinySD3, TinySD15
from mmrl.generative.forest import forest
from mmrl.generative.identity_vae import identity_vae
from mmrl.generative.plan import DiffusionPlan, FlowPlan
from mmrl.generative.schedule import ddim_schedule, flow_prediction, flow_schedule, shifted_schedule
from mmrl.generative.solver import tail
from mmrl.generative.tiny_text import phrase_tokenizer, word_tokenizer
from mmrl.generative.train import TrainSpec
from mmrl.objective.steps import DepthPruned
from mmrl.rollout import Draw, Prompt

SHARED: dict[str, Any] = {"start_noise": "shared"}
SELECTED: dict[str, Any] = {**SHARED, "stochastic": "selected"}


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        (FlowPlan, {"sampler": {"kind": "ode", "level": 0.5}}, "draws no noise"),
        (FlowPlan, {"sampler": {"kind": "ddim"}}, "flow-matching model has no sampler 'ddim'"),
        (FlowPlan, {"sampler": {"kind": "cps", "level": 1.5}}, r"expected a number in \(0, 1.0\]"),
        (FlowPlan, {"sampler": {"kind": "ode"}, "stochastic": "selected"}, "asks for noise at the selected steps"),
        (FlowPlan, {"guidance_scale": 0.5}, "greater than or equal to 1"),
        (FlowPlan, {"num_stps": 4}, "Extra inputs"),
        (DiffusionPlan, {"sampler": {"kind": "cps"}}, "diffusion model has no sampler 'cps'"),
        (DiffusionPlan, {"shift": 3.0}, "Extra inputs"),
        (FlowPlan, {"sampler": {"kind": "cps", "truncate": 0.45}}, "truncate bounds the noise of 'flow_sde'"),
        (FlowPlan, {"branch": {"at": [0]}}, "grows from one start noise per group; add start_noise: shared"),
        (FlowPlan, {**SHARED, "branch": {"at": [3, 0]}}, r"got \[3, 0\]; expected different steps in rising order"),
        (FlowPlan, {**SHARED, "branch": {"at": [10]}}, r"branch.at names step 10, but there are 10 \(0 to 9\)"),
        (FlowPlan, {**SHARED, "branch": {"at": [0]}, "sampler": {"kind": "ode"}}, "but the sampler draws none"),
        (FlowPlan, {**SHARED, "branch": {"at": [9]}, "sampler": {"kind": "cps"}}, "has no noise under 'cps'"),
        (FlowPlan, {**SELECTED, "branch": {"at": [0]}, "fan_out": {"at": [0]}}, "two different trees; use one"),
        (FlowPlan, {**SHARED, "fan_out": {"at": [0]}}, "at its own steps alone; add stochastic: selected"),
        (FlowPlan, {**SELECTED, "flash": {}, "fan_out": {"at": [0]}}, "with branch or fan_out there is no window"),
        (FlowPlan, {"flash": {}}, "flash follows the ODE after the window; add stochastic: selected"),
        (FlowPlan, {**SELECTED, "flash": {"ratio": 1.5}}, "less than or equal to 1"),
        (DiffusionPlan, {**SELECTED, "flash": {}}, "flash is defined for flow-matching models"),
        (FlowPlan, {"solver": "dpm2m"}, "every step draws some; add stochastic: selected"),
        (FlowPlan, {**SHARED, "branch": {"at": [9]}, "decode": "clean"}, "whose noise decode: clean does not see"),
        (DiffusionPlan, {"solver": "dpm2m"}, "Input should be 'euler'"),
        (TinySD15.sampling_type, {"solver": "dpm2m"}, "Input should be 'euler'"),
        (TrainSpec, {"rank": 8}, "rank belongs to mode: lora"),
        (TrainSpec, {"mode": "lora", "parts": ["transformer"]}, "parts belongs to mode: full"),
    ],
)
def test_contradictions_are_refused(plan: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan.model_validate(options)


def test_noise_levels_have_the_published_defaults() -> None:
    levels = {
        kind: FlowPlan.model_validate({"sampler": {"kind": kind}}).sampler.level
        for kind in ("flow_sde", "dance_sde", "cps", "ode")
    }
    assert levels == {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "ode": 0.0}
    assert DiffusionPlan().sampler.level == 1.0
    assert FlowPlan.model_validate(FlowPlan(guidance_scale=2).model_dump()) == FlowPlan(guidance_scale=2)


@pytest.mark.parametrize("given", [{}, {"mode": "lora", "rank": 4}, {"parts": ["transformer"]}])
def test_what_is_written_out_with_every_default_is_read_again(given: dict[str, Any]) -> None:
    spec = TrainSpec.model_validate(given)
    assert TrainSpec.model_validate(spec.model_dump(mode="json")) == spec
    for kind in ("flow_sde", "cps", "ode"):
        plan = FlowPlan.model_validate({"sampler": {"kind": kind}})
        assert FlowPlan.model_validate(plan.model_dump(mode="json")) == plan


def objective(needs_log_prob: bool = True, norm: str | None = None, view: str = "original") -> Any:
    terms = (SimpleNamespace(norm=norm),) if norm else ()
    needs = ((view, "reference"),) if norm else ()
    surrogate = SimpleNamespace(reads_transition=False)
    return SimpleNamespace(
        needs_log_prob=needs_log_prob,
        needs=needs,
        terms=terms,
        forward=None,
        reads_tree=False,
        surrogate=surrogate,
        selection_size=None,
        select=SimpleNamespace(first_dropped=None),
    )


def test_a_plan_without_a_density_cannot_feed_a_loss_that_reads_log_probs() -> None:
    policy = TinySD3()
    for sampler in ({"kind": "ode"}, {"kind": "flow_sde", "level": 0}):
        plan = FlowPlan.model_validate({"sampler": sampler})
        with pytest.raises(ValueError, match=r"no log-prob; .*flow_sde \(level 0.7\)"):
            policy.check_plan(plan, objective())
        policy.check_plan(plan, objective(needs_log_prob=False))
        assert not policy.stochastic_steps(plan, torch.ones(10)).any()
    with pytest.raises(ValueError, match="ddim"):
        TinySD15().check_plan(DiffusionPlan.model_validate({"sampler": {"kind": "ddim", "level": 0}}), objective())
    with pytest.raises(ValueError, match="'g2' is defined for flow"):
        TinySD15().check_plan(DiffusionPlan(), objective(norm="g2"))
    with pytest.raises(ValueError, match="no view 'masked'"):
        policy.check_plan(FlowPlan(), objective(norm="s2", view="masked"))
    policy.check_plan(FlowPlan(), objective(norm="g2"))


def test_a_group_must_fit_its_tree() -> None:
    tree = FlowPlan.model_validate({**SHARED, "branch": {"at": [0, 3], "factor": 3}})
    tree.check_group(9)
    with pytest.raises(ValueError, match="2 times into 3, so a group has 9 samples, but group_size is 8"):
        tree.check_group(8)
    fan = FlowPlan.model_validate({**SELECTED, "fan_out": {"at": [0, 2, 4]}})
    fan.check_group(6)
    for size in (3, 8):
        with pytest.raises(ValueError, match=f"group_size is {size}; use a multiple of 3 from 6 on"):
            fan.check_group(size)


def test_a_tree_is_refused_what_would_not_be_its_own() -> None:
    policy = TinySD3()
    fan = FlowPlan.model_validate({**SELECTED, "fan_out": {"at": [0, 2]}})
    policy.check_plan(fan, objective())
    chosen = objective()
    chosen.selection_size = 2
    with pytest.raises(ValueError, match="takes the extremes of the whole group"):
        policy.check_plan(fan, chosen)
    tree = FlowPlan.model_validate({**SHARED, "branch": {"at": [0, 3]}})
    for stop, drop, good in ((5, (8, 9), True), (4, (8, 9), False), (5, (4, 9), False)):
        pruned = objective()
        pruned.reads_tree, pruned.select = True, DepthPruned(drop=drop, stop=stop)
        if good:
            policy.check_plan(tree, pruned)
            continue
        with pytest.raises(ValueError, match=r"drops depths down to 4, .* use stop and drop from 5 on"):
            policy.check_plan(tree, pruned)


def test_the_last_step_is_not_trained_where_it_is_not_seen() -> None:
    plan = FlowPlan.model_validate({**SHARED, "decode": "clean"})
    every = torch.ones(10, dtype=torch.bool)
    assert TinySD3().stochastic_steps(plan, every).tolist() == [True] * 9 + [False]
    draws = [Draw(Prompt("p", "x"), group=0, member=k, seed=k, group_seed=0) for k in range(2)]
    trees = forest(plan, draws, every)
    assert trees.noisy.all() and trees.trained[:, :9].all() and not trees.trained[:, 9].any()


def test_flash_needs_steps_after_the_trained_ones() -> None:
    plan = FlowPlan.model_validate({**SELECTED, "flash": {}})
    window = objective()
    window.plan_steps = lambda size, iteration, seed: torch.arange(size) < 4
    TinySD3().check_plan(plan, window)
    window.plan_steps = lambda size, iteration, seed: torch.ones(size, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"none or too few that could be fewer; use \{name: window\}"):
        TinySD3().check_plan(plan, window)
    window.plan_steps = lambda size, iteration, seed: torch.arange(size) < size - 1  # one step is left, and stays one
    with pytest.raises(ValueError, match="none or too few"):
        TinySD3().check_plan(plan, window)
    with pytest.raises(ValueError, match="sees finished samples; leave them out"):
        finished = objective()
        finished.forward, finished.plan_steps = SimpleNamespace(), lambda size, iteration, seed: torch.arange(size) < 4
        TinySD3().check_plan(plan, finished)


@pytest.mark.parametrize(("first", "length", "steps"), [(0, 4, 11), (3, 4, 13), (10, 4, 17), (18, 4, 23), (21, 4, 25)])
def test_flash_takes_the_steps_of_mixgrpo_and_always_ends_at_zero(first: int, length: int, steps: int) -> None:
    """N = 25, r = 0.4: 11, 13 and 17 steps as counted in the original; where that would stop above sigma 0, one step more."""
    plan = FlowPlan.model_validate({**SELECTED, "start_noise": "separate", "num_steps": 25, "flash": {}, "shift": 3.0})
    selected = torch.zeros(25, dtype=torch.bool)
    selected[first : first + length] = True
    assert TinySD3().passes(plan, selected, length, 4, 1) == {"rollout": float(steps), "update": float(length)}
    ends = first + length
    if ends < 25:
        sigmas = shifted_schedule(25, 3.0).at(tail(25, ends, 0.4))
        assert float(sigmas[0]) == pytest.approx(float(shifted_schedule(25, 3.0).sigmas[ends])) and sigmas[-1] == 0


def test_sigmas_between_the_steps_of_a_schedule() -> None:
    model = flow_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0), 10, mu=0.0)
    places = torch.arange(11).double()
    for schedule in (model, shifted_schedule(10, 3.0)):
        torch.testing.assert_close(schedule.at(places), schedule.sigmas)
        told = [schedule.time_of(float(sigma)) for sigma in schedule.sigmas[:-1]]
        assert told == pytest.approx(schedule.timesteps.tolist())
        between = schedule.at(torch.tensor([4.5]))
        assert schedule.sigmas[5] < between < schedule.sigmas[4]
        assert schedule.timesteps[5] < schedule.time_of(float(between)) < schedule.timesteps[4]
    with pytest.raises(ValueError, match="outside"):
        model.time_of(1.5)


def test_network_passes_are_counted() -> None:
    policy = TinySD3()
    every = torch.ones(10, dtype=torch.bool)
    assert policy.passes(FlowPlan(num_steps=10), every, 9, 4, replays=2) == {"rollout": 10.0, "update": 18.0}
    guided = FlowPlan(num_steps=10, guidance_scale=4.5)
    assert policy.passes(guided, every, 3, 4, replays=1) == {"rollout": 20.0, "update": 6.0}
    assert policy.trains(TrainSpec(mode="lora", rank=8)).startswith("a LoRA of rank 8")


def test_a_schedule_with_dpm_flow_sigmas_is_the_schedulers_own() -> None:
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="sample")
    found = flow_schedule(scheduler, 8, mu=1.0)
    scheduler.set_timesteps(8)
    assert torch.equal(found.sigmas, scheduler.sigmas) and float(found.sigmas[-1]) == 0
    assert torch.equal(found.timesteps, scheduler.timesteps.float())
    assert found.sigma_max == float(scheduler.sigmas[1])


def test_what_a_flow_network_predicts_comes_from_its_scheduler() -> None:
    dpm, unipc = DPMSolverMultistepScheduler, UniPCMultistepScheduler
    assert flow_prediction(FlowMatchEulerDiscreteScheduler()) == "velocity"
    assert flow_prediction(dpm(use_flow_sigmas=True, prediction_type="flow_prediction")) == "velocity"
    assert flow_prediction(unipc(use_flow_sigmas=True, prediction_type="sample")) == "sample"
    for wrong in (dpm(), dpm(use_flow_sigmas=True, prediction_type="epsilon"), EulerDiscreteScheduler()):
        with pytest.raises(UserError, match="flow"):
            flow_prediction(wrong)


def test_ddim_ends_where_its_scheduler_says() -> None:
    assert float(ddim_schedule(DDIMScheduler(clip_sample=False, set_alpha_to_one=True), 10).alpha_bar_next[-1]) == 1
    kept = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    assert float(ddim_schedule(kept, 10).alpha_bar_next[-1]) == float(kept.alphas_cumprod[0]) < 1
    for wrong in (DDIMScheduler(clip_sample=True), EulerDiscreteScheduler()):
        with pytest.raises(UserError):
            ddim_schedule(wrong, 10)


def test_a_size_that_does_not_fit_is_named_with_its_neighbour() -> None:
    policy = TinySD3(layers=2, heads=2, head_dim=16)
    policy.load("cpu")
    with pytest.raises(UserError, match=r"multiples of 8 up to 24, got \(20, 24\); nearest: \(16, 24\)"):
        policy.adapter.size(FlowPlan(height=20))


def test_the_tiny_autoencoder_returns_its_input() -> None:
    vae = identity_vae(24)
    x = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[0] = 1
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        torch.testing.assert_close(posterior.mode(), x, rtol=0, atol=1e-3)
        torch.testing.assert_close(vae.decode(x).sample, x, rtol=0, atol=1e-3)
        assert float(posterior.std.max()) < 1e-6


def test_every_caption_of_the_tiny_language_has_a_token_per_word_and_phrase() -> None:
    text = "a blue square left of a green triangle"
    assert word_tokenizer()(text).tokens() == ["blue", "square", "left_of", "green", "triangle", "<eos>"]
    assert phrase_tokenizer()(text).tokens() == ["blue_square_left_of", "green_triangle"]
    assert phrase_tokenizer()("Three red circles").tokens() == ["three", "red_circles"]
    assert word_tokenizer()("").tokens() == ["<eos>"]


@pytest.mark.parametrize("name", ["sd3", "sd15", "tiny_sd3", "tiny_sd15"])
def test_policies_are_components_that_load_nothing_by_themselves(name: str) -> None:
    spec = {"name": name, **({"path": "some/model"} if not name.startswith("tiny") else {})}
    policy = components.build("policy", spec)
    assert policy.plan_steps(policy.plan_type(num_steps=7)) == 7
    assert policy.model_json_schema()["properties"]
    with pytest.raises(ValidationError):
        components.build("policy", {**spec, "sede": 1})


def test_checking_a_policy_imports_no_model_library() -> None:
    code = (
        "import sys; from mmrl import components; p = components.build('policy', {'name': 'sd3', 'path': 'x'}); "
        "p.plan_type(); p.train_type(); sys.exit(any(m in sys.modules for m in ('diffusers', 'transformers', 'peft')))"
    )
    assert run([sys.executable, "-c", code]).returncode == 0

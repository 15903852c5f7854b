"""Transitions, schedules and packing against numbers computed by the original implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmrl.generative import packing
from mmrl.generative.schedule import ddim_schedule, dynamic_mu, flow_schedule, shifted_schedule
from mmrl.generative.transition import ddim_transition, flow_transition

DATA = Path(__file__).parent / "data"


def read(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text())


def tensor(value: dict[str, Any]) -> Tensor:
    return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])


def close(found: Tensor, wanted: Tensor, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


def test_flow_grpo_replay_of_five_steps_in_one_batch() -> None:
    case = read("flow_grpo__sde_step__given_prev")
    given, wanted = case["inputs"], case["outputs"]
    sigmas, at = tensor(given["sigmas"]), torch.tensor(given["step_indices"])
    step = flow_transition(
        tensor(given["model_output"]),
        tensor(given["sample"]),
        sigmas[at],
        sigmas[at + 1],
        kind="flow_sde",
        level=case["params"]["noise_level"],
        sigma_max=sigmas[1],
        x_next=tensor(given["prev_sample"]),
    )
    close(step.mean, tensor(wanted["prev_sample_mean"]))
    close(step.std / step.dt.sqrt(), tensor(wanted["std_dev_t"]))
    log_prob = tensor(wanted["log_prob"])
    close(step.log_prob[:-1], log_prob[:-1], rtol=1e-4)
    close(step.log_prob[-1:], log_prob[-1:], rtol=1e-3)


@pytest.mark.parametrize("index", [0, 1, 7, 14, 15])
def test_dancegrpo_steps(index: int) -> None:
    case = read("dancegrpo__flux_step")
    given, wanted = case["inputs"], case["outputs"][f"index_{index}"]
    sigmas, v, x = tensor(given["sigmas"]), tensor(given["model_output"]), tensor(given["latents"])
    arguments: dict[str, Any] = {"level": case["params"]["eta"], "sigma_max": sigmas[1]}
    step = flow_transition(
        v, x, sigmas[index], sigmas[index + 1], kind="dance_sde", x_next=tensor(given["prev_sample"]), **arguments
    )
    close(step.mean, tensor(wanted["prev_sample_mean"]))
    close(step.log_prob, tensor(wanted["log_prob"]), rtol=1e-4 if index < 15 else 1e-3)
    close(x - sigmas[index] * v, tensor(wanted["pred_original_sample"]))
    ode = flow_transition(v, x, sigmas[index], sigmas[index + 1], kind="ode", **arguments)
    close(ode.mean, tensor(wanted["ode_mean"]))
    assert not ode.random.any()


def test_cps_steps() -> None:
    case = read("verl_omni__sde_step__cps")
    given, wanted = case["inputs"], case["outputs"]
    sigmas, at = tensor(given["sigmas"]), torch.tensor(given["step_indices"])
    step = flow_transition(
        tensor(given["model_output"]),
        tensor(given["sample"]),
        sigmas[at],
        sigmas[at + 1],
        kind="cps",
        level=case["params"]["noise_level"],
        sigma_max=sigmas[1],
        noise=tensor(given["noise"]),
    )
    close(step.mean, tensor(wanted["prev_sample_mean"]))
    close(step.x_next, tensor(wanted["prev_sample"]))
    close(step.std, tensor(wanted["std_dev_t"]))
    close(step.log_prob, tensor(wanted["log_prob"]), rtol=1e-4)
    close(step.dt.flatten().sqrt(), tensor(wanted["sqrt_dt"]), rtol=1e-4)


def ddpo_scheduler(params: dict[str, Any]) -> DDIMScheduler:
    names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "steps_offset", "set_alpha_to_one")
    return DDIMScheduler(clip_sample=False, **{name: params[name] for name in names})


@pytest.mark.parametrize("replay", [True, False])
def test_ddpo_steps_on_the_schedule_of_the_loaded_scheduler(replay: bool) -> None:
    case = read("ddpo__ddim_step__epsilon")
    given, params, wanted = case["inputs"], case["params"], case["outputs"]
    schedule = ddim_schedule(ddpo_scheduler(params), params["num_inference_steps"])
    at = torch.tensor([schedule.timesteps.tolist().index(t) for t in tensor(given["timesteps"]).tolist()])
    choice = {"x_next": tensor(given["prev_sample"])} if replay else {"noise": tensor(given["noise"])}
    step = ddim_transition(
        tensor(given["model_output"]),
        tensor(given["sample"]),
        schedule.alpha_bar[at],
        schedule.alpha_bar_next[at],
        params["eta"],
        "epsilon",
        **choice,
    )
    close(step.std.flatten() ** 2, tensor(wanted["variance"]), rtol=1e-3)
    close(step.log_prob, tensor(wanted["log_prob_given_prev" if replay else "sampled_log_prob"]), rtol=1e-3)
    if not replay:
        close(step.x_next, tensor(wanted["sampled_prev_sample"]), rtol=1e-5, atol=1e-5)


def test_shifted_schedules() -> None:
    for steps, sigmas in read("schedules__shift")["outputs"]["static_shift3_linspace_0_1"].items():
        close(shifted_schedule(int(steps), 3.0).sigmas, tensor(sigmas))


def test_the_sd3_schedule_of_diffusers() -> None:
    for steps, wanted in read("schedules__shift")["outputs"]["sd3_diffusers_shift3"].items():
        found = flow_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0), int(steps), mu=1.0)
        close(found.sigmas, tensor(wanted["sigmas"]))
        close(found.timesteps, tensor(wanted["timesteps"]))
        assert found.timesteps.dtype == torch.float32


def test_the_flux_schedule_shifts_with_the_resolution() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for wanted in read("schedules__shift")["outputs"]["flux_dynamic"].values():
        tokens = wanted["image_seq_len"]
        mu = dynamic_mu(scheduler.config, tokens)
        assert mu == pytest.approx(wanted["mu"])
        found = flow_schedule(scheduler, 6, mu, sigmas=torch.linspace(1, 1 / 6, 6).tolist())
        close(found.sigmas, tensor(wanted["sigmas_6step"]))


def test_flux_packing() -> None:
    case = read("flux__pack_unpack")
    latents, params = tensor(case["inputs"]["latents"]), case["params"]
    height, width = (params[side] // params["vae_scale_factor"] for side in ("height_px", "width_px"))
    packed = packing.pack_latents(latents)
    close(packed, tensor(case["outputs"]["packed"]))
    close(packing.unpack_latents(packed, height, width), latents)
    close(packing.image_ids(height, width), tensor(case["outputs"]["img_ids"]))

"""Writing a denoising policy for other programs, with a README that says how plain diffusers makes the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl import lora
from mmrl.errors import UserError
from mmrl.generative.plan import Sampling

if TYPE_CHECKING:
    from mmrl.generative.policy import DenoisingPolicy

README = """# {title}

Written by mmrl. `mmrl sample` and this call make the same picture for the same seed:

```python
import torch
{imports}

{load}
{adjust}{makes} = pipe(
    {given}
{arguments}
    generator=torch.Generator("cpu").manual_seed(seed),
).{output}[0]
```

One {makes} per call: every {makes} starts from latents {shape} drawn in {dtype} on the CPU from its own seed.
{notes}"""


def write(policy: DenoisingPolicy, folder: Path, to: str, plan: Sampling) -> Path:
    """`to` diffusers: a pipeline folder; peft: adapter files for peft and for `load_lora_weights`. Returns the folder.

    Raises UserError for peft without a LoRA, or when its base is not the model that was loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if to == "peft":
        _write_lora(policy, folder)
    else:
        policy.save(folder)
    (folder / "README.md").write_text(readme(policy, to, plan))
    return folder


def _write_lora(policy: DenoisingPolicy, folder: Path) -> None:
    from peft.utils import get_peft_model_state_dict

    adapter, weights = policy.adapter, policy.weights
    if not weights.is_lora:
        raise UserError("there is no LoRA to export: this stage trains the full weights; export to diffusers instead")
    if weights.changed:
        raise UserError(
            f"an earlier stage changed the base weights ({', '.join(sorted(weights.changed))}), so the LoRA alone does "
            "not give this model; export to diffusers instead"
        )
    for part, config in weights.peft_configs.items():
        network: Any = adapter.modules[part]
        place = folder if part == adapter.network_name else folder / part
        layers = get_peft_model_state_dict(network, adapter_name=lora.ADAPTER)
        told = {"lora_layers": layers, "lora_adapter_metadata": config.to_dict()}
        type(adapter.pipe).save_lora_weights(place, **{f"{adapter.network_name}_{k}": v for k, v in told.items()})
        lora.write(network, config, place)


def readme(policy: DenoisingPolicy, to: str, plan: Sampling) -> str:
    """The text of README.md for the sampling settings of `plan`."""
    adapter = policy.adapter
    size = adapter.size(plan)
    dtype = str(adapter.dtype)
    load = f'pipe = {adapter.pipeline}.from_pretrained("PATH", dtype={dtype})'
    if to == "peft":
        load = load.replace("PATH", "the base model") + '\npipe.load_lora_weights("this folder")'
        for part in adapter.networks[1:]:
            load += f'\npipe.load_lora_weights("this folder/{part}", load_into_{part}=True)'
    else:
        load = load.replace("PATH", "this folder")
    arguments: dict[str, Any] = {
        "num_inference_steps": plan.num_steps,
        **adapter.call_guidance(plan),
        **adapter.call_size(size),
        **{key: getattr(plan, key) for key in ("guidance_scale_2",) if getattr(plan, key, None) is not None},
        **adapter.call_options(),
    }
    imports, adjust, notes = _solver(policy, plan, to)
    if adjust.startswith("# sigmas"):
        arguments["sigmas"] = [round(float(s), 6) for s in policy.schedule(plan).sigmas[:-1]]
    if dtype != "torch.float32":
        notes += f"mmrl keeps latents and VAE in float32 around a {dtype} network: the pictures agree up to rounding.\n"
    return README.format(
        title=f"{adapter.pipeline} ({'LoRA' if to == 'peft' else 'whole pipeline'})",
        imports=f"from diffusers import {', '.join(sorted({adapter.pipeline, *imports}))}",
        load=load,
        adjust=adjust.replace("# sigmas\n", ""),
        arguments="\n".join(f"    {name}={value!r}," for name, value in arguments.items()),
        given='prompt="a prompt",' if adapter.media_role is None else 'prompt="a prompt", image=picture,',
        makes=adapter.makes,
        output=adapter.call_output,
        shape=(1, *adapter.latent_shape(size)),
        dtype=adapter.noise_dtype,
        notes=notes,
    )


def _solver(policy: Any, plan: Sampling, to: str) -> tuple[list[str], str, str]:
    """Extra imports, extra lines and notes that make the plain pipeline take Euler (ODE) steps on the plan's schedule."""
    scheduler = policy.adapter.pipe.scheduler
    name, config = type(scheduler).__name__, scheduler.config
    if getattr(plan, "shift", None) is not None:
        if policy.prediction == "sample":
            return (
                [],
                "",
                "The plan's own `shift` has no counterpart in this pipeline's scheduler: the pictures differ.\n",
            )
        euler = "FlowMatchEulerDiscreteScheduler"
        return [euler], f"# sigmas\npipe.scheduler = {euler}(shift=1.0)\n", ""
    if name == "UniPCMultistepScheduler":
        change = f"solver_order=1, disable_corrector=list(range({plan.num_steps}))"
        return [name], f"pipe.scheduler = {name}.from_config(pipe.scheduler.config, {change})\n", ""
    if name == "DPMSolverMultistepScheduler" and config.solver_order != 1:
        solver = "DPMSolverMultistepScheduler"
        change = 'solver_order=1, algorithm_type="dpmsolver++", final_sigmas_type="zero"'
        return [solver], f"pipe.scheduler = {solver}.from_config(pipe.scheduler.config, {change})\n", ""
    if name in ("DDIMScheduler", "CogVideoXDDIMScheduler"):
        if to == "diffusers":
            return [], "", f"The scheduler in this folder is the {name} that mmrl samples with; keep it.\n"
        change = "clip_sample=False" + (", thresholding=False" if name == "DDIMScheduler" else "")
        return [name], f"pipe.scheduler = {name}.from_config(pipe.scheduler.config, {change})\n", ""
    return [], "", ""

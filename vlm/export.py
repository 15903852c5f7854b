"""Writing a vision-language policy for other programs, with a README that says how transformers answers with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmrl import lora
from mmrl.errors import UserError
from mmrl.vlm.train import PART

if TYPE_CHECKING:
    from mmrl.vlm.policy import VlmPolicy

README = """# {title}

Written by mmrl. This call asks as `mmrl` does:

```python
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
{imports}
{load}
messages = {messages}
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"{chat}
).to(model.device)
tokens = model.generate(**inputs, max_new_tokens={tokens}, {sampling})
print(processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def save(policy: VlmPolicy, folder: Path) -> None:
    """Model and processor as a plain transformers folder; a LoRA is merged in a copy, the dtype is the policy's."""
    dtype = getattr(torch, policy.dtype)
    model = policy.model
    mixed = any(p.dtype != dtype for p in model.parameters() if p.is_floating_point())
    if policy.weights.is_lora or mixed:
        model = copy.deepcopy(model)
        lora.merge(model)
        model.to(dtype)
    model.save_pretrained(folder)
    policy.encoder.processor.save_pretrained(folder)


def write(policy: VlmPolicy, folder: Path, to: str, plan: Any) -> Path:
    """`to` transformers: a model folder; peft: adapter files. Returns the folder.

    Raises UserError for peft without a LoRA, or when its base is not the model that was loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if to == "peft":
        weights = policy.weights
        if not weights.is_lora:
            raise UserError(
                "there is no LoRA to export: this stage trains full weights; export to transformers instead"
            )
        if weights.changed:
            raise UserError(
                "an earlier stage changed the base weights, so the LoRA alone does not give this model; export to "
                "transformers instead"
            )
        lora.write(policy.model, weights.peft_configs[PART], folder)
    else:
        save(policy, folder)
    (folder / "README.md").write_text(readme(policy, to, plan), encoding="utf-8")
    return folder


def readme(policy: VlmPolicy, to: str, plan: Any) -> str:
    """The text of README.md for the sampling settings of `plan`."""
    base = '"the base model"' if to == "peft" else '"this folder"'
    load = (
        f"model = AutoModelForImageTextToText.from_pretrained({base}, dtype=torch.{policy.dtype})\n"
        f"processor = AutoProcessor.from_pretrained({base})"
    )
    if to == "peft":
        load = load.replace("\n", '\nmodel = PeftModel.from_pretrained(model, "this folder")\n')
    system: list[dict[str, Any]] = (
        [{"role": "system", "content": [{"type": "text", "text": policy.system}]}] if policy.system is not None else []
    )
    question = policy.template.replace("{prompt}", "a question")
    user = {"role": "user", "content": [{"type": "image", "path": "picture.png"}, {"type": "text", "text": question}]}
    greedy = plan.temperature == 0
    return README.format(
        title=f"{type(policy.model).__name__} ({'LoRA' if to == 'peft' else 'whole model'})",
        imports="from peft import PeftModel\n" if to == "peft" else "",
        load=load,
        messages=[*system, user],
        chat="".join(f", {name}={value!r}" for name, value in policy.chat.items()),
        tokens=plan.max_new_tokens,
        sampling="do_sample=False" if greedy else f"do_sample=True, temperature={plan.temperature}, top_p=1.0, top_k=0",
    )

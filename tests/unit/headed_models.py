"""Tiny Qwen-VL reward models, saved as the originals publish theirs: names of older transformers, a head, adapters not merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import Tensor, nn

from mmrl.vlm.tiny import save
from mmrl.vlm.tiny_others import tiny_qwen2vl, tiny_qwen25vl

AXES = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
PIXELS = 56 * 84
QUESTION = "\nHow good is it? Prompt: {prompt}\nThe number: <|Reward|>\nEND\n"
AXES_QUESTION = (
    "\nHow sharp? <|VQ_reward|>\nEND\nHow smooth? <|MQ_reward|>\nEND\nIs it {text_prompt}? <|TA_reward|>\nEND\n"
)
PASS_QUESTIONS = ("\nWas it done: {prompt}? <|Reward|>\nEND\n", "\nDoes it look good ({prompt})? <|Reward|>\nEND\n")


class Tiny:
    """A tiny backbone of the real class with embeddings for the reward tokens, and its processor; `base` is its folder."""

    def __init__(self, kind: str, folder: Path, tokens: Sequence[str]) -> None:
        self.model, self.processor = (tiny_qwen2vl if kind == "qwen2_vl" else tiny_qwen25vl)(seed=3)
        self.base = str(folder / "base")
        self.processor.tokenizer.padding_side = "left"  # as for generating
        save(self.model, self.processor, self.base)  # other weights than the checkpoint's: they must not be read
        tokenizer = self.processor.tokenizer
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
        self.tokens = tokenizer.convert_tokens_to_ids(list(tokens))
        torch.manual_seed(4)
        self.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def hidden(self, text: str, pictures: Sequence[Image.Image] = (), video: Tensor | None = None,
               mrope: bool = False, model: Any = None) -> list[Tensor]:  # fmt: skip
        """Last hidden states at the reward tokens of one row without padding, by the path of the originals: embeddings alone, so
        that the positions are counted through. `mrope`: by `model(**inputs)`. Media are sized already."""
        found = self.model.model if model is None else model
        content: list[dict[str, Any]] = [{"type": "image"} for _ in pictures]
        content += [{"type": "video"}] if video is not None else []
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        written = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        media: dict[str, Any] = {"images": list(pictures)} if pictures else {}
        media |= {"videos": [video]} if video is not None else {}
        inputs = self.processor(text=[written], return_tensors="pt", images_kwargs={"do_resize": False},
                                videos_kwargs={"do_resize": False}, **media)  # fmt: skip
        ids = inputs["input_ids"]
        with torch.no_grad():
            if mrope:
                out = found(**inputs).last_hidden_state[0]
            else:
                embeds = found.get_input_embeddings()(ids)
                for name, token in (("image", "<|image_pad|>"), ("video", "<|video_pad|>")):
                    pixels = inputs.get("pixel_values" if name == "image" else "pixel_values_videos")
                    if pixels is not None:
                        seen = found.visual(pixels.to(found.dtype), grid_thw=inputs[f"{name}_grid_thw"]).pooler_output
                        where = ids == self.processor.tokenizer.convert_tokens_to_ids(token)
                        embeds[where] = seen
                out = found.language_model(inputs_embeds=embeds).last_hidden_state[0]
        at = [[k for k, one in enumerate(ids[0].tolist()) if one == token] for token in self.tokens]
        assert all(len(one) == 1 for one in at)
        return [out[one[0]].double() for one in at]


def two_layer(width: int) -> nn.Sequential:
    """The head of HPSv3 by the names of its file, with weights that matter."""
    head = nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)
    return head


def applied(head: nn.Sequential, hidden: Tensor) -> list[float]:
    """The two outputs, by loops over the layers' numbers in float64."""
    values = hidden.double().numpy()
    linears = [one for one in head if isinstance(one, nn.Linear)]
    for number, layer in enumerate(linears):
        weight, bias = (one.detach().double().numpy() for one in (layer.weight, layer.bias))
        values = np.array([sum(w * v for w, v in zip(row, values, strict=True)) + b
                           for row, b in zip(weight, bias, strict=True)])  # fmt: skip
        values = values if number == len(linears) - 1 else np.array([max(v, 0.0) for v in values])
    return values.tolist()


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names before transformers 4.52, by their beginnings."""
    found = {}
    for name, value in state.items():
        prefix = "base_model.model." if name.startswith("base_model.model.") else ""
        own = name.removeprefix(prefix)
        for new, old in (("model.visual.", "visual."), ("model.language_model.", "model.")):
            if own.startswith(new):
                own = old + own.removeprefix(new)
                break
        found[prefix + own] = value.detach().clone().contiguous()
    return found


def save_hpsv3(tiny: Tiny, folder: Path, head: nn.Module) -> dict[str, Tensor]:
    state = old_names(tiny.model.state_dict())
    state |= {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    save_file(state, folder / "HPSv3.safetensors")
    (folder / "rubric.txt").write_text(QUESTION)
    return state


def save_edit_reward(tiny: Tiny, folder: Path, heads: Sequence[nn.Module]) -> None:
    state = old_names(tiny.model.state_dict())
    for number, head in enumerate(heads):
        state |= {f"rm_heads.head_{number}.{name}": value for name, value in head.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    for name, text in zip(("following", "quality"), PASS_QUESTIONS, strict=True):
        (folder / f"rubric_{name}.txt").write_text(text)


def save_video_align(tiny: Tiny, folder: Path, head: Tensor, rank: int = 4, alpha: float = 12.0) -> Any:
    """With adapters by peft on every language linear; returns the adapted model, not merged."""
    import peft

    linears = [name for name, one in tiny.model.named_modules() if isinstance(one, nn.Linear)]
    targets = [name for name in linears if "visual" not in name and "lm_head" not in name]
    torch.manual_seed(5)
    adapted = peft.get_peft_model(
        tiny.model, peft.LoraConfig(r=rank, lora_alpha=int(alpha), target_modules=targets, init_lora_weights=False)
    ).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.3)
    state = old_names(adapted.state_dict())
    state["base_model.model.rm_head.weight"] = head
    (folder / "checkpoint-11352").mkdir()
    torch.save(state, folder / "checkpoint-11352" / "model.pth")
    write_config(folder, lora_alpha=alpha)
    (folder / "rubric.txt").write_text(AXES_QUESTION)
    return adapted.base_model.model.model


def write_config(folder: Path, lora_alpha: float = 12.0, **parts: Any) -> None:
    """`model_config.json` with the sections of the original."""
    data = {"fps": 2.0, "max_frame_pixels": PIXELS, "num_frames": None, "sample_type": "uniform",
            "prompt_template_type": "detailed_special"}  # fmt: skip
    config = {
        "data_config": data,
        "training_args": {},
        "model_config": {"use_special_tokens": True},
        "peft_lora_config": {"lora_enable": True, "lora_alpha": lora_alpha, "use_rslora": False},
        **parts,
    }
    (folder / "model_config.json").write_text(json.dumps(config))

"""Untrained FLUX.2 pipelines of the published classes: 32x32 pixels are 4 tokens. The encoders have as many (very narrow) layers as the
pipelines look into."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.generative.tiny_text import WORDS, word_tokenizer

WIDTH = 8
"""Of a text encoder; three of its layers side by side are the prompt."""
TEMPLATE = (
    "{% for message in messages %} <{{ message.role }}> {% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)
IMAGE = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
MORE = ("<system>", "<user>", "<assistant>", *IMAGE)
VOCABULARY = len(WORDS) + len(MORE)
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def tokenizer(side: str) -> Any:
    """Words, those outside the tiny captions being unknown; padded on `side`."""
    found = word_tokenizer()
    found.add_special_tokens({"additional_special_tokens": list(MORE)})
    found.padding_side, found.chat_template = side, TEMPLATE
    return found


def tiny_flux2(seed: int = 0) -> Any:
    """A Flux2Pipeline: a Mistral 3 of 30 layers, guidance told."""
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor, PixtralProcessor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = tokenizer("left")
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8,
                  "image_size": 28, "patch_size": 14}  # fmt: skip
        config = Mistral3Config(
            text_config={**TEXT, "model_type": "mistral", "num_hidden_layers": 30, "sliding_window": None},
            vision_config={**vision, "model_type": "pixtral"},
            image_token_index=words.convert_tokens_to_ids(IMAGE[0]),
        )
        parts = {"text_encoder": Mistral3ForConditionalGeneration(config).eval(), **_common(guidance=True)}
    processor = PixtralProcessor(PixtralImageProcessor(), words, patch_size=14, chat_template=TEMPLATE)
    return Flux2Pipeline(tokenizer=processor, **parts)


def tiny_klein(distilled: bool = False, seed: int = 0) -> Any:
    """A Flux2KleinPipeline: a Qwen3 of 27 layers."""
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Qwen3ForCausalLM(Qwen3Config(**TEXT, num_hidden_layers=27)).eval()
        parts = {"text_encoder": encoder, **_common(guidance=False)}
    return Flux2KleinPipeline(tokenizer=tokenizer("right"), is_distilled=distilled, **parts)


def _common(guidance: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    transformer: Any = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, timestep_guidance_channels=16, mlp_ratio=2.0, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )  # fmt: skip
    vae: Any = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=32
    )
    with torch.no_grad():
        vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
        vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return {
        "transformer": transformer.eval(),
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    }

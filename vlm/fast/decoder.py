"""The decoder layers of a model over packed tokens, without batch dimension and without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmrl.vlm.checkpointing import recomputed
from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.fast.ops import rms_norm, rotate, signed
from mmrl.vlm.fast.packing import Layout
from mmrl.vlm.fast.parts import Parts
from mmrl.vlm.fast.vision import Vision

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the prompts per layer, (B, K, P, d)."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (Q, H, d), k and v (T, K, d) -> (Q, H, d)."""


def positions(part: Parts, prompt: EncodedPrompt) -> tuple[Tensor, int]:
    """Multimodal positions of a prompt's tokens `(3, P)` int64 on the CPU, as the model itself counts them, and that of the
    next token."""
    if not prompt.media:
        return torch.arange(len(prompt)).expand(3, -1), len(prompt)
    grids = {key: value for key, value in prompt.media.items() if not key.startswith("pixel_values")}
    grids = {key: value.cpu() for key, value in grids.items()}
    ids, kinds = prompt.input_ids.cpu()[None], prompt.kinds.cpu()[None]
    found, _ = part.core.get_rope_index(ids, mm_token_type_ids=kinds, **grids)
    return found[:, 0], int(found.max()) + 1


def embed(
    part: Parts, ids: Tensor, prompts: Sequence[EncodedPrompt], visions: Sequence[Vision]
) -> tuple[Tensor, Tensor]:
    """Embeddings `(T, h)` of packed `ids (T,)`, which begin with those of `prompts`, their pictures put in place; and where in
    the packed row the vision tokens are."""
    x = part.decoder.embed_tokens(ids)
    where = torch.cat([prompt.kinds for prompt in prompts]).to(x.device).nonzero().squeeze(-1)
    if len(where):
        x = x.index_copy(0, where, torch.cat([vision.embeds for vision in visions]).to(x.dtype))
    return x, where


def rope(part: Parts, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines `(T, 1, d)` of multimodal positions `where (3, T)`."""
    cos, sin = part.decoder.rotary_emb(x, where[:, None])
    return cos[0, :, None], signed(sin)[0, :, None]


def run_layer(layer: Any, attend: Attend, x: Tensor, cos: Tensor, sin: Tensor, queries: Tensor | None = None) -> Tensor:
    """One decoder layer over packed tokens `x (T, h)`; with `queries` only for the tokens that it names, (Q, h)."""
    attention = layer.self_attn
    h = rms_norm(layer.input_layernorm, x)
    k = attention.k_proj(h)
    v = attention.v_proj(h)
    k, v = (y.view(len(y), -1, attention.head_dim) for y in (k, v))
    q_cos, q_sin = cos, sin
    if queries is not None:
        x, h, q_cos, q_sin = (y.index_select(0, queries) for y in (x, h, cos, sin))
    q = attention.q_proj(h)
    q = q.view(len(q), -1, attention.head_dim)
    if hasattr(attention, "q_norm"):
        q, k = rms_norm(attention.q_norm, q), rms_norm(attention.k_norm, k)
    # under autocast the tables are wider than the projections
    q, k = rotate(q, q_cos, q_sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
    x = x + attention.o_proj(attend(q, k, v).flatten(1))
    return x + layer.mlp(rms_norm(layer.post_attention_layernorm, x))


class Packed:
    """Attention over a packed row, layer by layer; keeps the prompts' keys and values when asked (for generation)."""

    def __init__(self, part: Parts, layout: Layout, cache: Cache | None = None) -> None:
        self.layout, self.cache = layout, cache
        self.scale = part.head_dim**-0.5

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, last: bool = False) -> Tensor:
        """With `last`, the prompts' queries are those of their last tokens only."""
        layout = self.layout
        tokens = layout.prefix_tokens
        kp, vp = layout.prefix(k[:tokens]), layout.prefix(v[:tokens])
        if self.cache is not None:
            self.cache.append((kp.transpose(1, 2).contiguous(), vp.transpose(1, 2).contiguous()))
        if last:
            tokens_q = layout.groups
            out = layout.last_attention(q[:tokens_q], kp, vp, self.scale)
        else:
            tokens_q = tokens
            out = layout.prefix_attention(layout.prefix(q[:tokens]), kp, vp, self.scale)
        if not layout.suffix_tokens:
            return out
        return torch.cat((out, layout.suffix_attention(q[tokens_q:], k[tokens:], v[tokens:], kp, vp, self.scale)))


def run(
    part: Parts, x: Tensor, where: Tensor, layout: Layout, visions: Sequence[Vision], vision_at: Tensor,
    cache: Cache | None = None,
) -> Tensor:  # fmt: skip
    """All layers and the last norm over a packed row `x (T, h)` with positions `where (3, T)`.

    Gives `(B + sum S, h)`: the last token of every prompt, then all answer tokens. With `cache`, the prompts' keys and values
    (B, K, P, d) of each layer are appended to it.
    """
    cos, sin = rope(part, x, where)
    attend = Packed(part, layout, cache)
    kept = torch.cat((layout.ends, torch.arange(layout.prefix_tokens, len(x), device=x.device)))
    layers = part.decoder.layers
    # what the other prompt tokens become in the last layer is read by nobody, unless vision features are added after it
    trimmed = part.deepstack < len(layers)
    for index, layer in enumerate(layers):
        last = trimmed and index == len(layers) - 1
        step = partial(run_layer, layer, partial(attend, last=last), queries=kept if last else None)
        again = layer.gradient_checkpointing and torch.is_grad_enabled()
        x = recomputed(step, x, cos, sin) if again else step(x, cos, sin)
        if index < part.deepstack and len(vision_at):
            x = x.index_add(0, vision_at, torch.cat([vision.deepstack[index] for vision in visions]).to(x.dtype))
    return rms_norm(part.decoder.norm, x if trimmed else x.index_select(0, kept))

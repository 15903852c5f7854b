"""The fast token engine: a prompt and its pictures are computed once for all of its answers, when sampling and when scoring,
with the same log-probs and gradients as one answer at a time."""

from __future__ import annotations

from typing import Any


def supports(model: Any) -> bool:
    """Whether the engine can run `model`: Qwen2-VL, Qwen2.5-VL or Qwen3-VL, also wrapped by peft."""
    from mmrl.vlm.fast.parts import unsupported

    return unsupported(model) is None

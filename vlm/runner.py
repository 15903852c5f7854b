"""The two ways to write and score answers, behind one face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from mmrl.errors import UserError
from mmrl.vlm import fast, generic
from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.fast.generate import Generated
from mmrl.vlm.fast.generate import generate as fast_generate
from mmrl.vlm.fast.score import Scored
from mmrl.vlm.fast.score import score as fast_score
from mmrl.vlm.fast.vision import encode_vision

Groups = Sequence[tuple[EncodedPrompt, Sequence[Tensor]]]


class Runner(Protocol):
    """Writes and scores answers; `visions` are what `encode_vision` gave for the prompts, or None."""

    name: str

    def encode_vision(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Any] | None:
        """Features of every prompt's pictures, detached; None where this way cannot reuse them."""
        ...

    def generate(
        self, model: Any, prompts: Sequence[EncodedPrompt], copies: Sequence[int], seeds: Sequence[int], **options: Any
    ) -> Generated: ...

    def score(self, model: Any, groups: Groups, **options: Any) -> Scored: ...

    def output_matrix(self, model: Any) -> Tensor | None:
        """What turns the hidden states of `score` into logits; None where they are logits."""
        ...


class Packed:
    """A prompt and its pictures are read once for all answers, in forward and backward (Qwen-VL models)."""

    name = "packed"

    def encode_vision(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Any] | None:
        return [vision.detach() for vision in encode_vision(model, prompts)]

    def generate(
        self, model: Any, prompts: Sequence[EncodedPrompt], copies: Sequence[int], seeds: Sequence[int], **options: Any
    ) -> Generated:
        return fast_generate(model, prompts, copies, seeds, **options)

    def score(self, model: Any, groups: Groups, **options: Any) -> Scored:
        return fast_score(model, groups, **options)

    def output_matrix(self, model: Any) -> Tensor | None:
        return model.get_output_embeddings().weight


class Padded:
    """The plain way, for any model."""

    name = "padded"

    def encode_vision(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Any] | None:
        return None

    def generate(
        self, model: Any, prompts: Sequence[EncodedPrompt], copies: Sequence[int], seeds: Sequence[int], **options: Any
    ) -> Generated:
        return generic.generate(model, prompts, copies, seeds, **options)

    def score(self, model: Any, groups: Groups, **options: Any) -> Scored:
        return generic.score(model, groups, **options)

    def output_matrix(self, model: Any) -> Tensor | None:
        return None


def choose_runner(model: Any, scoring: str) -> Runner:
    """Raises UserError for `packed` with a model that is not known to work so, and for encoder-decoder models."""
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{type(model).__name__} is an encoder-decoder model; expected one that writes after its prompt"
        )
    if scoring == "packed" and not fast.supports(model):
        raise UserError(
            f"scoring: packed works with Qwen2-VL, Qwen2.5-VL and Qwen3-VL, not with {type(model).__name__}; use padded or auto"
        )
    return Packed() if scoring != "padded" and fast.supports(model) else Padded()

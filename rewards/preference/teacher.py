"""Rewards that read the log-probs of a frozen vision-language model: VQAScore and PromptEcho."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from inspect import signature
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.rewards.preference.base import DTYPES, PictureModel, pretrained
from mmrl.rewards.preference.rubric import check_free

YES, NO = ("Yes", " Yes", "yes"), ("No", " No", "no")


class Teacher(PictureModel):
    """Base: any model of `AutoModelForImageTextToText` with its processor; deterministic, nothing is generated."""

    licence = "that of the checkpoint"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    batch_size: int = Field(default=4, ge=1)
    path: str = "Qwen/Qwen2.5-VL-3B-Instruct"

    _processor: Any = PrivateAttr(default=None)
    _special: list[str] = PrivateAttr(default_factory=list)

    def load(self) -> nn.Module:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = pretrained(AutoModelForImageTextToText, self.path, self.hub_revision, DTYPES[self.dtype])
        try:
            processor = AutoProcessor.from_pretrained(self.path, revision=self.hub_revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load the processor of '{self.path}': {str(error).splitlines()[0]}") from error
        processor.tokenizer.padding_side = "right"
        self._processor = processor
        added = processor.tokenizer.added_tokens_decoder.values()
        self._special = [token.content for token in added if token.special]
        return model

    @abstractmethod
    def rate(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Tensor: ...

    def logits(
        self, pictures: Sequence[np.ndarray], question: Sequence[str], answers: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher-forced answers: logits `(B, A, V)` float32 that predict them, their tokens `(B, A)` and a mask `(B, A)`.

        An empty answer has one position, that of the first token (token 0, mask False). Raises ValueError for a text that holds a special
        token (it could end the turn or stand for a picture), and where a tokenizer glues question and answer together, so that the
        answer's tokens cannot be told apart.
        """
        for text in (*question, *answers):
            check_free(text, self._special)
        texts, own = [], []
        for one, answer in zip(question, answers, strict=True):
            content = [{"type": "image"}, {"type": "text", "text": one}]
            head = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            texts.append(head + answer)
            own.append(self._processor.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else [])
        images = [[Image.fromarray(picture)] for picture in pictures]
        options: dict[str, Any] = {"return_mm_token_type_ids": True} if self._reads_types else {}
        inputs = self._processor(text=texts, images=images, padding=True, return_tensors="pt", **options)
        inputs = {name: value.to(self._device) for name, value in inputs.items()}
        ids, ends = inputs["input_ids"], inputs["attention_mask"].sum(1).tolist()
        longest = max(1, max(len(tokens) for tokens in own))
        tokens = torch.zeros(len(own), longest, dtype=torch.long, device=self._device)
        at = torch.zeros_like(tokens)
        for row, (answer_ids, end) in enumerate(zip(own, ends, strict=True)):
            number = len(answer_ids)
            if number and ids[row, end - number : end].tolist() != answer_ids:
                raise ValueError(f"the tokens of the answer {answers[row]!r} cannot be told from those of its question")
            tokens[row, :number] = torch.tensor(answer_ids, dtype=torch.long)
            at[row] = torch.arange(longest, device=self._device) + end - number - 1
        mask = torch.arange(longest, device=self._device) < torch.tensor(
            [len(one) for one in own], device=self._device
        ).unsqueeze(1)
        floating = {
            name: value.to(self._model.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }
        length = ids.shape[1]
        kept = length - int(at.min())  # logits from the first place that is read on; some models can only give all
        some = {"logits_to_keep": kept} if "logits_to_keep" in signature(self._model.forward).parameters else {}
        found = self._model(**floating, use_cache=False, **some).logits
        if found.shape[1] not in (length, kept):
            raise ValueError(
                f"the model gives {found.shape[1]} logits for {length} tokens, so the answer's cannot be told"
            )
        at = (at - length + found.shape[1]).clamp_max(found.shape[1] - 1)
        return found.gather(1, at[..., None].expand(-1, -1, found.shape[-1])).float(), tokens, mask

    @property
    def _reads_types(self) -> bool:
        return "mm_token_type_ids" in getattr(self._processor, "model_input_names", ())


class VqaScore(Teacher):
    """VQAScore: how likely a vision-language model answers "Yes" when asked whether the picture shows the prompt.

    `token_prob`: the probability of the surface forms of Yes as the first token; `yes_no`: that over yes and no; `sequence`: `exp(mean
    log-prob of the answer's tokens)`. Source: Lin et al. 2024 (arXiv 2404.01291).
    """

    range = (0.0, 1.0)
    mode: Literal["token_prob", "yes_no", "sequence"] = "token_prob"
    """`token_prob`: P(Yes) as the first token; `yes_no`: that over yes and no; `sequence`: exp of the answer's mean log-prob."""
    question: str = 'Does this figure show "{}"? Please answer yes or no.'
    """`{}` is the prompt."""

    def rate(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Tensor:
        asked = [self.question.replace("{}", prompt) for prompt in prompts]
        if self.mode == "sequence":
            logits, tokens, mask = self.logits(pictures, asked, ["Yes"] * len(asked))
            return mean_log_prob(logits, tokens, mask).exp()
        first = self.logits(pictures, asked, [""] * len(asked))[0][:, 0].log_softmax(-1)
        yes, no = (first[:, tokens].logsumexp(-1) for tokens in self._first_tokens())
        return yes.exp() if self.mode == "token_prob" else (yes - torch.logaddexp(yes, no)).exp()

    def _first_tokens(self) -> tuple[list[int], list[int]]:
        """First tokens of the surface forms of Yes and of No; one that begins both (a blank of its own) tells nothing and is left out."""
        encode = self._processor.tokenizer
        yes, no = ({encode(word, add_special_tokens=False)["input_ids"][0] for word in words} for words in (YES, NO))
        return sorted(yes - no), sorted(no - yes)


class PromptEcho(Teacher):
    """PromptEcho: mean log-prob of the prompt as a frozen vision-language model's description of the picture.

    Source: Jiang et al. 2026 (arXiv 2604.12652). Only the prompt's own tokens count, not those of the template. With `baseline` the same
    without the picture's content (a grey picture of its size) is subtracted, which takes away how likely the words are by themselves.
    """

    range = (None, None)
    query: str = "Describe this image in one sentence."
    """What the model is asked; the prompt is taken for its answer."""
    reduce: Literal["mean", "sum"] = "mean"
    """Over the prompt's tokens: mean or sum of the log-probs."""
    baseline: bool = False
    """Subtract what a grey picture of the same size scores."""

    def rate(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Tensor:
        found = self._echo(pictures, prompts)
        if self.baseline:
            found = found - self._echo([np.full_like(picture, 127) for picture in pictures], prompts)
        return found

    def _echo(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Tensor:
        if not all(prompts):
            raise ValueError("a prompt is empty, so there is nothing to echo")
        logits, tokens, mask = self.logits(pictures, [self.query] * len(prompts), prompts)
        return mean_log_prob(logits, tokens, mask) * (mask.sum(1) if self.reduce == "sum" else 1)


def mean_log_prob(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean log-prob `(B,)` of `tokens (B, A)` under `logits (B, A, V)`, over `mask (B, A)`."""
    log_prob = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    return log_prob.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)

"""One GRPO step the plain way: every answer's prompt and picture through the processor for itself, one padded batch,
`model.generate`, then one padded forward and backward over prompts and answers. The other side of `vlm_grpo_step.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrl.rollout import Prompt, Sample

CLIP = 0.2


def distinct(samples: Sequence[Sample]) -> list[float]:
    """The reward of this benchmark: the share of different characters in a text. Differs between any two random answers."""
    return [len(set(sample.text or "")) / max(len(sample.text or ""), 1) for sample in samples]


class NaiveLoop:
    """Full fine-tuning, one update per rollout, so the old log-probs are the new ones without gradient."""

    def __init__(
        self, model: Any, processor: Any, optimizer: torch.optim.Optimizer, group: int, tokens: int,
        time: Callable[[str], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self.model, self.processor, self.optimizer = model, processor, optimizer
        self.group, self.tokens, self.time = group, tokens, time
        self.parameters = list(model.parameters())

    def step(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Numbers of tokens per answer: of the prompt, and written."""
        rows = [prompt for prompt in prompts for _ in range(self.group)]
        with self.time("generation"):
            batch = self._read(rows)
            answers = self._generate(batch)
        texts = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        rewards = torch.tensor(distinct([Sample(p, text=t) for p, t in zip(rows, texts, strict=True)]))
        grouped = rewards.view(len(prompts), self.group)
        spread = grouped.std(1, keepdim=True)
        advantages = ((grouped - grouped.mean(1, keepdim=True)) / (spread + 1e-4)).view(-1, 1)
        with self.time("forward"):
            loss = self._loss(batch, answers, advantages)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        prompt_tokens = float(batch["attention_mask"].sum(1).float().mean())
        return {"prompt_tokens": prompt_tokens, "tokens": float(answers.shape[1])}

    def _read(self, rows: Sequence[Prompt]) -> dict[str, Tensor]:
        """All answers' prompts, padded on the left; pictures one behind the other."""
        parts = []
        for prompt in rows:
            content = [{"type": "image"}, {"type": "text", "text": prompt.text}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            image = Image.fromarray(prompt.media[0])
            parts.append(self.processor(text=[text], images=[image], return_tensors="pt"))
        fills = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
        width = max(part["input_ids"].shape[1] for part in parts)
        batch = {
            name: torch.cat([_left_padded(torch.as_tensor(part[name]), width, fill) for part in parts])
            for name, fill in fills.items()
        }
        return batch | {name: torch.cat([part[name] for part in parts]) for name in ("pixel_values", "image_grid_thw")}

    @torch.no_grad()
    def _generate(self, batch: dict[str, Tensor]) -> Tensor:
        """Answers (N, tokens): no end before the last token, and no placeholder of a picture."""
        config = self.model.config
        out = self.model.generate(
            **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=self.tokens,
            min_new_tokens=self.tokens, suppress_tokens=[config.image_token_id, config.video_token_id],
        )  # fmt: skip
        answers: Tensor = out[:, batch["input_ids"].shape[1] :]
        return answers

    def _loss(self, batch: dict[str, Tensor], answers: Tensor, advantages: Tensor) -> Tensor:
        more = {"input_ids": answers, "attention_mask": torch.ones_like(answers), "mm_token_type_ids": 0 * answers}
        whole = batch | {name: torch.cat((batch[name], value), 1) for name, value in more.items()}
        steps = answers.shape[1]
        logits = self.model(**whole, use_cache=False, logits_to_keep=steps + 1).logits[:, :-1]
        log_prob = logits.log_softmax(-1).gather(-1, answers[..., None]).squeeze(-1)
        ratio = torch.exp(log_prob - log_prob.detach())
        worse = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP))
        return worse.mean(1).mean()


def _left_padded(values: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (width - values.shape[1], 0), value=fill)

"""A policy that looks and writes: rollout, replay and sampling, common to all vision-language models.

Contract: log-probs are float32 and those of the rollout's temperature; a sample depends on its own seed and prompt alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, PrivateAttr, field_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmrl.components import Component
from mmrl.errors import UserError
from mmrl.media import is_image
from mmrl.policy import ModelName
from mmrl.rollout import Chunk, Draw, Prompt, Rollout, Sample, StepOutput
from mmrl.vlm import export
from mmrl.vlm.answers import Written, score, wider, write
from mmrl.vlm.checkpointing import set_checkpointing
from mmrl.vlm.consistency import MEASURES
from mmrl.vlm.distribution import kl_divergence
from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.engines import EngineChoice, Own
from mmrl.vlm.lengths import prompt_length
from mmrl.vlm.media import FrameRule, frame_indices
from mmrl.vlm.payload import Asked, Payload, Seen, by_view, groups_of, groups_of_prompts, whole_answers
from mmrl.vlm.plan import VlmPlan, VlmSampling
from mmrl.vlm.prompts import PLACEHOLDERS, PromptEncoder, PromptOptions, check_text
from mmrl.vlm.runner import Runner, choose_runner
from mmrl.vlm.train import PART, TARGETS, VlmTrainSpec, vision_parts
from mmrl.vlm.views import VIEWS, Views
from mmrl.weights import Weights

DType = Literal["float32", "bfloat16", "float16"]


class VlmPolicy(Component):
    """See `mmrl.policy.Policy`. The fields say which model and how it is asked; nothing is loaded before `load`. Subclasses
    say in `make_model` where model and processor come from."""

    plan_type: ClassVar[type[BaseModel]] = VlmPlan
    sampling_type: ClassVar[type[BaseModel]] = VlmSampling
    train_type: ClassVar[type[BaseModel]] = VlmTrainSpec
    exports: ClassVar[tuple[str, ...]] = ("transformers", "peft")
    flat_chunks: ClassVar[bool] = False
    """A row of a chunk is a sample with all its tokens."""
    blind_view: ClassVar[str | None] = "blank"

    dtype: DType = "bfloat16"
    system: str | None = None
    """System message, left out when there is none."""
    template: str = "{prompt}"
    """What the user says; `{prompt}` stands for the prompt's text."""
    chat: dict[str, Any] = Field(default_factory=dict)
    """Variables of the model's chat template, such as `enable_thinking`."""
    max_prompt_tokens: PositiveInt | None = None
    """Longer prompts (vision tokens included) are left out, never cut; default: no limit."""
    fps: PositiveFloat = 2.0
    """Frames per second that are seen of a video, between `min_frames` and `max_frames`."""
    min_frames: int = Field(default=4, ge=2)
    max_frames: int = Field(default=768, ge=2)
    views: Views = Views()
    """Options of the views that an objective may ask for."""
    scoring: Literal["auto", "packed", "padded"] = "auto"
    """`packed` reads a prompt once for all of its answers (Qwen2-VL, Qwen2.5-VL, Qwen3-VL); `padded` works with any model."""
    engine: EngineChoice = Own()
    """What writes the answers of rollouts; evaluation is always written by the policy's own model."""

    _model: Any = PrivateAttr(default=None)
    _encoder: PromptEncoder | None = PrivateAttr(default=None)
    _runner: Runner | None = PrivateAttr(default=None)
    _weights: Weights | None = PrivateAttr(default=None)

    @field_validator("template")
    @classmethod
    def _holds_the_prompt(cls, value: str) -> str:
        if value.count("{prompt}") != 1:
            raise ValueError(f"must hold {{prompt}} exactly once, got {value!r}")
        return value

    # -- before any weight is loaded

    makes: ClassVar[Literal["text"]] = "text"

    @property
    def offers(self) -> tuple[str, ...]:
        """Beyond the protocol: replays know the entropy, a draw may be made through its own view, what `measure` gives, and an
        engine's log-probs beside the policy's own."""
        return ("entropy", "branches", *MEASURES, *(("engine_log_prob",) if self.engine.separate else ()))

    @property
    def exact_log_probs(self) -> bool:
        """Writing and scoring add up in another order, which half precision shows; an engine has kernels of its own."""
        return self.dtype == "float32" and not self.engine.separate

    @property
    def replay_tolerance(self) -> float:
        """How far the ratio of an unchanged model may be from 1: every ratio in float32, their mean elsewhere."""
        return 1e-4 if self.exact_log_probs else 0.1 if self.engine.separate else 0.02

    def plan_steps(self, plan: Any) -> int:
        """S, the most tokens of an answer."""
        return int(plan.max_new_tokens)

    def stochastic_steps(self, plan: Any, allowed: Tensor) -> Tensor:
        """Every token is drawn, `(S,)` bool."""
        return allowed.bool().clone()

    def check_plan(self, plan: Any, objective: Any) -> None:
        """Raises ValueError when the terms of `objective` ask for a view or a KL norm that tokens do not have."""
        for view, _ in objective.needs:
            if view not in VIEWS:
                raise ValueError(f"a vision-language policy has no view '{view}'; it has: {', '.join(VIEWS)}")
        if any(getattr(term, "norm", "s2") in ("g2", "v") for term in objective.terms):
            raise ValueError(
                "the KL norms g2 and v are defined for denoising; for tokens leave norm out (s2 is the true KL)"
            )

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError for what no model could be asked: media and where the text says that they stand do not fit, or a video
        has too few frames. Files are not opened. The model's own `fits` knows more."""
        kinds = ["image" if is_image(item) else "video" for item in prompt.media]
        check_text(prompt.id, self.template.replace("{prompt}", prompt.text), kinds, PLACEHOLDERS)
        for item in prompt.media:
            if isinstance(item, np.ndarray) and not is_image(item):
                self.check_video(len(item))

    def check_video(self, frames: int) -> None:
        """Raises ValueError for a video of so many frames that none can be looked at."""
        frame_indices(frames, 1.0, self.frame_rule)

    def check_train(self, train: Any) -> None:
        """Raises ValueError when no model can be trained so."""
        if self.dtype == "float16":
            raise ValueError("policy.dtype float16 cannot be trained (no loss scaling); use bfloat16 or float32")

    def trains(self, train: Any) -> str:
        """What a stage trains, in words."""
        frozen = [name for name, on in (("vision tower", train.freeze_vision), ("merger", train.freeze_merger)) if on]
        without = f", without the {' and the '.join(frozen)}" if frozen else ""
        if train.mode == "lora":
            whose = "the language model's " if train.targets == TARGETS else ""
            return f"a LoRA of rank {train.rank} (alpha {train.alpha}) on {whose}{', '.join(train.targets)}{without}"
        return (f"{', '.join(train.parameters)}" if train.parameters else "all weights") + without

    def passes(self, plan: Any, steps: Tensor, trained: int, group: int, replays: float) -> dict[str, float]:
        """Network passes per answer: one per token to write it, one per replay for all of its tokens."""
        return {"rollout": float(plan.max_new_tokens), "update": float(replays)}

    # -- the loaded model

    @abstractmethod
    def make_model(self, device: torch.device) -> tuple[Any, Any]:
        """Model and processor of these options, on `device`."""

    @property
    def frame_rule(self) -> FrameRule:
        """What is seen of a video."""
        return FrameRule(self.fps, self.min_frames, self.max_frames)

    def load(self, device: str | torch.device) -> None:
        """Load (or make) the model. Raises UserError when it cannot be loaded."""
        model, processor = self.make_model(torch.device(device))
        self._model = model.eval().requires_grad_(False)
        options = PromptOptions(self.system, self.template, self.chat, self.frame_rule, self.views)
        self._encoder = PromptEncoder(processor, options)
        self._runner = choose_runner(self._model, self.scoring)
        self._weights = Weights({PART: self._model})

    def check_loaded(self, train: Any | None, plan: Any | None) -> None:
        """Raises UserError when the patterns or LoRA targets of `train`, or the length of `plan`, do not fit the model."""
        if train is not None and plan is not None:
            self.engine.check()
        if train is not None:
            chosen = self.weights.select(train.choice(self.model))
            head = self.model.get_output_embeddings()
            layers = [name.removeprefix(f"{PART}.") for name in chosen]
            if train.mode == "lora" and any(self.model.get_submodule(name) is head for name in layers):
                raise UserError("train.targets: a LoRA on the output layer is not supported; leave out lm_head")
            if not chosen:
                raise UserError("train: freeze_vision, freeze_merger and parameters together leave nothing to train")
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if plan is not None and most is not None and plan.max_new_tokens >= most:
            raise UserError(
                f"max_new_tokens {plan.max_new_tokens} leaves no room for a prompt: this model reads {most} tokens"
            )

    @property
    def model(self) -> Any:
        return _loaded(self._model)

    @property
    def encoder(self) -> PromptEncoder:
        return _loaded(self._encoder)

    @property
    def runner(self) -> Runner:
        return _loaded(self._runner)

    @property
    def weights(self) -> Weights:
        return _loaded(self._weights)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        own = self.model.generation_config.eos_token_id
        listed = own if isinstance(own, list | tuple) else [own]
        return tuple(sorted({int(i) for i in (*listed, self.encoder.tokenizer.eos_token_id) if i is not None}))

    @property
    def vision_is_frozen(self) -> bool:
        """Nothing between pixels and the language model is trained, so features of pictures can be kept."""
        towers, mergers = vision_parts(self.model)
        parts = [self.model.get_submodule(name) for name in (*towers, *mergers)]
        return bool(parts) and not any(p.requires_grad for part in parts for p in part.parameters())

    def fits(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, int]]:
        """The prompts of at most `max_prompt_tokens`, and the lengths of the others by id. Raises UserError for a text that says
        otherwise where its media stand than the model can be told."""
        for prompt in (
            prompt for prompt in prompts if type(prompt) is Prompt
        ):  # others are made when they are looked at
            self.encoder.check(prompt)
        if self.max_prompt_tokens is None:
            return list(prompts), {}
        lengths = {prompt.id: prompt_length(self.encoder, prompt) for prompt in prompts}
        kept = [prompt for prompt in prompts if lengths[prompt.id] <= self.max_prompt_tokens]
        return kept, {id: length for id, length in lengths.items() if length > self.max_prompt_tokens}

    # -- writing

    @torch.no_grad()
    def rollout(self, draws: Sequence[Draw], plan: Any, steps: Tensor) -> Rollout:
        """One answer per draw. Arrays are as wide as the longest answer; `mask` marks its tokens, the end included."""
        groups = groups_of(draws)
        prompts = [draws[group[0]].prompt for group in groups]
        payload = Payload(
            prompts=prompts,
            seeds=[draws[group[0]].group_seed for group in groups],
            prompt_of=torch.tensor([number for number, group in enumerate(groups) for _ in group]),
            answers=[],
            temperature=plan.temperature,
        )
        asked = [Asked(rows, self._seen(payload, view), number)
                 for number, group in enumerate(groups) for view, rows in by_view(draws, group)]  # fmt: skip
        written = self.engine.write(self, draws, asked, plan)
        payload.answers = written.tokens
        mask = pad_sequence([torch.ones(len(own), dtype=torch.bool) for own in written.log_probs], batch_first=True)
        log_prob = pad_sequence(written.log_probs, batch_first=True)
        return Rollout(
            draws=draws,
            samples=self._samples(draws, written),
            group=torch.tensor([draw.group for draw in draws]),
            log_prob=log_prob,
            mask=mask,
            payload=payload,
            engine_log_prob=log_prob.clone() if self.engine.separate else None,
            stats={
                "tokens": float(mask.sum(1).float().mean()),
                "finished": float(written.finished.float().mean()),
                "prompt_tokens": sum(len(one.prompt) * len(one.rows) for one in asked) / len(draws),
            },
        )

    @torch.no_grad()
    def generate(self, draws: Sequence[Draw], plan: Any, view: str = "original") -> list[Sample]:
        """Answers, each drawn from its own `draw.seed` (or the likeliest, at temperature 0), the media seen through `view`;
        `plan` is a `sampling_type`. Raises UserError for an unknown view."""
        _check_view(view)
        groups = groups_of(draws)
        first = [draws[group[0]] for group in groups]
        seen = Seen([self._encode(draw.prompt, view, draw.group_seed) for draw in first])
        asked = [Asked(group, seen, number) for number, group in enumerate(groups)]
        return self._samples(draws, self.write(draws, asked, plan))

    def publish(self, version: str, writes: bool) -> None:
        """See `mmrl.policy.Policy`."""
        self.engine.publish(self, version, writes)

    def write(self, draws: Sequence[Draw], asked: Sequence[Asked], plan: Any) -> Written:
        """Answers of the policy's own model to every prompt of `asked`, which covers `draws` in order."""
        with self._autocast():
            return write(self.runner, self.model, draws, asked, plan, self.eos_ids, self._pad_id)

    @property
    def _pad_id(self) -> int:
        pad = self.encoder.tokenizer.pad_token_id
        return self.eos_ids[0] if pad is None else int(pad)

    def _samples(self, draws: Sequence[Draw], written: Written) -> list[Sample]:
        return [
            Sample(
                draw.prompt,
                text=self.encoder.decode(answer),
                meta={"seed": draw.seed, "tokens": len(answer), "finished": bool(end)},
            )
            for draw, answer, end in zip(draws, written.tokens, written.finished, strict=True)
        ]

    # -- scoring

    def chunks(self, rollout: Rollout, train: Tensor, micro_batch: int) -> Iterator[Chunk]:
        """Samples that train something, at most `micro_batch` at a time, with all tokens up to the last trained one."""
        return whole_answers(train.cpu(), micro_batch)

    def has_view(self, rollout: Rollout, chunk: Chunk, view: str) -> Tensor:
        """Rows `(n,)` bool whose prompt looks different through `view`; prompts without media have no view but the original."""
        payload: Payload = rollout.payload
        looks = torch.tensor([bool(prompt.media) for prompt in self._seen(payload, "original").encoded])
        return looks[payload.prompt_of[chunk.rows]] | (view == "original")

    def replay(self, rollout: Rollout, chunk: Chunk, view: str = "original", model: ModelName = "policy") -> StepOutput:
        """Log-probs and entropies `(n, s)` of the stored tokens, 0 after an answer's end; `dist` holds the distributions.

        The reference and the slow copy ("ema") run without gradient. A prompt without media looks the same through every
        view (see `has_view`). Raises UserError for an unknown view.
        """
        _check_view(view)
        if model == "ema":
            with torch.no_grad(), self.weights.as_slow() as modules:
                return self._score(modules[PART], rollout.payload, chunk, view)
        if model == "reference":
            self._seen(rollout.payload, view)  # made by the policy: inside, a LoRA on the tower is off and looks frozen
            with torch.no_grad(), self.weights.as_reference() as modules:
                return self._score(modules[PART], rollout.payload, chunk, view)
        return self._score(self.model, rollout.payload, chunk, view)

    def measure(self, name: str, rollout: Rollout, micro_batch: int) -> Tensor:
        """A number of each sample `(n,)`, NaN where there is none; see `mmrl.vlm.consistency`."""
        return MEASURES[name](self, rollout, micro_batch)

    def divergence(self, p: StepOutput, q: StepOutput, norm: str = "full") -> Tensor:
        """KL(p || q) over the whole vocabulary, `(n, s)` with gradient through both, 0 after an answer's end."""
        if norm not in ("full", "s2"):
            raise UserError(f"unknown KL norm '{norm}' for a vision-language policy; it has: full (s2 means the same)")
        found = pad_sequence(kl_divergence(p.dist, q.dist), batch_first=True)
        return wider(found, p.log_prob.shape[1])

    def _score(self, model: Any, payload: Payload, chunk: Chunk, view: str) -> StepOutput:
        seen = self._seen(payload, view)
        with self._autocast():
            return score(self.runner, model, payload, seen, chunk)

    def _seen(self, payload: Payload, view: str) -> Seen:
        """The prompts of a rollout through `view`, made once; features of their pictures too where vision is frozen."""
        if view not in payload.seen:
            encoded = [self._encode(p, view, seed) for p, seed in zip(payload.prompts, payload.seeds, strict=True)]
            features = self._features(encoded)
            if features is not None:
                encoded = [one.without_pixels() for one in encoded]
            payload.seen[view] = Seen(encoded, features)
        return payload.seen[view]

    @torch.no_grad()
    def _features(self, encoded: Sequence[EncodedPrompt]) -> list[Any] | None:
        if not self.vision_is_frozen:
            return None
        with self._autocast():
            return self.runner.encode_vision(self.model, encoded)

    def _encode(self, prompt: Prompt, view: str = "original", seed: int = 0) -> EncodedPrompt:
        """The tokens on the device; pixels stay on the CPU until the model looks at them."""
        found = self.encoder.encode(prompt, view, seed)
        return replace(found, input_ids=found.input_ids.to(self.device), kinds=found.kinds.to(self.device))

    def _autocast(self) -> AbstractContextManager[Any]:
        """Weights that are trained in full are float32; the forward pass stays in the model's own dtype."""
        if self.weights.choice is None or self.weights.is_lora or self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.dtype))

    def given(self, samples: Sequence[Sample]) -> Rollout:
        """Texts as if they had been drawn at temperature 1, neighbours with one prompt as a group. Raises UserError for a
        sample without text."""
        numbers = groups_of_prompts([sample.prompt for sample in samples])
        first = [samples[numbers.index(number)].prompt for number in range(numbers[-1] + 1)]
        answers = [self._answer(sample) for sample in samples]
        for prompt in first if self.max_prompt_tokens is not None else ():
            self._check_length(prompt, len(self.encoder.encode(prompt)))
        draws = [
            Draw(sample.prompt, number, row, 0, 0)
            for row, (sample, number) in enumerate(zip(samples, numbers, strict=True))
        ]
        payload = Payload(first, [0] * len(first), torch.tensor(numbers), answers, 1.0)
        mask = pad_sequence([torch.ones(len(answer), dtype=torch.bool) for answer in answers], batch_first=True)
        return Rollout(draws, list(samples), torch.tensor(numbers), torch.zeros(mask.shape), mask, payload)

    def _check_length(self, prompt: Prompt, tokens: int) -> None:
        """Raises UserError for the prompt of an example that is longer than allowed: a stream of examples leaves none out."""
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise UserError(
                f"example '{prompt.id}' has a prompt of {tokens} tokens, more than max_prompt_tokens "
                f"{self.max_prompt_tokens}; leave it out of the data or raise the limit"
            )

    def _answer(self, sample: Sample) -> Tensor:
        """The tokens of a text, its end included. Raises UserError for a sample without text."""
        if not sample.text:
            raise UserError(
                f"example '{sample.prompt.id}' has no text: a vision-language model learns to write an answer"
            )
        return self.encoder.answer(sample.text, int(self.encoder.tokenizer.eos_token_id))

    def supervised_loss(self, examples: Sequence[Sample], seeds: Sequence[int]) -> Tensor:
        """Mean cross entropy `(B,)` of the tokens of each example's `text` (what should have been answered), its end
        included, given its prompt; with gradient. Raises UserError for an example without text."""
        groups = []
        for example in examples:
            answer = self._answer(example)
            prompt = self._encode(example.prompt)
            self._check_length(example.prompt, len(prompt))
            groups.append((prompt, [answer.to(self.device)]))
        visions = self._features([prompt for prompt, _ in groups])
        with self._autocast():
            scored = self.runner.score(self.model, groups, temperature=1.0, visions=visions)
        return torch.stack([-log_prob.mean() for log_prob in scored.log_prob])

    # -- stages, checkpoints, files

    def prepare(self, train: Any, reference: bool) -> None:
        """Start a stage. An earlier LoRA is merged; what later stages do not train keeps its last values."""
        self.weights.prepare(train.choice(self.model), reference)
        set_checkpointing(self.model, train.gradient_checkpointing)

    def keep_slow(self) -> None:
        self.weights.keep_slow()

    def follow(self, decay: float) -> None:
        self.weights.follow(decay)

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.weights.trainable()

    def frozen_state(self) -> Mapping[str, Tensor]:
        return self.weights.frozen_state()

    def load_frozen_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.weights.load_frozen_state(tensors)

    def save(self, folder: Path) -> None:
        """Write a plain transformers folder with its processor, a LoRA merged into it, in the dtype of the policy."""
        export.save(self, Path(folder))

    def export(self, folder: Path, to: str, plan: Any = None) -> Path:
        """`transformers`: the whole model; `peft`: the LoRA alone. A README.md says how to call it."""
        if to not in self.exports:
            raise UserError(f"cannot export to '{to}'; valid: {', '.join(self.exports)}")
        return export.write(self, Path(folder), to, plan or self.sampling_type())


def _check_view(view: str) -> None:
    if view not in VIEWS:
        raise UserError(f"a vision-language policy has no view '{view}'; it has: {', '.join(VIEWS)}")


def _loaded(value: Any) -> Any:
    if value is None:
        raise RuntimeError("the policy has no weights yet: load(device) comes first")
    return value

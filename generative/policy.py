"""A denoising policy: rollout, replay and sampling, common to flows and diffusions.

Contract: latents, sigmas and log-probs are float32; only the network may run lower. The rollout stores x_k and x_{k+1} of
the trained steps, and the replay scores them with the same transition function, so that unchanged weights give ratio 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, PrivateAttr
from torch import Tensor, nn

from mmrl import lora
from mmrl.components import Component
from mmrl.errors import UserError
from mmrl.generative import export
from mmrl.generative.conditioning import Ask, Conditioning, ConditioningCache, Picture, Tensors
from mmrl.generative.denoise import grow, solve
from mmrl.generative.families.base import Adapter
from mmrl.generative.forest import counts, forced, forest, shortens
from mmrl.generative.forward.direct import drawn_with_gradient
from mmrl.generative.noise import Noise
from mmrl.generative.payload import Payload, pairs_in_order
from mmrl.generative.plan import DenoisingPlan, Sampling
from mmrl.generative.train import TrainSpec
from mmrl.generative.transition import Transition, kl_divergence
from mmrl.policy import ModelName
from mmrl.rollout import Chunk, Draw, Prompt, Rollout, Sample, StepOutput, Tree
from mmrl.weights import Weights

VIEWS = ("original", "blank")


class DenoisingPolicy(Component):
    """See `mmrl.policy.Policy`. The fields say which model; nothing is loaded before `load`. Subclasses say what a step is
    (`schedule`, `transition`), how to supervise it, and in `make_adapter` where the model comes from."""

    plan_type: ClassVar[type[BaseModel]] = DenoisingPlan
    adapter_type: ClassVar[type[Adapter]]
    sampling_type: ClassVar[type[BaseModel]] = Sampling
    train_type: ClassVar[type[BaseModel]] = TrainSpec
    exports: ClassVar[tuple[str, ...]] = ("diffusers", "peft")
    flat_chunks: ClassVar[bool] = True
    """A row of a chunk is one (sample, step) pair."""
    blind_view: ClassVar[str | None] = None
    offers: ClassVar[tuple[str, ...]] = ("tree",)

    _adapter: Adapter | None = PrivateAttr(default=None)
    _weights: Weights | None = PrivateAttr(default=None)
    _cache: ConditioningCache | None = PrivateAttr(default=None)
    _spec: TrainSpec = PrivateAttr(default_factory=TrainSpec)
    """The `train:` block of the stage, which supervised losses look at."""

    # -- before any weight is loaded

    def plan_steps(self, plan: Any) -> int:
        """S, the number of denoising steps."""
        return int(plan.num_steps)

    def stochastic_steps(self, plan: Any, allowed: Tensor) -> Tensor:
        """Steps `(S,)` bool that may have a log-prob when those of `allowed (S,)` bool are trained. (Whether DDIM's last
        step has one depends on the loaded scheduler; here it is taken to.)"""
        if plan.sampler.kind == "ode" or plan.sampler.level == 0:
            return torch.zeros(len(allowed), dtype=torch.bool)
        random = (forced(plan) if plan.fan_out is not None else allowed.bool() | forced(plan)) & counts(plan)
        if plan.sampler.kind == "cps":
            random[-1] = False
        return random

    def forced_steps(self, plan: Any) -> Tensor:
        """Steps `(S,)` bool that are trained whatever the step selector says: those that the plan itself names."""
        return forced(plan)

    def check_plan(self, plan: Any, objective: Any) -> None:
        """Raises ValueError with the valid settings when `plan` cannot feed `objective`: no log-prob, no such view."""
        if objective.needs_log_prob:
            plan.check_likelihood()
        if objective.reads_tree and plan.branch is None:
            raise ValueError("this objective reads a tree; add branch: {at: [steps], factor: children}")
        if plan.branch is not None and not objective.reads_tree:
            raise ValueError("the samples of a branching rollout share edges; use objective.advantage {name: branch}")
        if plan.flash is not None and not any(
            shortens(plan, objective.plan_steps(plan.num_steps, k, k)) for k in range(20)
        ):
            raise ValueError(
                "flash shortens the steps after those that are trained, and objective.steps.select leaves none or too few that "
                "could be fewer; use {name: window}, or a smaller flash.ratio"
            )
        self._check_tree(plan, objective)
        for view, _ in objective.needs:
            if view not in VIEWS:
                raise ValueError(f"a denoising policy has no view '{view}'; it has: {', '.join(VIEWS)}")
        if objective.surrogate.reads_transition and plan.sampler.kind == "cps":
            raise ValueError(
                "the log-prob of sampler 'cps' is not that of a Gaussian, which this surrogate reads; use flow_sde or dance_sde"
            )
        if plan.sampler.kind == "ddim" and any(getattr(t, "norm", None) == "g2" for t in objective.terms):
            raise ValueError("the KL norm 'g2' is defined for flow samplers, not for 'ddim'; use 's2' or 'v'")

    def _check_tree(self, plan: Any, objective: Any) -> None:
        if plan.fan_out is not None and objective.selection_size is not None:
            raise ValueError(
                "fan_out compares the samples of one step with each other, and objective.selection takes the extremes of the whole "
                "group; use selection: {name: all}"
            )
        first = objective.select.first_dropped
        if plan.branch is not None and first is not None and first <= plan.branch.at[-1] + 1:
            raise ValueError(
                f"objective.steps.select drops depths down to {first}, but edges of a split are always trained, and the last split "
                f"leads to depth {plan.branch.at[-1] + 1}; use stop and drop from {plan.branch.at[-1] + 2} on"
            )

    def check_train(self, train: Any) -> None:
        """Raises ValueError, naming what is valid, when no model of this kind can be trained as `train` says."""
        self.adapter_type.check_parts(train.parts or ())
        if getattr(self, "dtype", None) == "float16":
            raise ValueError("policy.dtype float16 cannot be trained (no loss scaling); use bfloat16 or float32")

    def trains(self, train: Any) -> str:
        """What a stage trains, in words."""
        if train.mode == "lora":
            return f"a LoRA of rank {train.rank} (alpha {train.alpha}) on the denoising network"
        parts = " and ".join(train.parts or ("the denoising network",))
        return f"{parts}, {', '.join(train.parameters)}" if train.parameters else f"{parts}, all weights"

    def trained_pairs(self, plan: Any, steps: Tensor, trained: int, group: int) -> int:
        """(sample, step) pairs that a group trains, a shared step once, where a sample has `trained` of them."""
        if plan.branch is None and plan.fan_out is None:
            return trained * group
        trees = forest(plan, _members(group), steps)
        return trees.edges(trees.trained & self.stochastic_steps(plan, steps))

    def passes(self, plan: Any, steps: Tensor, trained: int, group: int, replays: float) -> dict[str, float]:
        """Network passes per image; one with guidance counts as two."""
        share = self.passes_per_step(plan) / group
        pairs = self.trained_pairs(plan, steps, trained, group)
        return {"rollout": forest(plan, _members(group), steps).calls() * share, "update": pairs * replays * share}

    # -- the loaded model

    def load(self, device: str | torch.device) -> None:
        """Load (or make) the model. Raises UserError when it cannot be loaded."""
        self._adapter = self.make_adapter(torch.device(device))
        self._weights = Weights(self._adapter.modules)
        folder = getattr(self, "prompt_cache", None)
        self._cache = ConditioningCache(
            self._adapter.encode,
            folder=None if folder is None else Path(folder),
            identity="" if folder is None else self.model_dump_json(exclude={"prompt_cache", "vae_tiling"}),
        )

    def check_loaded(self, train: Any | None, plan: Any | None) -> None:
        """Raises UserError when the parts, patterns or LoRA targets of `train`, or the size, steps or scheduler that `plan`
        (a rollout or a sampling) needs, do not fit the loaded model. Changes nothing."""
        if train is not None:
            self.weights.select(train.choice(self.adapter))
        if plan is not None:
            self.adapter.size(plan)
            self.adapter.facts(plan, 1)
            try:
                self.schedule(plan)
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"num_steps {plan.num_steps} does not fit this model's scheduler: {error}") from error

    def fits(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, int]]:
        """Every prompt: text encoders shorten what is too long for them."""
        return list(prompts), {}

    @property
    def adapter(self) -> Adapter:
        return _loaded(self._adapter)

    @property
    def weights(self) -> Weights:
        return _loaded(self._weights)

    @property
    def cache(self) -> ConditioningCache:
        return _loaded(self._cache)

    @property
    def device(self) -> torch.device:
        return self.adapter.device

    @property
    def media_role(self) -> str | None:
        """What the media of a prompt are to the model: None (it takes none), "first_frame" or "edit"."""
        return self.adapter_type.media_role

    @property
    def makes(self) -> Literal["image", "video"]:
        """What its samples are."""
        return self.adapter_type.makes

    def guides(self, plan: Any) -> bool:
        """Whether a prediction takes a second pass, with the negative prompt."""
        return plan.guidance_scale > 1 and not self.adapter_type.distilled

    def passes_per_step(self, plan: Any) -> int:
        """Network passes of one prediction: 2 with guidance, else 1."""
        return 2 if self.guides(plan) else 1

    # -- what a family of models fills in

    @abstractmethod
    def make_adapter(self, device: torch.device) -> Adapter:
        """Load the model of these options."""

    @abstractmethod
    def schedule(self, plan: Any) -> Any:
        """The noise schedule of a plan, with `timesteps (S,)` float32."""

    @abstractmethod
    def transition(
        self,
        output: Tensor,
        x: Tensor,
        schedule: Any,
        steps: Tensor,
        plan: Any,
        *,
        stochastic: bool,
        noise: Tensor | None = None,
        x_next: Tensor | None = None,
    ) -> Transition:
        """Rows `x (n, ...)` at `steps (n,)` int64, given the guided network output; an ODE step unless `stochastic`."""

    @abstractmethod
    def clean_at(self, output: Tensor, x: Tensor, schedule: Any, step: int) -> Tensor:
        """The clean latents `(n, ...)` that network outputs at `step` of the schedule mean."""

    def clean(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """As `clean_at`, at any noise level `sigma (n,)` of a flow."""
        raise NotImplementedError

    @abstractmethod
    def supervised_loss(self, examples: Sequence[Sample], seeds: Sequence[int]) -> Tensor:
        """Per-example loss `(B,)` with gradient; example i draws caption dropout, level and noise from `seeds[i]`."""

    # -- sampling

    @torch.no_grad()
    def rollout(self, draws: Sequence[Draw], plan: Any, steps: Tensor, keep_means: bool = False) -> Rollout:
        """One image per draw; `steps (S,)` bool are the steps that this iteration may train. `keep_means`: keep the means of the
        trained steps as well (losses that compare them).

        `mask` marks the steps that were drawn from a density *and* kept for replay; `log_prob` is 0 elsewhere.
        """
        if len(steps) != plan.num_steps:
            raise UserError(f"steps has {len(steps)} entries, but the plan has num_steps {plan.num_steps}")
        steps = steps.cpu().bool()
        schedule, asks = self.schedule(plan), [self.ask(draw.prompt, plan) for draw in draws]
        conditioning = self.conditioned(self.needed(asks, plan))
        grown = grow(self, draws, asks, conditioning, plan, schedule, steps, means=keep_means)
        trees = grown.forest
        payload = Payload(
            plan=plan,
            schedule=schedule,
            asks=asks,
            latents=grown.latents,
            at=grown.at,
            final=grown.final,
            conditioning=None if self._trains_encoders else conditioning,
            means=grown.means,
        )
        return Rollout(
            draws=draws,
            samples=self._samples(draws, grown.final, plan),
            group=torch.tensor([draw.group for draw in draws]),
            log_prob=grown.log_prob,
            mask=grown.random,
            step_std=grown.std,
            part=trees.part,
            tree=Tree(trees.path) if plan.branch is not None else None,
            payload=payload,
            stats={"nfe": grown.forwards / len(draws)},
        )

    @torch.no_grad()
    def generate(self, draws: Sequence[Draw], plan: Any, view: str = "original") -> list[Sample]:
        """Images by the ODE, each from the noise of its own `draw.seed`; `plan` is a `sampling_type`."""
        _check_view(view)
        schedule, asks = self.schedule(plan), [self.ask(draw.prompt, plan, view) for draw in draws]
        conditioning = self.conditioned(self.needed(asks, plan))
        samples: list[Sample] = []
        for at in range(0, len(draws), plan.micro_batch):
            some = draws[at : at + plan.micro_batch]
            final = solve(self, some, asks[at : at + plan.micro_batch], conditioning, plan, schedule)
            samples += self._samples(some, final, plan)
        return samples

    def check_gradient(self, plan: Any, last: int) -> None:
        """Raises ValueError when no gradient goes from a picture into the last steps that draw it under `plan`."""
        if self.adapter_type.makes != "image":
            raise ValueError("rewards with a gradient score pictures, and this model draws videos")
        if plan.solver != "euler":
            raise ValueError(f"a direct stage takes Euler steps; leave sampling.solver {plan.solver} out")
        if last > plan.num_steps:
            raise ValueError(
                f"the last {last} steps of {plan.num_steps} (sampling.num_steps): set last to {plan.num_steps} or less"
            )

    def drawn_with_gradient(
        self, draws: Sequence[Draw], plan: Any, method: str, last: int, at: int, penalty: bool
    ) -> tuple[Tensor, Tensor]:
        """Pictures with a gradient; see `mmrl.generative.forward.direct`."""
        return drawn_with_gradient(self, draws, plan, method, last, at, penalty)

    def _samples(self, draws: Sequence[Draw], final: Tensor, plan: Any) -> list[Sample]:
        size = plan.decode_batch or plan.micro_batch
        made = [one for part in final.split(size) for one in self.adapter.decode(part)]
        if self.adapter.makes == "image":
            return [Sample(d.prompt, images=(one,), meta={"seed": d.seed}) for d, one in zip(draws, made, strict=True)]
        fps = plan.fps or self.adapter.default_fps
        return [
            Sample(d.prompt, video=one, meta={"seed": d.seed, "fps": fps}) for d, one in zip(draws, made, strict=True)
        ]

    # -- scoring

    def chunks(self, rollout: Rollout, train: Tensor, micro_batch: int) -> Iterator[Chunk]:
        """(row, step) pairs ordered by step, at most `micro_batch` at a time; a chunk may span steps. Raises UserError
        for a step that was not kept."""
        missing = train.cpu() & ~rollout.payload.kept()
        if bool(missing.any()):
            step = int(missing.any(0).nonzero()[0])
            raise UserError(f"step {step} is to be trained, but the rollout did not keep it (see `steps` of rollout)")
        return pairs_in_order(train, micro_batch)

    def replay(self, rollout: Rollout, chunk: Chunk, view: str = "original", model: ModelName = "policy") -> StepOutput:
        """Log-probs `(n, 1)` of the stored steps; `dist` is the Transition. The reference and the slow copy ("ema") run
        without gradient.

        Views: "original", "blank" (the empty caption). Raises UserError for another.
        """
        _check_view(view)
        if model == "reference":
            with torch.no_grad(), self.weights.as_reference() as modules, self.adapter.using(modules):
                return self._score(rollout.payload, chunk, view, reference=True)
        if model == "ema":
            with torch.no_grad(), self.weights.as_slow():
                return self._score(rollout.payload, chunk, view, reference=False)
        return self._score(rollout.payload, chunk, view, reference=False)

    def divergence(self, p: StepOutput, q: StepOutput, norm: str) -> Tensor:
        """Exact KL of two replays of one chunk, `(n, 1)`; `norm` is s2 (exact), g2 (times D) or v (velocities)."""
        if norm not in ("s2", "g2", "v"):
            raise UserError(f"unknown KL norm '{norm}' for a denoising policy; it has: s2, g2, v")
        chosen: Any = norm
        try:
            return kl_divergence(p.dist, q.dist, chosen)[:, None]
        except ValueError as error:
            raise UserError(str(error)) from None

    def _score(self, payload: Payload, chunk: Chunk, view: str, reference: bool) -> StepOutput:
        steps = chunk.steps[:, 0].cpu()
        x, x_next = payload.pair(chunk.rows, steps)
        cond = self._told(payload, payload.plan, chunk, view, reference)
        output = self.predict(x, payload.schedule.timesteps[steps], cond, payload.plan.guidance_scale)
        step = self.transition(output, x, payload.schedule, steps, payload.plan, stochastic=True, x_next=x_next)
        if payload.means is not None:
            step.drawn_mean = payload.mean(chunk.rows, steps)
        return StepOutput(step.log_prob[:, None], dist=step)

    def _told(
        self, payload: Any, plan: Any, chunk: Chunk, view: str, reference: bool
    ) -> tuple[Tensors, Tensors | None]:
        """What the network is told about the rows of a chunk, with the guidance of `plan`."""
        asks = [payload.asks[i] for i in chunk.rows.tolist()]
        if view == "blank":
            asks = [ask._replace(text="", bare=True) for ask in asks]
        needed = self.needed(asks, plan)
        conditioning = payload.conditioning
        if conditioning is None or not set(needed) <= set(conditioning.index):
            # the cache holds the policy's encoders only; a reference with encoders of its own bypasses it
            conditioning = self.encode_fresh(needed) if reference else self.conditioned(needed)
        return self.rows(conditioning, asks, plan)

    # -- the network and what it is told

    def predict(self, x: Tensor, timestep: Tensor, cond: tuple[Tensors, Tensors | None], scale: float) -> Tensor:
        """The guided network output, float32. Guidance is a second pass, with the negative prompt and without gradient, so that
        neither its activations are kept nor a gradient goes through it: that of the output is, with plain guidance,
        `scale` times that of the positive pass."""
        told, other = cond
        timestep = timestep.to(x.device)
        with self._autocast():
            positive = self.adapter.predict(x, timestep, told)
            if other is None:
                return positive
            with torch.no_grad():
                negative = self.adapter.predict(x, timestep, other)
        return self.adapter.combine(negative, positive, scale, timestep, told)

    def _autocast(self) -> AbstractContextManager[Any]:
        """The model's own dtype where float32 weights are trained of a model loaded in a lower one."""
        if self.weights.choice is None or self.weights.is_lora or self.adapter.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.adapter.dtype)

    @property
    def _trains_encoders(self) -> bool:
        choice = self.weights.choice
        return choice is not None and any(part in self.adapter.encoders for part in choice.parts)

    def ask(self, prompt: Prompt, plan: Any, view: str = "original") -> Ask:
        """What the network is asked for a prompt seen through `view`. Raises UserError for media that are no pictures."""
        bare = view == "blank"
        text = "" if bare else prompt.text
        if self.media_role is None:
            return Ask(text, bare=bare)
        if not prompt.media:
            raise UserError(f"prompt '{prompt.id}' has no picture, but this model needs one ({self.media_role})")
        return Ask(text, tuple(Picture.of(item) for item in prompt.media), self.adapter.size(plan), bare)

    def asks(self, examples: Sequence[Sample], views: Sequence[str]) -> list[Ask]:
        """What supervised examples ask for; the size is that of the example."""
        found = []
        for example, view in zip(examples, views, strict=True):
            made = example.video if example.video is not None else example.images[0][None]
            plan = self.sampling_type(height=made.shape[1], width=made.shape[2], num_frames=made.shape[0])
            found.append(self.ask(example.prompt, plan, view))
        return found

    def latents_of(self, examples: Sequence[Sample]) -> Tensor:
        """Clean latents `(B, ...)` of supervised examples. Raises UserError for an example without what the model makes."""
        video = self.adapter.makes == "video"
        for example in examples:
            if (example.video is None) if video else not example.images:
                raise UserError(f"example '{example.prompt.id}' has no {self.adapter.makes}, which this model makes")
        made: list[Any] = [example.video if video else example.images[0] for example in examples]
        return self.adapter.encode_images(made)

    def needed(self, asks: Sequence[Ask], plan: Any) -> list[Ask]:
        """The asks, and those that guidance under `plan` compares them with."""
        return [*asks, *self._negatives(asks, plan)] if self.guides(plan) else list(asks)

    @staticmethod
    def _negatives(asks: Sequence[Ask], plan: Any) -> list[Ask]:
        return [ask._replace(text=plan.negative_prompt, bare=True) for ask in asks]

    def conditioned(self, asks: Sequence[Ask]) -> Conditioning:
        """From the cache while the encoders are frozen, else fresh and with gradient."""
        return self.encode_fresh(asks) if self._trains_encoders else self.cache.frozen(asks, self.device)

    def encode_fresh(self, asks: Sequence[Ask]) -> Conditioning:
        """Conditioning from the encoders as they are now, with gradient where they are trained."""
        with self._autocast():
            return self.cache.fresh(asks)

    def rows(self, conditioning: Conditioning, asks: Sequence[Ask], plan: Any) -> tuple[Tensors, Tensors | None]:
        """What the network is told for `asks`, one row each: positive, and negative where the plan guides."""
        facts = self.adapter.facts(plan, len(asks))
        positive = conditioning.rows(asks, self.device) | facts
        if not self.guides(plan):
            return positive, None
        return positive, conditioning.rows(self._negatives(asks, plan), self.device) | facts

    def supervised_rows(self, asks: Sequence[Ask]) -> tuple[Tensors, None]:
        """What the network is told for supervised examples, without guidance."""
        return self.rows(self.conditioned(asks), asks, self.sampling_type())[0], None

    @staticmethod
    def _dropped(noise: Noise, share: float) -> list[str]:
        """Views of supervised examples, "blank" for a random `share` of them."""
        return ["blank" if drop else "original" for drop in (noise.uniform() < share).tolist()]

    # -- stages, checkpoints, files

    def prepare(self, train: Any, reference: bool) -> None:
        """Start a stage. Earlier LoRA weights are merged; what later stages do not train keeps its last values."""
        self.weights.prepare(train.choice(self.adapter), reference)
        self._spec = train
        for name in self.adapter.networks:
            network: Any = self.adapter.modules[name]
            if train.gradient_checkpointing:
                network.enable_gradient_checkpointing()
            elif network.is_gradient_checkpointing:
                network.disable_gradient_checkpointing()
        self.cache.clear()

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
        self.cache.clear()

    def save(self, folder: Path) -> None:
        """Write a plain diffusers pipeline, a LoRA merged into it."""
        adapter = self.adapter
        merged = {part: lora.merged_copy(adapter.modules[part]) for part in self.weights.peft_configs}
        with adapter.using(merged):
            adapter.save(Path(folder))

    def export(self, folder: Path, to: str, plan: Sampling | None = None) -> Path:
        """`diffusers`: the whole pipeline; `peft`: the LoRA alone. A README.md says how to call it; `plan` is the
        sampling that its numbers come from."""
        if to not in self.exports:
            raise UserError(f"cannot export to '{to}'; valid: {', '.join(self.exports)}")
        chosen: Any = plan or self.sampling_type()
        return export.write(self, Path(folder), to, chosen)


def _members(group: int) -> list[Draw]:
    """The draws of a group of any prompt."""
    return [Draw(Prompt("", ""), 0, member, member, 0) for member in range(group)]


def _check_view(view: str) -> None:
    if view not in VIEWS:
        raise UserError(f"a denoising policy has no view '{view}'; it has: {', '.join(VIEWS)}")


def _loaded(value: Any) -> Any:
    if value is None:
        raise RuntimeError("the policy has no weights yet: load(device) comes first")
    return value

"""A policy of two parameters vectors that writes short sequences, and what an rl stage needs around it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.config.resolve import ResolvedRL
from mmrl.config.schema import (
    CurriculumSection,
    FailureSection,
    ObjectiveSection,
    OptimizerSection,
    RefillSection,
    RLStage,
    Section,
    Spec,
)
from mmrl.distributed import Group
from mmrl.objective.objective import Objective
from mmrl.reward import Reward
from mmrl.rollout import Chunk, Draw, Prompt, Rollout, Sample, StepOutput
from mmrl.stages.rl import RLWork

WORDS, STEPS = 4, 5
LIGHT = {"original": 1.0, "masked": 0.0, "perturbed": 0.9, "noisy": 0.5}
"""How much of the picture is seen through a view."""


class ToyPolicy:
    """Every step draws one of 4 words with logits `base + light * picture * visual`; word 0 ends the answer.

    A prompt's `media` holds its picture, a number; prompts without one look the same through every view.
    """

    flat_chunks = False
    offers = frozenset({"entropy", "branches", "engine_log_prob", "consistency", "rac"})

    def __init__(self, engine_gap: float | None = None) -> None:
        self.base = torch.zeros(WORDS, requires_grad=True)
        self.visual = torch.tensor([0.0, 1.0, -1.0, 0.5], requires_grad=True)
        self.engine_gap = engine_gap
        self.replays: list[tuple[str, str, bool]] = []
        self.drawn: list[Draw] = []

    def parameters(self) -> list[Tensor]:
        return [self.base, self.visual]

    def fits(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, int]]:
        return list(prompts), {}

    def plan_steps(self, plan: Any) -> int:
        return STEPS

    def logits(self, draws: Sequence[Draw], view: str) -> Tensor:
        light = torch.tensor([LIGHT[view] * d.prompt.media[0] if d.prompt.media else 0.0 for d in draws])
        return torch.log_softmax(self.base + light[:, None] * self.visual, -1)

    @torch.no_grad()
    def rollout(self, draws: Sequence[Draw], plan: Any, steps: Tensor) -> Rollout:
        self.drawn += draws
        words = torch.zeros(len(draws), STEPS, dtype=torch.int64)
        mask = torch.zeros(len(draws), STEPS, dtype=torch.bool)
        table = torch.cat([self.logits([draw], draw.view) for draw in draws]) if draws else torch.zeros(0, WORDS)
        for row, draw in enumerate(draws):
            generator = torch.Generator().manual_seed(draw.seed % 2**32)
            for k in range(STEPS):
                mask[row, k] = True
                words[row, k] = torch.multinomial(table[row].exp(), 1, generator=generator)
                if not words[row, k]:
                    break
        log_prob = torch.gather(table[:, None].expand(-1, STEPS, -1), 2, words[..., None])[..., 0] * mask
        samples = []
        for draw, own, drawn in zip(draws, words, mask, strict=True):
            text = "".join(map(str, own[drawn].tolist()))
            samples.append(Sample(draw.prompt, text=text, meta={"answer": text[0] if text[0] != "0" else None}))
        return Rollout(
            draws=draws,
            samples=samples,
            group=torch.tensor([draw.group for draw in draws], dtype=torch.int64),
            log_prob=log_prob,
            mask=mask,
            payload=words,
            engine_log_prob=None if self.engine_gap is None else log_prob - self.engine_gap,
        )

    def chunks(self, rollout: Rollout, train: Tensor, micro_batch: int) -> Iterator[Chunk]:
        rows = train.any(1).nonzero()[:, 0]
        for part in rows.split(micro_batch) if len(rows) else ():
            yield Chunk(part, torch.arange(STEPS).expand(len(part), STEPS))

    def has_view(self, rollout: Rollout, chunk: Chunk, view: str) -> Tensor:
        return torch.tensor([bool(rollout.draws[row].prompt.media) for row in chunk.rows.tolist()], dtype=torch.bool)

    def replay(self, rollout: Rollout, chunk: Chunk, view: str = "original", model: str = "policy") -> StepOutput:
        self.replays.append((view, model, torch.is_grad_enabled()))
        table = self.logits([rollout.draws[row] for row in chunk.rows.tolist()], view)
        table = table[:, None].expand(-1, STEPS, -1)
        log_prob = torch.gather(table, 2, rollout.payload[chunk.rows][..., None])[..., 0]
        return StepOutput(log_prob, entropy=-(table.exp() * table).sum(-1), dist=table)

    def divergence(self, p: StepOutput, q: StepOutput, norm: str) -> Tensor:
        return (p.dist.exp() * (p.dist - q.dist)).sum(-1)

    def keep_slow(self) -> None:
        self.followed: list[float] = []

    def follow(self, decay: float) -> None:
        self.followed.append(decay)

    def measure(self, name: str, rollout: Rollout, micro_batch: int) -> Tensor:
        said = torch.tensor([float("2" in (sample.text or "")) for sample in rollout.samples])
        return said if name == "rac" else 0.1 + 0.8 * said


class Ones(Reward):
    """1 for answers whose first word is 1 (a reward that is often constant in a group)."""

    range = (0.0, 1.0)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [float((sample.text or "").startswith("1")) for sample in samples]


@dataclass
class Prompts:
    """`count` prompts; every third has no picture."""

    count: int = 12
    pictures: bool = True

    def load(self) -> list[Prompt]:
        own = [(1.0 + i / 4,) if self.pictures and i % 3 else () for i in range(self.count)]
        return [Prompt(str(i), "?", media=media) for i, media in enumerate(own)]


@dataclass
class SharedMail:
    """What the ranks of a fake world hand each other."""

    world: int
    slots: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = [None] * self.world
        self.barrier = threading.Barrier(self.world, timeout=60)


class FakeGroup(Group):
    """A rank of a world of threads."""

    def __init__(self, rank: int = 0, mail: SharedMail | None = None) -> None:
        self.mail = mail or SharedMail(1)
        self.rank, self.world = rank, self.mail.world

    def gather(self, value: Any) -> list[Any]:
        self.mail.slots[self.rank] = value
        self.mail.barrier.wait()
        found = list(self.mail.slots)
        self.mail.barrier.wait()
        return found


def stage(
    objective: Objective, refill: RefillSection | None = None, prompts: Prompts | None = None, **section: Any
) -> ResolvedRL:
    """An rl stage of 4 prompts x 6 samples and 10 steps."""
    bears = {"failures": FailureSection(share=0.5)}
    options: dict[str, Any] = {"steps": 10, "prompts_per_step": 4, "group_size": 6, "micro_batch": 5} | bears | section
    typed = RLStage(
        kind="rl",
        prompts=Spec(name="toy"),
        rewards={"ones": {"name": "toy"}},  # type: ignore[dict-item]
        objective=ObjectiveSection(advantage=Spec(name="dr")),
        optimizer=OptimizerSection(lr=0.5),
        curriculum=CurriculumSection(refill=refill),
        **options,
    )
    rewards = {"ones": (Ones(), 1.0)}
    return ResolvedRL("rl", typed, Section(), prompts or Prompts(), Section(), rewards, objective, 1e-4)


def work(policy: ToyPolicy, own: ResolvedRL, group: Group | None = None) -> RLWork:
    return RLWork(own, policy, group or FakeGroup(), 7, lambda line: None)  # type: ignore[arg-type]


def gradients(policy: ToyPolicy, updates: Any) -> list[np.ndarray | None]:
    """The gradient of every update (None without signal), no step taken."""
    found: list[np.ndarray | None] = []
    for update in updates:
        if update is None:
            found.append(None)
            continue
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for loss in update:
            loss.backward()
        found.append(np.concatenate([parameter.grad.numpy().copy() for parameter in policy.parameters()]))  # type: ignore[union-attr]
    return found

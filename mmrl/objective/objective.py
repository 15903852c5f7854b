"""The objective of an rl stage: its parts, composed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mmrl.advantage.branch import once
from mmrl.advantage.combine import Combine, rescaled, summed
from mmrl.advantage.types import Advantage, Bools, Floats, Following, Scored, Shaping
from mmrl.curriculum.selection import SelectAll, Selection
from mmrl.errors import RunError, UserError
from mmrl.objective import aggregate as aggregation
from mmrl.objective.aggregate import Counts, Mode
from mmrl.objective.batch import UnitBatch
from mmrl.objective.correction import Correction
from mmrl.objective.forward import Forward
from mmrl.objective.metrics import Metric, Metrics
from mmrl.objective.steps import AllSteps, StepSelector
from mmrl.objective.surrogate import Clip, Diagnostics, Surrogate
from mmrl.objective.terms import Divergence, Need, Replays, Term
from mmrl.objective.weight import StepWeight, UniformWeight
from mmrl.rollout import Draw, StepOutput

BRANCH_SALT = 0xB4A9
"""Keeps the choice of a branch apart from other streams that start from a group's seed."""


@dataclass(frozen=True)
class Objective:
    """Which samples and steps are trained, with which advantages, and the loss of a chunk.

    Advantages and selection see the batch gathered from all ranks; everything else is local to a rank. Use per update:
    `plan_steps` -> rollout -> `shaped` -> `advantages`, `selected` -> `train_mask`, `refined` -> counts added over ranks
    -> `weights` -> `loss` of every chunk. Raises UserError when the parts do not fit together.
    """

    advantage: Advantage
    surrogate: Surrogate = field(default_factory=Clip)
    shaping: tuple[Shaping, ...] = ()
    selection: Selection = field(default_factory=SelectAll)
    select: StepSelector = field(default_factory=AllSteps)
    weight: StepWeight = field(default_factory=UniformWeight)
    terms: tuple[Term, ...] = ()
    correction: Correction | None = None
    aggregate: Mode = "token_mean"
    max_steps: int | None = None
    combine: Combine = "rewards"
    normalise_weights: bool = False
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.aggregate == "seq_mean_token_sum_norm" and self.max_steps is None:
            raise UserError(
                "aggregate seq_mean_token_sum_norm needs max_steps: the constant it divides by (the step limit)"
            )
        valid = self.surrogate.aggregates
        if valid is not None and self.aggregate not in valid:
            raise UserError(
                f"surrogate {type(self.surrogate).__name__.lower()} has one ratio per sample, which aggregate "
                f"{self.aggregate} would count by its length over that of all samples; use {' or '.join(valid)}"
            )
        self._check_combination()
        if len(self._following()) > 1:
            raise UserError(
                "surrogate and shapings ask for slow copies of the weights that follow them in different ways; use one"
            )
        if self.surrogate.compares_pairs and self.selection.size != 2:
            raise UserError(
                f"surrogate {type(self.surrogate).__name__.lower()} compares the best sample of a group with the worst; set "
                "objective.selection={name: best_of_n, keep: 2}"
            )

    def _check_combination(self) -> None:
        one_by_one = self.advantage.per_step or self.combine != "rewards"
        for shape in self.shaping:
            if one_by_one and not shape.elementwise:
                what = "advantages of single steps" if self.advantage.per_step else f"combine: {self.combine}"
                raise UserError(
                    f"shaping {type(shape).__name__.lower()} reads the one advantage of a sample, which {what} has not"
                )
        if self.combine == "rewards" and (self.normalise_weights or self.rescale):
            raise UserError(
                "normalise_weights and rescale are about advantages that are summed; add combine: advantages"
            )
        if self.rescale and (self.combine != "advantages" or self.advantage.per_step):
            raise UserError("rescale standardises one advantage per sample, summed over rewards (combine: advantages)")
        if self.combine == "losses" and not self.surrogate.homogeneous:
            raise UserError(
                f"combine: losses needs a loss that is linear in the size of the advantage, which surrogate "
                f"{type(self.surrogate).__name__.lower()} is not; use clip"
            )
        if self.advantage.per_step and not (self.selection.reads_tree or isinstance(self.selection, SelectAll)):
            raise UserError(
                f"selection {type(self.selection).__name__.lower()} chooses samples by their one advantage, and advantage "
                f"{type(self.advantage).__name__.lower()} has one for every step; use selection all or width_pruned"
            )
        if self.selection.reads_tree and not self.advantage.reads_tree:
            raise UserError("selection width_pruned prunes a tree; use advantage branch")
        if self.advantage.per_step and self.aggregate == "seq_mean_token_mean":
            raise UserError(
                f"advantage {type(self.advantage).__name__.lower()} trains an edge that samples share with one of them, so samples "
                "have different numbers of steps, by which aggregate seq_mean_token_mean would weigh them; use token_mean"
            )
        if self.advantage.remembers is not None and self.combine != "rewards":
            raise UserError(
                f"advantage {type(self.advantage).__name__.lower()} remembers the sum of the rewards of a prompt, not each by "
                f"itself as combine: {self.combine} asks; use combine: rewards"
            )
        if self.advantage.per_step and self.forward is not None:
            raise UserError(
                f"advantage {type(self.advantage).__name__.lower()} is about the steps of a rollout, and surrogate "
                f"{type(self.surrogate).__name__.lower()} sees finished samples"
            )

    @property
    def reads_tree(self) -> bool:
        """`Scored.node` must be there."""
        return self.advantage.reads_tree or self.selection.reads_tree

    @property
    def needs_log_prob(self) -> bool:
        """The loss reads log-probs, so the rollout must have a density."""
        return self.surrogate.needs_log_prob

    @property
    def needs(self) -> tuple[Need, ...]:
        """Extra replays `(view, model)` that surrogate and terms read, each once."""
        return tuple(
            dict.fromkeys(
                need for needs in (self.surrogate.needs, *(term.needs for term in self.terms)) for need in needs
            )
        )

    @property
    def gradients(self) -> tuple[Need, ...]:
        """Those of `needs` that a term wants with gradient."""
        return tuple(dict.fromkeys(need for term in self.terms for need in term.gradients))

    @property
    def views(self) -> tuple[str, ...]:
        """The views of `needs` beside the original one."""
        return tuple(dict.fromkeys(view for view, _ in self.needs if view != "original"))

    @property
    def follows(self) -> Following | None:
        """How the slow copy of the weights moves that draws, or is replayed or measured; None when there need be none."""
        return next(iter(self._following()), None)

    def _following(self) -> set[Following]:
        found = (self.surrogate.follows, *(shape.follows for shape in self.shaping))
        return {one for one in found if one is not None}

    @property
    def forward(self) -> Forward | None:
        """How finished samples are seen; None: by the steps they were drawn with."""
        return self.surrogate.forward

    @property
    def whole_groups(self) -> bool:
        """A chunk must hold all trained samples of a group, so a group is neither split over updates nor over ranks."""
        return self.forward is not None and self.forward.whole_groups

    def num_steps(self, drawn: int) -> int:
        """S of the loss, of rollouts of `drawn` steps."""
        return drawn if self.forward is None else self.forward.times

    def replays_old(self, usual: bool) -> bool:
        """Whether old log-probs are replayed: as `usual`, but of finished samples that are noised again there are no others."""
        return usual if self.forward is None else self.surrogate.reads_old

    def measures(self, step: int) -> tuple[str, ...]:
        """What is measured on the rollout of `step` (from 0) before the advantages (see `mmrl.objective.measure`)."""
        due = [shape for shape in self.shaping if shape.due(step)]
        terms = [term for term in self.terms if term.coef]
        parts: list[Shaping | StepSelector | Surrogate | Term] = [*due, self.select, self.surrogate, *terms]
        return tuple(dict.fromkeys(name for part in parts for name in part.measures))

    @property
    def evaluates(self) -> tuple[str, ...]:
        """What is measured on held-out samples."""
        return tuple(dict.fromkeys(name for shape in self.shaping for name in shape.evaluates))

    def metrics(self, scored: Scored) -> dict[str, float]:
        """What the shapings say about samples as they were scored, for the log."""
        return {name: value for shape in self.shaping for name, value in shape.metrics(scored).items()}

    @property
    def reads_answers(self) -> bool:
        """Whether a shaping compares parsed answers."""
        return any(shape.reads_answers for shape in self.shaping)

    @property
    def selection_size(self) -> int | None:
        """Most samples trained of one group, None when all may be."""
        return self.selection.size

    def plan_steps(self, num_steps: int, iteration: int, seed: int) -> Tensor:
        """Steps that this iteration may train, `(S,)` bool; the same on all ranks."""
        return self.select.before_rollout(num_steps, iteration, seed)

    def branched(self, draws: Sequence[Draw], progress: float) -> list[Draw]:
        """The draws of a rollout, a share of each group through the view of a shaping's `branch`: its first members, as
        many as the group's own seed rounds to. `progress` is the share of the stage that is done."""
        found = list(draws)
        sizes = Counter(draw.group for draw in draws)
        for shape in self.shaping:
            if shape.branch is None:
                continue
            share = shape.branch_share(progress)
            for place, draw in enumerate(draws):
                level = np.random.default_rng([draw.group_seed % 2**64, BRANCH_SALT]).random()
                if draw.member < int(share * sizes[draw.group] + level):
                    found[place] = replace(draw, view=shape.branch)
        return found

    def shaped(self, scored: Scored) -> Scored:
        """The rewards as shapings change them before the advantage rule, over all samples of all ranks."""
        for shape in self.shaping:
            scored = shape.before(scored)
        return scored

    def advantages(self, scored: Scored) -> Floats:
        """Advantages `(N,)` float64 after shaping, or `(N, S)` of a rule that is per step, from what `shaped` gave, over all samples
        of all ranks."""
        if self.combine == "rewards":
            return self._ruled(scored)
        total, _ = summed(scored, self._ruled, self.normalise_weights)
        return rescaled(total, scored.scorable) if self.rescale else total

    def opposed(self, scored: Scored) -> Floats | None:
        """With `combine: losses` the negative part of the advantages, shaped as they are, which has a loss of its own."""
        if self.combine != "losses":
            return None
        return summed(scored, self._ruled, self.normalise_weights)[1]

    def _ruled(self, scored: Scored) -> Floats:
        """Advantages by the rule and the shapings."""
        advantage = self.advantage(scored)
        for shape in self.shaping:
            advantage = shape(advantage, scored)
        return advantage

    def selected(self, advantage: Floats, scored: Scored, step: int) -> Bools:
        """Samples to train on at `step` (from 0) of the stage, `(N,)` bool, over all samples of all ranks; of a tree the edges,
        `(N, S)` bool, each once."""
        keep = self.selection(advantage, scored) if self.selection.due(step) else scored.scorable
        return self._once(keep, scored)

    def edges(self, scored: Scored) -> Bools | None:
        """The edges of trees that have a scorable leaf, `(N, S)` bool, each once; None where advantages are those of samples."""
        return self._once(scored.scorable, scored) if self.advantage.per_step else None

    def _once(self, keep: Bools, scored: Scored) -> Bools:
        if not self.advantage.per_step or scored.node is None:
            return keep
        return once(scored.node, keep if keep.ndim == 2 else np.repeat(keep[:, None], scored.node.shape[1], axis=1))

    def train_mask(self, mask: Tensor, planned: Tensor, seeds: Sequence[int], keep: Tensor) -> Tensor:
        """Steps to train, `(N, S)` bool: drawn (`mask (N, S)`), `planned (P,)` with P >= S, chosen by the step selector,
        in a kept sample (`keep (N,)` bool, or `(N, S)` of edges). `seeds` are those of the draws."""
        allowed = mask & planned[: mask.shape[1]].to(mask.device)
        keep = keep.to(mask.device)
        return self.select.after_rollout(allowed, seeds) & (keep if keep.dim() == 2 else keep[:, None])

    def refined(self, train: Tensor, measured: Mapping[str, Tensor], pool: Tensor | None) -> Tensor:
        """The part of `train (N, S)` that the step selector keeps when it sees what was measured; `pool` are the entropies
        of such steps on all ranks."""
        if "entropy" not in self.select.measures:
            return train
        assert pool is not None, "the step selector reads the entropies of all ranks"
        return self.select.after_measuring(train, measured["entropy"].to(train.device), pool)

    def step_advantages(self, advantage: Tensor, measured: Mapping[str, Tensor]) -> Tensor:
        """Advantages `(N, 1)` or `(N, S)` of this rank's steps from `advantage (N,)` or `(N, S)` and what was measured."""
        found = advantage if advantage.dim() == 2 else advantage[:, None]
        for shape in self.shaping:
            found = shape.steps(found, measured)
        return found

    def step_weights(self, train: Tensor, step_std: Tensor | None, sums: Tensor | None = None) -> Tensor:
        """Weights of the policy loss `(N, S)` float32; `step_std (N, S)` as stored in the rollout, `sums (2, S)` what
        `noise_sums` says of the samples of all ranks."""
        return self.weight(train, step_std, sums)

    def weights(self, train: Tensor, counts: Counts) -> Tensor:
        """Aggregation weights `(N, S)` float32; `counts` of the whole optimizer step over all ranks."""
        return aggregation.weights(train, self.aggregate, counts, self.max_steps)

    def has_signal(self, advantage: Floats, lengths: Mapping[str, Tensor]) -> bool:
        """Whether an update of these samples, of all ranks, has any gradient; where not, it is skipped on all of them.

        `lengths` are the trained steps `(N,)` of each sample by view: with "original" all of them, with one of `views` those
        that look different through it. An advantage counts where a step is trained, a term where a step is that it sees.
        """
        policy = torch.as_tensor(advantage).cpu() != 0
        policy = policy.any(1) if policy.dim() == 2 else policy
        terms = any(bool((lengths[view] > 0).any()) for term in self.terms if term.coef for view in term.sees)
        return terms or bool((policy & (lengths["original"] > 0)).any())

    def loss(
        self, out: StepOutput, batch: UnitBatch, others: Replays, divergence: Divergence
    ) -> tuple[Tensor, Metrics]:
        """This chunk's part of the loss, a scalar with gradient to be summed over chunks and ranks, and its metrics.

        `sum(W w L) + sum over terms of coef * sum(W T)`, W the aggregation weights (for a view: over the samples that look
        different through it), w the step weights. Steps with W = 0
        change nothing, whatever their log-prob is; a chunk of nothing gives 0 with a gradient of 0.
        Raises RunError naming the first trained step whose log-prob is not finite.
        """
        mask = batch.mask
        out = _trained(out, batch, "policy")
        others = {need: _trained(others[need], batch, f"{need[1]} ({need[0]} view)", need[0]) for need in self.needs}
        old = _finite(batch.old_log_prob, batch, "behaviour policy")
        matrix, diagnostics = self.surrogate.of_chunk(out, old, batch, others)
        if batch.opposed is not None:
            against = replace(batch, advantage=batch.opposed)
            other, beside = self.surrogate.of_chunk(out, old, against, others)
            matrix, diagnostics = matrix + other, _either(diagnostics, beside)
        total = (matrix.masked_fill(~mask, 0.0) * batch.step_weight * batch.weight).sum()
        values: dict[str, tuple[Tensor, Tensor]] = {}
        for number, term in enumerate((term for term in self.terms if term.coef), start=1):
            for name, part in term.parts(out, batch, others, divergence).items():
                weight = batch.weight_of(part.view)
                value = part.value.masked_fill(weight == 0, 0.0)
                total = total + term.coef * part.factor * (value * weight).sum()
                values[name if name not in values else f"{name}_{number}"] = value.detach(), weight != 0
        if out.entropy is not None:
            values.setdefault("entropy", (out.entropy.detach().masked_fill(~mask, 0.0), mask))
        return total, _metrics(total, mask, diagnostics, values)


def _finite(log_prob: Tensor, batch: UnitBatch, owner: str, view: str = "original") -> Tensor:
    """`log_prob` with 0 at steps that are not trained (through `view`); raises RunError where another is not finite."""
    mask = batch.weight_of(view) != 0
    bad = mask & ~torch.isfinite(log_prob)
    if bad.any():
        row, column = (int(i) for i in bad.nonzero()[0])
        raise RunError(
            f"log-prob of the {owner} is {float(log_prob[row, column])} at {batch.name(row, column)} "
            f"({int(bad.sum())} of {int(mask.sum())} trained steps of this chunk are not finite)"
        )
    return log_prob.masked_fill(~mask, 0.0)


def _trained(out: StepOutput, batch: UnitBatch, owner: str, view: str = "original") -> StepOutput:
    return replace(out, log_prob=_finite(out.log_prob, batch, owner, view))


def _either(one: Diagnostics | None, other: Diagnostics | None) -> Diagnostics | None:
    """Steps that are cut in one of two losses of the same ratio."""
    if one is None or other is None:
        return one
    return replace(one, low=one.low | other.low, high=one.high | other.high, dual=one.dual | other.dual)


def _metrics(
    total: Tensor, mask: Tensor, diagnostics: Diagnostics | None, values: dict[str, tuple[Tensor, Tensor]]
) -> Metrics:
    if diagnostics is None:  # no ratio, so nothing to say about one
        return {
            "loss": ("sum", float(total.detach())),
            **{name: (float(value.sum()), float(counted.sum())) for name, (value, counted) in values.items()},
        }
    d = diagnostics.log_ratio.masked_fill(~mask, 0.0)
    deviation = torch.expm1(d)
    sums = {
        "ratio": deviation.sum() + mask.sum(),
        "approx_kl": (deviation - d).sum(),
        "clip_low": (diagnostics.low & mask).sum(),
        "clip_high": (diagnostics.high & mask).sum(),
        "clip_dual": (diagnostics.dual & mask).sum(),
    }
    largest = deviation.abs().max() if deviation.numel() else deviation.sum()
    own = [number for value, counted in values.values() for number in (value.sum(), counted.sum())]
    numbers = torch.stack([total.detach(), largest, mask.sum(), *sums.values(), *own]).tolist()
    loss, largest_deviation, number = numbers[:3]
    rest = numbers[3 + len(sums) :]
    metrics: dict[str, Metric] = {
        **{name: (value, number) for name, value in zip(sums, numbers[3:], strict=False)},
        **{name: (rest[2 * i], rest[2 * i + 1]) for i, name in enumerate(values)},
    }
    return {"loss": ("sum", loss), "ratio_deviation": ("max", largest_deviation), **metrics}

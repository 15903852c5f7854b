"""What an objective wants from a policy, compared before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmrl.objective.measure import OWN, kind_of
from mmrl.objective.objective import Objective

LACKING = {
    "entropy": "an entropy of each step that depends on the weights (a denoising step is a Gaussian of given width)",
    "whole_samples": "all steps of a sample in one replay (denoising replays one step at a time); use surrogate clip",
    "engine_log_prob": "log-probs reported by an inference engine; leave out objective.correction",
    "branches": "rollouts through another view than the original",
    "probability": "a probability of each step (a denoising step has a density)",
    "slow_copy": "a slow copy of the weights (keep_slow and follow)",
    "forward": "a forward process that noises finished samples again (flow-matching models have one)",
    "transition": "denoising steps with a Gaussian each",
    "tree": "rollouts that branch, with a tree of which steps the samples share",
}
"""What may be wanted -> how it is called in an error."""


def offers(policy: Any) -> frozenset[str]:
    """What `policy` can do beyond the protocol: its attribute `offers`; without one, a policy whose chunks hold whole
    samples (tokens) has an entropy. Names: `entropy`, `engine_log_prob`, `branches`, and what it can `measure`."""
    whole = not policy.flat_chunks
    found = set(getattr(policy, "offers", ("entropy",) if whole else ()))
    found |= {"slow_copy"} if hasattr(policy, "keep_slow") else set()
    found |= {"forward"} if hasattr(policy, "renoised") else set()
    return frozenset(found | ({"whole_samples", "probability"} if whole else {"transition"}))


def wants(objective: Objective) -> Iterator[tuple[str, str]]:
    """`(what, who wants it)` for every thing an objective wants beyond the protocol."""
    surrogate = f"surrogate {type(objective.surrogate).__name__.lower()}"
    if objective.surrogate.whole_samples:
        yield "whole_samples", surrogate
    if objective.surrogate.reads_probability:
        yield "probability", surrogate
    if objective.forward is not None:
        yield "forward", surrogate
    if objective.surrogate.reads_transition:
        yield "transition", surrogate
    if objective.surrogate.follows is not None:
        yield "slow_copy", surrogate
    if objective.advantage.reads_tree:
        yield "tree", f"advantage {type(objective.advantage).__name__.lower()}"
    if objective.correction is not None:
        yield "engine_log_prob", f"correction {type(objective.correction).__name__.lower()}"
    asked = [(wanted, "steps.select") for wanted in objective.select.measures]
    asked += [(wanted, surrogate) for wanted in objective.surrogate.measures]
    for term in (term for term in objective.terms if term.coef):
        if term.reads_entropy:
            yield "entropy", f"term {term.name}"
        asked += [(wanted, f"term {term.name}") for wanted in term.measures]
    for shape in objective.shaping:
        who = f"shaping {type(shape).__name__.lower()}"
        asked += [(wanted, who) for wanted in shape.measures]
        if shape.branch is not None:
            yield "branches", who
        if shape.follows is not None:
            yield "slow_copy", who
    yield from ((what, who) for what, who in asked if what == "entropy" or kind_of(what) not in OWN)


def check_policy(objective: Objective, policy: Any) -> None:
    """Raises ValueError naming the first part of `objective` that wants what `policy` does not offer."""
    there = offers(policy)
    for what, who in wants(objective):
        if what not in there:
            raise ValueError(
                f"{who} needs {LACKING.get(what, f'the measurement {what!r}')}, which this policy does not have"
            )

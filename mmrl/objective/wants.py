"""What an objective wants from a policy, compared before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from mmrl.advantage.types import Shaping
from mmrl.objective.measure import OWN, kind_of
from mmrl.objective.objective import Objective
from mmrl.objective.surrogate import Surrogate

Place: TypeAlias = tuple[str | int, ...]
"""Keys below the `objective` of a config."""

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


def wants(objective: Objective) -> Iterator[tuple[Place, str, list[str]]]:
    """`(where, who, what)` for every part of an objective: where it stands in the block of a config, how it is called, and what it
    wants beyond the protocol."""
    yield ("advantage",), f"advantage {_name(objective.advantage)}", ["tree"] * objective.advantage.reads_tree
    for number, shaping in enumerate(objective.shaping):
        yield ("shaping", number), f"shaping {_name(shaping)}", _by_shaping(shaping)
    yield ("steps", "select"), "steps.select", _measured(objective.select.measures)
    yield ("surrogate",), f"surrogate {_name(objective.surrogate)}", _by_surrogate(objective.surrogate)
    for number, term in enumerate(objective.terms):
        if term.coef:
            what = ["entropy"] * term.reads_entropy + _measured(term.measures)
            yield ("terms", number), f"term {term.name}", what
    if objective.correction is not None:
        yield ("correction",), f"correction {_name(objective.correction)}", ["engine_log_prob"]


def _by_surrogate(surrogate: Surrogate) -> list[str]:
    asked = {
        "whole_samples": surrogate.whole_samples,
        "probability": surrogate.reads_probability,
        "forward": surrogate.forward is not None,
        "transition": surrogate.reads_transition,
        "slow_copy": surrogate.follows is not None,
    }
    return [what for what, wanted in asked.items() if wanted] + _measured(surrogate.measures)


def _by_shaping(shaping: Shaping) -> list[str]:
    asked = {"branches": shaping.branch is not None, "slow_copy": shaping.follows is not None}
    return _measured(shaping.measures) + [what for what, wanted in asked.items() if wanted]


def _measured(names: Sequence[str]) -> list[str]:
    """Measurements that not every policy has."""
    return [name for name in names if name == "entropy" or kind_of(name) not in OWN]


def _name(part: Any) -> str:
    return type(part).__name__.lower()


def lacking(objective: Objective, policy: Any) -> list[tuple[Place, str]]:
    """What parts of `objective` want and `policy` does not offer, in words, each where the part stands."""
    there = offers(policy)
    return [
        (where, f"{who} needs {LACKING.get(what, f'the measurement {what!r}')}, which this policy does not have")
        for where, who, wanted in wants(objective)
        for what in dict.fromkeys(wanted)
        if what not in there
    ]

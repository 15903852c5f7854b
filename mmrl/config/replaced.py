"""An rl stage of a run with other rewards: what `mmrl reward replay` makes of its FILE."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from mmrl.config.resolve import load, resolve
from mmrl.config.resolved import Resolved, ResolvedRL
from mmrl.config.schema import Config, RewardSpec, Section, Spec
from mmrl.config.source import Path_, Source, read
from mmrl.config.validate import lines, validate
from mmrl.errors import ConfigError, UserError


class Rules(Section):
    """The parts of an objective that make advantages of rewards; what is not there stays as it was in the run."""

    advantage: Spec | None = None
    shaping: tuple[Spec, ...] = ()
    combine: Literal["rewards", "advantages", "losses"] = "rewards"
    normalise_weights: bool = False
    rescale: bool = False


class Given(Section):
    """A file with `rewards` as in a stage, and optionally `objective`."""

    rewards: dict[str, RewardSpec] = Field(min_length=1)
    objective: Rules = Rules()


def replaced(own: Resolved, stage: str, config: str) -> tuple[ResolvedRL, str]:
    """The rl stage `stage` of a run, `own`, with the rewards (and the rules) of `config`, or that stage of `config` where this is a whole
    config; also what the config is called. No data are read. Raises ConfigError listing every problem."""
    given = read(config)
    if "stages" in given.tree:
        return _of_whole(load(config, read_data=False), stage), given.name
    validate(Given, given.tree, given)
    source = _merged(own.source, given, stage)
    try:
        typed = Config.model_validate(source.tree)
    except ValidationError as error:
        raise ConfigError("\n".join(lines(error, Config, source.tree, source))) from None
    found = resolve(typed, source, read_data=False).stages[0]
    assert isinstance(found, ResolvedRL)
    return found, given.name


def _of_whole(other: Resolved, stage: str) -> ResolvedRL:
    found = [one for one in other.stages if isinstance(one, ResolvedRL)]
    same = [one for one in found if one.name == stage]
    if len(same or found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise UserError(
            f"{other.source.file} has no rl stage '{stage}' to take the rewards of (its rl stages: {names}); give a file with `rewards:` alone"
        )
    return (same or found)[0]


def _merged(own: Source, given: Source, stage: str) -> Source:
    """A config of the one stage, every value knowing the file that it comes from."""
    section = own.tree["stages"][stage]
    objective = {**section["objective"], **given.tree.get("objective", {})}
    tree: dict[str, Any] = {
        "policy": own.tree["policy"],
        "stages": {stage: {**section, "rewards": given.tree["rewards"], "objective": objective}},
    }
    here: Path_ = ("stages", stage)
    new = {(*here, *path): place for path, place in given.origin.items()}
    gone = ((*here, "rewards"), *((*here, "objective", key) for key in given.tree.get("objective", {})))
    old = {path: place for path, place in own.origin.items() if not any(path[: len(one)] == one for one in gone)}
    return Source(tree, old | new, given.name, given.file, given.folder)

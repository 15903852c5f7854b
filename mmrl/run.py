"""One training run from a config, and a finished run's policy for those who come after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from mmrl import checkpoint, provenance
from mmrl.config.dump import anew, differences, dump, inside
from mmrl.config.resolve import Resolved, ResolvedDraws, load
from mmrl.distributed import Group
from mmrl.errors import RunError, UserError
from mmrl.folder import RunFolder, claim_next, numbered, open_run, unclaim, write_json
from mmrl.policy import Policy
from mmrl.report.html import write_report
from mmrl.reward import Use, set_up
from mmrl.reward.fingerprint import fingerprint
from mmrl.tracking import Tracking
from mmrl.trainer import Interrupted, Trainer, restore_weights


def choose_folder(resolved: Resolved, resume: bool) -> Path:
    """`run.dir`, or the next free `runs/NAME/001` (which is made); with `resume`, the newest one there in which a run
    began."""
    run = resolved.config.run
    if run.dir is not None:
        folder = Path(run.dir)
        if not resume:
            _refuse_started(RunFolder(folder))
        return folder
    root = Path("runs") / (run.name or resolved.source.name)
    if not resume:
        return claim_next(root)
    last = next((path for path in numbered(root) if RunFolder(path).config.is_file()), None)
    if last is None:
        raise UserError(f"nothing to resume: no run in {root.absolute()}; name its folder with run.dir=PATH")
    return last


def _refuse_started(folder: RunFolder) -> None:
    if folder.started:
        raise UserError(f"{folder.path} holds a run already; continue it with --resume, or choose another run.dir=PATH")


def stored_config(config: str, overrides: Sequence[str]) -> tuple[Resolved, list[str]]:
    """What `--resume` goes on with: the run's own config.yaml, so that the options it was started with need not be said
    again, and may be. Of what may differ, `overrides` set anew what they name.

    Also returns the keys in which `config` differs from it by now, which have no effect. Raises RunError where `overrides` would make
    another run of it.
    """
    named = load(config, overrides, read_data=False)
    path = choose_folder(named, resume=True)
    folder, wanted = open_run(path), dump(named)
    changed = differences(folder.config, wanted)
    keys = [override.partition("=")[0] for override in overrides]
    _same_run(folder, [one for one in changed if any(inside(one[0], key) for key in keys)])
    own = load(str(folder.config), [*anew(wanted, overrides), f"run.dir={path}"])
    return own, [key for key, _, _ in changed]


def train(config: str, overrides: Sequence[str], resume: bool) -> Path:
    """Run (or continue) a config in this process, which may be one of several. Returns the run's folder."""
    resolved, unused = stored_config(config, overrides) if resume else (load(config, overrides), [])
    run = resolved.config.run
    group = Group(run.device, run.num_processes, run.threads)
    held: IO[str] | None = None
    try:
        path = _agree_on_folder(resolved, resume, group)
        folder, settings = RunFolder(path), dump(resolved)
        if resume:  # a folder that is in use, or another run's, is told before weights are loaded beside that run
            held = _open(folder, settings, resume, run.seed, group)
        torch.use_deterministic_algorithms(run.deterministic, warn_only=True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (a debugging aid; slow)
        try:
            _load(resolved, group)
        except BaseException:
            if group.main and not resume and run.dir is None:
                unclaim(path)
            raise
        if not resume:
            held = _open(folder, settings, resume, run.seed, group)
        tracking = Tracking(folder, group, run.trackers, settings)
        tracking.say(f"run folder: {path.absolute()}")
        if unused:
            more = ", ..." if len(unused) > 5 else ""
            tracking.say(
                f"the run goes on with its own config.yaml; {config} says otherwise in {', '.join(unused[:5])}{more}"
            )
        try:
            record_rewards(resolved, folder, group, resume)
            trainer = Trainer(resolved, resolved.policy, folder, group, tracking)
            if resume:
                trainer.resume()
            trainer.run()
        except Interrupted as stop:
            tracking.say(f"{stop}; continue with: mmrl train {config} --resume run.dir={path}")
            raise
        finally:
            tracking.close()
            if group.main and folder.started:
                _report(folder, tracking)
        return path
    finally:
        if held is not None:
            held.close()
        group.close()


def _load(resolved: Resolved, group: Group) -> None:
    """Load rewards and policy, before anything is written; raises on every rank where one of them cannot."""
    for load_it in (partial(set_up_rewards, resolved), resolved.policy.load):
        problem: Exception | None = None
        try:
            load_it(group.device)
        except Exception as error:  # raised again on every rank, so that no rank waits for ever
            problem = error
        group.raise_together(problem)


def set_up_rewards(resolved: Resolved, device: torch.device) -> None:
    """Let every reward of the run load what it needs, once."""
    done: set[int] = set()
    for place, uses in _rewards(resolved).items():
        for name, use in uses.items():
            if id(use.reward) in done:
                continue
            done.add(id(use.reward))
            set_up(use.reward, f"{place}.{name}", device)


def record_rewards(resolved: Resolved, folder: RunFolder, group: Group, resume: bool) -> None:
    """Write which models score to rewards.json; collective. Raises RunError where a run that goes on would get others, or where
    what scores elsewhere (a judge, a server) is not the same for every process."""
    told = {
        f"{place}.{name}": use.reward.elsewhere()
        for place, uses in _rewards(resolved).items()
        for name, use in uses.items()
    }
    every = group.gather(told)
    apart = [(key, rank) for key in told for rank, one in enumerate(every) if one[key] != every[0][key]]
    problem: Exception | None = None
    if apart:
        key, rank = apart[0]
        problem = RunError(
            f"{key}: process 0 is answered by {every[0][key]!r} and process {rank} by {every[rank][key]!r}; give both the same"
        )
    group.raise_together(problem)
    if group.main:
        try:
            _record(resolved, folder, resume)
        except Exception as error:  # raised again on every rank, so that no rank waits for ever
            problem = error
    group.raise_together(problem)


def _record(resolved: Resolved, folder: RunFolder, resume: bool) -> None:
    found = {
        f"{place}.{name}": {"class": f"{type(use.reward).__module__}:{type(use.reward).__qualname__}",
                            "revision": use.reward.revision, "licence": use.reward.licence, "sha256": fingerprint(use.reward)}
        for place, uses in _rewards(resolved).items() for name, use in uses.items()
    }  # fmt: skip
    before = json.loads(folder.rewards.read_text(encoding="utf-8")) if resume and folder.rewards.is_file() else {}
    other = [key for key, own in found.items() if key in before and before[key]["sha256"] != own["sha256"]]
    if other:
        raise RunError(
            f"{', '.join(other)}: the code, the options or the weights are not those the run began with (see {folder.rewards}), so "
            "its scores would not compare; start another run, or delete that file to go on all the same"
        )
    write_json(folder.rewards, found)


def _rewards(resolved: Resolved) -> dict[str, dict[str, Use]]:
    """The rewards by the place where the config names them."""
    found = {
        f"stages.{stage.name}.rewards": stage.rewards for stage in resolved.stages if isinstance(stage, ResolvedDraws)
    }
    if resolved.evaluation is not None:
        found["evaluation.rewards"] = resolved.evaluation.rewards
    return found


def _agree_on_folder(resolved: Resolved, resume: bool, group: Group) -> Path:
    path: Path | None = None
    problem: Exception | None = None
    if group.main:
        try:
            path = choose_folder(resolved, resume)
        except (UserError, OSError) as error:
            problem = error
    group.raise_together(problem)
    return group.broadcast(path)


def _report(folder: RunFolder, tracking: Tracking) -> None:
    """Write the report, also of a run that failed; that there is no room for it must not hide why the run stopped."""
    try:
        tracking.say(f"report: {write_report(folder).absolute()}")
    except OSError as error:
        tracking.say(f"no report: {error}")


def _open(folder: RunFolder, settings: dict[str, Any], resume: bool, seed: int, group: Group) -> IO[str] | None:
    """Lock the folder, then fill it, or check that what is resumed is the same run. Rank 0 acts and holds the lock; every
    rank learns of a problem."""
    problem: Exception | None = None
    held: IO[str] | None = None
    if group.main:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            held = folder.lock()
            if resume:
                _same_run(folder, differences(folder.config, settings))
            else:
                _refuse_started(folder)  # by a run that began and ended while this one loaded its weights
                folder.create(settings, provenance.collect(settings, seed, group.world))
        except (UserError, OSError) as error:
            problem = error
    group.raise_together(problem)
    return held


def _same_run(folder: RunFolder, changed: Sequence[tuple[str, Any, Any]]) -> None:
    if changed:
        shown = "; ".join(f"{key}: was {old!r}, is {new!r}" for key, old, new in changed[:5])
        raise RunError(f"{folder.path} was started with another config, so resuming would be neither run ({shown})")


def trained_policy(run: Path, device: str = "auto") -> tuple[Resolved, Policy, str]:
    """The policy of a run's newest checkpoint, moving average applied. Returns (resolved, policy, checkpoint name)."""
    folder = open_run(run)
    found = checkpoint.complete(folder.checkpoints)
    if not found:
        raise UserError(
            f"{run} has no checkpoint yet; let it train to its first one (checkpoint.every in its config.yaml)"
        )
    tensors, saved = checkpoint.load(found[-1])
    resolved = load(str(folder.config), read_data=False)
    group = Group(device)
    policy = resolved.policy
    policy.load(group.device)
    policy.prepare(resolved.stages[saved["train"]["stage"]].train, False)
    restore_weights(policy, tensors, averaged=True)
    return resolved, policy, found[-1].name

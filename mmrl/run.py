"""One training run from a config, and a finished run's policy for those who come after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from mmrl import checkpoint, provenance
from mmrl.config.dump import differences, dump
from mmrl.config.resolve import Resolved, load
from mmrl.distributed import Group
from mmrl.errors import RunError, UserError
from mmrl.folder import RunFolder, next_free, open_run
from mmrl.policy import Policy
from mmrl.report.html import write_report
from mmrl.tracking import Tracking
from mmrl.trainer import Interrupted, Trainer, restore_weights


def choose_folder(resolved: Resolved, resume: bool) -> Path:
    """`run.dir`, or the next free `runs/NAME/001`; with `resume`, the newest one there."""
    run = resolved.config.run
    if run.dir is not None:
        folder = Path(run.dir)
        if not resume and RunFolder(folder).config.exists():
            raise UserError(f"{folder} holds a run already; continue it with --resume, or choose another run.dir=PATH")
        return folder
    root = Path("runs") / (run.name or resolved.source.name)
    found = next_free(root)
    if not resume:
        return found
    last = root / f"{int(found.name) - 1:03d}"
    if not RunFolder(last).config.exists():
        raise UserError(f"nothing to resume: no run in {root.absolute()}; name its folder with run.dir=PATH")
    return last


def train(config: str, overrides: Sequence[str], resume: bool) -> Path:
    """Run (or continue) a config in this process, which may be one of several. Returns the run's folder."""
    resolved = load(config, overrides)
    run = resolved.config.run
    group = Group(run.device, run.num_processes, run.threads)
    try:
        path = group.broadcast(choose_folder(resolved, resume) if group.main else None)
        folder = RunFolder(path)
        torch.use_deterministic_algorithms(run.deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = (
            False  # a debugging aid that costs time at every allocation
        )
        settings = dump(resolved)
        held = _open(folder, settings, resume, run.seed, group)
        tracking = Tracking(folder, group, run.trackers, settings)
        tracking.say(f"run folder: {path.absolute()}")
        try:
            policy = resolved.policy
            policy.load(group.device)
            trainer = Trainer(resolved, policy, folder, group, tracking)
            if resume:
                trainer.resume()
            trainer.run()
        except Interrupted as stop:
            tracking.say(f"{stop}; continue with: mmrl train {config} --resume run.dir={path}")
            raise
        finally:
            tracking.close()
            if group.main and folder.metrics.exists():
                _report(folder, tracking)
            if held is not None:
                held.close()
        return path
    finally:
        group.close()


def _report(folder: RunFolder, tracking: Tracking) -> None:
    """Write the report, also of a run that failed; that there is no room for it must not hide why the run stopped."""
    try:
        tracking.say(f"report: {write_report(folder).absolute()}")
    except OSError as error:
        tracking.say(f"no report: {error}")


def _open(folder: RunFolder, settings: dict[str, Any], resume: bool, seed: int, group: Group) -> IO[str] | None:
    """Create the folder, or check that what is resumed is the same run, and lock it. Rank 0 acts and holds the lock; every
    rank learns of a problem."""
    problem: Exception | None = None
    held: IO[str] | None = None
    if group.main:
        try:
            if resume:
                _same_run(open_run(folder.path), settings)
            else:
                folder.create(settings, provenance.collect(settings, seed, group.world))
            held = folder.lock()
        except (UserError, OSError) as error:
            problem = error
    problem = group.broadcast(problem)
    if problem is not None:
        raise problem
    return held


def _same_run(folder: RunFolder, settings: dict[str, Any]) -> None:
    changed = differences(folder.config, settings)
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

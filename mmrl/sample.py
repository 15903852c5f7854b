"""Samples and exports of a trained run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mmrl.errors import UserError
from mmrl.rollout import Draw, Prompt
from mmrl.run import trained_policy


def draw(run: Path, prompts: Sequence[str], seed: int, num: int, out: Path) -> list[Path]:
    """Draw `num` samples per prompt, sample k from the noise of `seed + k`; returns the files written."""
    resolved, policy, checkpoint = trained_policy(run)
    if resolved.evaluation is None:
        raise UserError(
            f"{run} has no evaluation section in its config, so nothing says how to sample; add evaluation.sampling to the config"
        )
    draws = [
        Draw(Prompt(hashlib.sha256(text.encode()).hexdigest()[:12], text), group, member, seed + member, seed + member)
        for group, text in enumerate(prompts)
        for member in range(num)
    ]
    samples = policy.generate(draws, resolved.evaluation.plan)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for item, sample in zip(draws, samples, strict=True):
        stem = f"{checkpoint}_{item.prompt.id}_seed{item.seed}"
        if sample.images:
            path = out / f"{stem}.png"
            Image.fromarray(sample.images[0]).save(path)
        else:
            path = out / f"{stem}.txt"
            path.write_text(sample.text or "", encoding="utf-8")
        paths.append(path)
    return paths


def write_export(run: Path, to: str, out: Path) -> Path:
    """Write the trained policy in the format `to`. Raises UserError for a format its family does not have."""
    resolved, policy, _ = trained_policy(run)
    if to not in policy.exports:
        raise UserError(f"cannot export to '{to}'; this policy exports to: {', '.join(policy.exports)}")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty; remove it or choose another --out")
    plan = resolved.evaluation.plan if resolved.evaluation is not None else None
    return policy.export(out, to, plan)

"""Samples and exports of a trained run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmrl import components
from mmrl.animation import save_video
from mmrl.errors import UserError
from mmrl.evaluate import picture_of
from mmrl.folder import write_json
from mmrl.media import check_fit
from mmrl.report.grid import save_grid
from mmrl.rollout import Draw, Prompt, Sample
from mmrl.run import trained_policy

SHOWN = 48
"""Answers on one sheet."""
LONGEST = 120
"""Characters of a prompt's id and what stands around it in a file's name."""


def ask(texts: Sequence[str], media: Sequence[Path], file: Path | None) -> list[Prompt]:
    """The prompts of a command line: every text with all of the media, or those of a file (`.txt`: one per line, else
    JSON lines with text, media, id ...). Raises UserError for none, for a file that is not there and for what is no prompt.
    """
    if file is not None:
        if texts or media:
            raise UserError("--prompts brings its own texts and media; leave out --prompt and --media")
        name = "txt" if file.suffix == ".txt" else "jsonl"
        found: list[Prompt] = components.build("prompts", {"name": name, "path": str(file)}).load("all")
        return found
    if not texts:
        raise UserError("nothing to ask: give --prompt TEXT (and --media FILE), or --prompts FILE.jsonl")
    for path in media:
        if not path.is_file():
            what = "is a folder; expected a picture or a video" if path.is_dir() else "is no file"
            raise UserError(f"--media {path} {what}")
    shown = tuple(str(path.absolute()) for path in media)
    return [Prompt(_name(text, shown), text, shown) for text in texts]


def _name(text: str, media: Sequence[str]) -> str:
    """The first words of a text, and a few letters that tell it from others: for files and errors."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:32].rstrip("-")
    return f"{words}_{hashlib.sha256(repr((text, tuple(media))).encode()).hexdigest()[:6]}".lstrip("_")


def draw(run: Path, prompts: Sequence[Prompt], seed: int, num: int, out: Path) -> list[str]:
    """Draw `num` samples per prompt, sample k from the noise of `seed + k`; returns what there is to say: answers, and the
    files written.

    Raises UserError for media that the policy does not take or cannot read, and for a prompt that is too long for it.
    """
    resolved, policy, checkpoint = trained_policy(run)
    if resolved.evaluation is None:
        raise UserError(
            f"{run} has no evaluation section in its config, so nothing says how to sample; add evaluation.sampling to the config"
        )
    _check(policy, prompts, str(resolved.config.policy.name))
    draws = [
        Draw(prompt, group, member, seed + member, seed + member)
        for group, prompt in enumerate(prompts)
        for member in range(num)
    ]
    samples = policy.generate(draws, resolved.evaluation.plan)
    out.mkdir(parents=True, exist_ok=True)
    if all(sample.text is None for sample in samples):
        return _drawn(draws, samples, out, checkpoint)
    return _answers(draws, samples, out, checkpoint)


def _check(policy: Any, prompts: Sequence[Prompt], name: str) -> None:
    try:
        check_fit(prompts, policy, f"the policy of this run ({name})")
    except ValueError as error:
        raise UserError(str(error)) from None
    _, left_out = policy.fits(prompts)
    if left_out:
        named = ", ".join(f"{id} ({length} tokens)" for id, length in left_out.items())
        raise UserError(f"longer than policy.max_prompt_tokens: {named}; shorten the text or take smaller pictures")


def _file(name: str) -> str:
    """`name` as a file may be called; where that is not `name` itself, with a few letters that tell it from others of this look."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:LONGEST]
    return kept if kept == name else f"{kept}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _drawn(draws: Sequence[Draw], samples: Sequence[Sample], out: Path, checkpoint: str) -> list[str]:
    """Write every picture or video to a file of its own; of videos and of edits also a sheet with what was given."""
    said = []
    for item, sample in zip(draws, samples, strict=True):
        name = _file(f"{checkpoint}_{item.prompt.id}_seed{item.seed}")
        if sample.video is not None:
            said.append(str(save_video(out, name, sample.video, float(sample.meta["fps"]))))
            continue
        assert sample.images, f"prompt '{item.prompt.id}' has neither text nor an image nor a video"
        Image.fromarray(sample.images[0]).save(out / f"{name}.png")
        said.append(str(out / f"{name}.png"))
    if any(sample.video is not None or sample.prompt.media for sample in samples):
        said.append(_sheet(samples, out / f"{_together(draws, checkpoint)}_sheet.png"))
    return said


def _sheet(samples: Sequence[Sample], path: Path) -> str:
    """Write a sheet of the first samples, with what was asked about; its name, and how many of them are on it."""
    save_grid([picture_of(sample, {}) for sample in samples[:SHOWN]], path)
    return f"{path}" + (f" (the first {SHOWN} of {len(samples)})" if len(samples) > SHOWN else "")


def _together(draws: Sequence[Draw], checkpoint: str) -> str:
    """The name of a file about all of the draws."""
    ids = list(dict.fromkeys(item.prompt.id for item in draws))
    name = ids[0] if len(ids) == 1 else f"{len(ids)}-prompts_{hashlib.sha256(repr(ids).encode()).hexdigest()[:6]}"
    return _file(f"{checkpoint}_{name}_seed{draws[0].seed}")


def _answers(draws: Sequence[Draw], samples: Sequence[Sample], out: Path, checkpoint: str) -> list[str]:
    """Write all answers as JSON, and as a sheet with what was asked about; the answers themselves are what to say."""
    path = out / f"{_together(draws, checkpoint)}.json"
    said: list[str] = []
    for item, sample in zip(draws, samples, strict=True):
        prompt = item.prompt
        if item.member == 0:
            named = f"  [{', '.join(Path(one).name for one in prompt.media)}]" if prompt.media else ""
            said += ["", f"{prompt.text}{named}"]
        cut = "" if sample.meta.get("finished", True) else "  (cut off at max_new_tokens)"
        said.append(f"  seed {item.seed}: {sample.text}{cut}")
    write_json(path, [
        {"id": item.prompt.id, "prompt": item.prompt.text, "media": [str(one) for one in item.prompt.media],
         "seed": item.seed, "text": sample.text, **{key: sample.meta[key] for key in ("tokens", "finished") if key in sample.meta}}
        for item, sample in zip(draws, samples, strict=True)
    ])  # fmt: skip
    return [*said[1:], "", str(path), _sheet(samples, path.with_suffix(".png"))]


def write_export(run: Path, to: str, out: Path) -> Path:
    """Write the trained policy in the format `to`. Raises UserError for a format its family does not have."""
    resolved, policy, _ = trained_policy(run)
    if to not in policy.exports:
        raise UserError(f"cannot export to '{to}'; this policy exports to: {', '.join(policy.exports)}")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty; remove it or choose another --out")
    plan = resolved.evaluation.plan if resolved.evaluation is not None else None
    return policy.export(out, to, plan)

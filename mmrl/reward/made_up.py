"""Samples to try a reward on: whole ones, and broken ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mmrl.rollout import Prompt, Sample

ANSWERS = ("<think>One, two, three.</think><answer>3</answer>", "4", "I see three of them: \\boxed{3}")


def made_up(size: int = 24, target: Any = None, text: str | None = None) -> list[Sample]:
    """Two prompts of three samples; each has a text, a picture and a video of `size` x `size` pixels, and a prompt
    with a target and a picture of its own."""
    found = []
    for number in range(2):
        wanted = str(number + 3) if target is None else target
        source = np.random.default_rng([number, len(ANSWERS)]).integers(0, 256, (size, size, 3), dtype=np.uint8)
        prompt = Prompt(f"made-up-{number}", text or f"{number + 3} red circles", (source,), wanted)
        for member, answer in enumerate(ANSWERS):
            rng = np.random.default_rng([number, member])
            picture = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            video = rng.integers(0, 256, (4, size, size, 3), dtype=np.uint8)
            meta = {"fps": 8.0, "tokens": len(answer.split())}
            found.append(Sample(prompt, text=answer, images=(picture,), video=video, meta=meta))
    return found


def broken(sample: Sample) -> Iterator[tuple[str, str, Sample]]:
    """(what is broken, how, the sample) for pictures and videos that are none."""
    grey, empty = np.zeros((8, 8), dtype=np.uint8), np.zeros((0, 0, 3), dtype=np.uint8)
    if sample.images:
        for what, image in (("no picture (None)", None), ("a picture (H, W)", grey), ("a picture of no pixels", empty)):
            yield "image", what, replace(sample, images=(image,))  # type: ignore[arg-type]
    if sample.video is not None:
        for what, video in (("a video (H, W)", grey), ("a video of no frames", empty[None][:0])):
            yield "video", what, replace(sample, video=video)


def digest(sample: Sample) -> str:
    """A hash of what a reward may look at and must not change: prompt, text, pictures, video."""
    found = hashlib.sha256(repr((sample.prompt.id, sample.prompt.text, sample.prompt.target, sample.text)).encode())
    for array in (*sample.prompt.media, *sample.images, sample.video):
        if isinstance(array, np.ndarray):
            found.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            found.update(repr(array).encode())
    return found.hexdigest()

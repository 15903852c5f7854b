"""Is the quoted text of the prompt written in the picture? Read by rapidocr (extra `ocr`), compared by edit distance."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field, PrivateAttr

from mmrl.errors import UserError
from mmrl.reward import Need, Reward, rgb
from mmrl.rewards.verifiable.edits import edit_distance
from mmrl.rollout import Prompt, Sample

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»')


def quoted(prompt: str) -> list[str]:
    """The texts between double quotes (straight, curly, low or angle) in order; blank ones are left out."""
    found = ["".join(match) for match in QUOTED.findall(prompt)]
    return [text for text in found if text.strip()]


def plain(text: str) -> str:
    """Compared form: NFKC, lower case, without any white space."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def written(read: str, wanted: str, containment: bool = True) -> float:
    """`1 - min(d, n) / n` with n the length of `wanted` and d the edit distance, 0 where `wanted` is contained in `read`.

    Source: Flow-GRPO `ocr.py`. Raises ValueError for a text of blanks.
    """
    read, wanted = plain(read), plain(wanted)
    if not wanted:
        raise ValueError("the text to be written is empty")
    if containment and wanted in read:
        return 1.0
    return 1 - min(edit_distance(read, wanted), len(wanted)) / len(wanted)


def all_written(read: str, wanted: Sequence[str], containment: bool = True) -> float:
    """`written` of one text in all that is read; of several the mean, each in the neighbouring lines that fit it best, so that they
    do not stand in each other's way."""
    if len(wanted) == 1:
        return written(read, wanted[0], containment)
    return float(np.mean([_best(read, text, containment) for text in wanted]))


def _best(read: str, wanted: str, containment: bool) -> float:
    """The largest `written` over all runs of neighbouring lines."""
    found = written(read, wanted, containment)
    lines, enough = read.split("\n"), 2 * len(plain(wanted))
    for start in range(len(lines)):
        for end in range(start + 1, len(lines) + 1):
            run = "\n".join(lines[start:end])
            found = max(found, written(run, wanted, containment))
            if len(plain(run)) >= enough:  # a longer run is too far off to count
                break
    return found


def asked(prompt: Prompt) -> list[str]:
    """The texts to be written: the prompt's target where it is a text, or what stands in quotes. Raises ValueError for none."""
    target = prompt.target
    texts = [target] if isinstance(target, str) and plain(target) else quoted(prompt.text)
    if not texts:
        raise ValueError(f"prompt '{prompt.id}' has no text in double quotes, and no target text")
    return texts


class Ocr(Reward):
    """How much of the text in quotes can be read in the picture, or in every `every`-th frame of the video; mean over several texts.

    The text is that in double quotes in the prompt, or the prompt's target where it is a text. `containment: false` does not
    forgive other text around it (with containment a wall of text that contains the wanted one scores 1); several texts are each
    looked for in the lines that fit best.
    """

    takes = "image or video"
    range = (0.0, 1.0)
    licence = "Apache-2.0 (rapidocr and its models)"
    containment: bool = True
    """Other text around the wanted one costs nothing."""
    every: int = Field(default=4, ge=1)
    """Videos: one of so many frames is read, the score is the mean."""
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    """Lines that are read with less are left out."""

    _engine: Any = PrivateAttr(default=None)

    def inputs(self) -> tuple[Need, ...]:
        return ()

    def setup(self, device: torch.device) -> None:
        """Load rapidocr's models, which come with the package. Raises UserError without the extra."""
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise UserError("reward ocr needs rapidocr: pip install 'mmrl[ocr]'") from error
        # by itself it leaves out lines of less than 0.5, turns what stands on its head, and warns of every picture without text
        own = {"Global.text_score": self.min_confidence, "Global.use_cls": False, "Global.log_level": "error"}
        self._engine = RapidOCR(params=own)

    def read(self, image: np.ndarray) -> str:
        """All lines of a uint8 RGB picture, from top to bottom, joined by line breaks."""
        found = self._engine(np.ascontiguousarray(image[..., ::-1]))  # it takes BGR
        return "\n".join(found.txts or ())

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """None for a sample without picture and video. Raises ValueError for a prompt without a text to write."""
        return [self._score(sample) for sample in samples]

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError for a prompt without a text to write."""
        asked(prompt)

    def _score(self, sample: Sample) -> float | None:
        texts = asked(sample.prompt)
        frames = list(sample.images) if sample.video is None else list(sample.video[:: self.every])
        if not frames:
            return None
        return float(np.mean([all_written(self.read(rgb(np.asarray(one))), texts, self.containment) for one in frames]))

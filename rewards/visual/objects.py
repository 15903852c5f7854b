"""The GenEval reward: a detector, colours by CLIP, and the benchmark's rule (see `geneval.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from mmrl.reward import Graded, Reward, rgb
from mmrl.rewards.preference.clip import ClipScore
from mmrl.rewards.preference.pixels import floats
from mmrl.rewards.visual.detector import Detection, Detector, load_detector
from mmrl.rewards.visual.geneval import Found, Relation, iou, judge
from mmrl.rollout import Prompt, Sample

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {kind}", "a photo of a {color}-colored {kind}", "a photo of a {color} object")
GREY = 0x99
RELATIONS = get_args(Relation)


class GenEval(Reward):
    """Are the objects of the prompt's target there, in number, colour and place? Target: a GenEval metadata row (`include`, `exclude`).

    `mode`: `correct` is the benchmark's rule, `strict` asks for exactly n, `score` is the share of checks that hold. The detector
    is transformers' Mask2Former, not the benchmark's mmdet one: label results `geneval-hf`, and do not mix them.
    """

    range = (0.0, 1.0)
    needs = ("image", "target")
    licence = "MIT (GenEval); weights: unknown"
    mode: Literal["correct", "strict", "score"] = "score"
    """`correct`: the benchmark's rule; `strict`: exactly the asked number; `score`: the share of checks that hold."""
    detector: Literal["mask2former", "owlv2"] = "mask2former"
    """What finds the objects; `owlv2` needs a `path`."""
    path: str = "facebook/mask2former-swin-small-coco-instance"
    """Hub id or folder of the detector."""
    hub_revision: str | None = None
    """Branch, tag or commit of a hub id in `path`."""
    clip: str = "openai/clip-vit-large-patch14"
    """Hub id or folder of the CLIP that names colours."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Objects count of which the detector is surer."""
    counting_threshold: float = Field(default=0.9, ge=0, le=1)
    """As `threshold`, for rows whose tag is counting."""
    most: int = Field(default=16, ge=1)
    """Objects of a class that are looked at."""
    max_overlap: float = Field(default=1.0, gt=0, le=1)
    """An object whose box has this IoU or more with that of a surer one of its class is taken for the same; 1: never."""

    _detector: Any = PrivateAttr(default=None)
    _clip: Any = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _path_fits(self) -> GenEval:
        if self.detector == "owlv2" and self.path == type(self).model_fields["path"].default:
            raise ValueError(
                f"path: '{self.path}' is no owlv2; name one, for example google/owlv2-base-patch16-ensemble"
            )
        return self

    def setup(self, device: torch.device) -> None:
        """Load detector and CLIP."""
        self._detector = self.load_detector(device)
        self._clip = ClipScore(path=self.clip)
        self._clip.setup(device)

    def load_detector(self, device: torch.device) -> Detector:
        """What finds the objects; another detector is a subclass that returns its own."""
        return load_detector(self.detector, self.path, self.hub_revision, self.threshold, device)

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """Several pictures of a sample are averaged. Raises ValueError for a target that is no row, or a class nobody knows."""
        found: list[Any] = []
        for sample in samples:
            row = self._row(sample.prompt)
            verdicts = [self._verdict(rgb(image), row) for image in sample.images]
            value = float(np.mean([float(getattr(one, self.mode)) for one in verdicts]))
            found.append(Graded(value, "right" if all(one.correct for one in verdicts) else "wrong"))
        return found

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError for a target that is no GenEval row."""
        if prompt.target is not None:
            self._row(prompt)

    def _row(self, prompt: Prompt) -> Mapping[str, Any]:
        row = prompt.target
        if not isinstance(row, Mapping) or not (row.get("include") or row.get("exclude")):
            raise ValueError(f"the target of prompt '{prompt.id}' is no GenEval row (include, exclude)")
        for clause in (*row.get("include", ()), *row.get("exclude", ())):
            count = clause.get("count") if isinstance(clause, Mapping) and "class" in clause else None
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(
                    f"the target of prompt '{prompt.id}' has a clause without class and count (1 or more): {clause}"
                )
        for number, clause in enumerate(row.get("include", ())):
            color, position = clause.get("color"), clause.get("position")
            if color is not None and color not in COLORS:
                raise ValueError(
                    f"the target of prompt '{prompt.id}' asks for color {color!r}; there is: {', '.join(COLORS)}"
                )
            if position is not None and not _is_position(position, number):
                raise ValueError(
                    f"the target of prompt '{prompt.id}' has position {position!r}; expected one of {', '.join(RELATIONS)}, and the "
                    f"index of an earlier clause"
                )
        return row

    def _verdict(self, picture: np.ndarray, row: Mapping[str, Any]) -> Any:
        clauses = [*row.get("include", ()), *row.get("exclude", ())]
        kinds = list(dict.fromkeys(str(clause["class"]) for clause in clauses))
        colored = {str(clause["class"]) for clause in clauses if clause.get("color")}
        least = self.counting_threshold if row.get("tag") == "counting" else self.threshold
        objects: dict[str, list[Found]] = {kind: [] for kind in kinds}
        for one in self._detector.detect([picture], [kinds])[0]:
            if one.kind not in objects or one.score <= least or len(objects[one.kind]) == self.most:
                continue
            if self.max_overlap < 1 and any(iou(one.box, o.box) >= self.max_overlap for o in objects[one.kind]):
                continue
            color = self._color(picture, one) if one.kind in colored else None
            objects[one.kind].append(Found(one.box, color))
        return judge(objects, row)

    @torch.inference_mode()
    def _color(self, picture: np.ndarray, one: Detection) -> str:
        """The colour whose captions fit the object best, what is around it being grey."""
        (height, width), (x0, y0, x1, y1) = picture.shape[:2], (max(0, round(side)) for side in one.box)
        x0, y0 = min(x0, width - 1), min(y0, height - 1)
        part = slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))  # a pixel at least
        crop = picture[part]
        if one.mask is not None:
            crop = np.where(one.mask[part][..., None], crop, np.uint8(GREY))
        image = self._clip.picture_features(floats([crop], self._clip._device))
        text = torch.stack([self._captions(color, one.kind) for color in COLORS])
        return COLORS[int((image @ text.T).argmax())]

    def _captions(self, color: str, kind: str) -> Tensor:
        texts = [template.format(color=color, kind=kind) for template in TEMPLATES]
        return normalize(self._clip.text_features(texts).mean(0), dim=0)


def _is_position(found: Any, number: int) -> bool:
    """A relation, and the index of a clause before clause `number`."""
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != 2 or found[0] not in RELATIONS:
        return False
    return isinstance(found[1], int) and not isinstance(found[1], bool) and 0 <= found[1] < number

"""What is in a picture: the detector protocol, and detectors from transformers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from mmrl.errors import UserError
from mmrl.rewards.preference.base import pretrained

OTHER_NAMES = {
    "computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard", "motorcycle": "motorbike",
    "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant", "dining table": "diningtable", "tv": "tvmonitor",
}  # fmt: skip
"""GenEval's names of COCO classes, and what else checkpoints call them."""


class Detection(NamedTuple):
    """An object: class name, box (x0, y0, x1, y1) in pixels (its right and lower edge outside), how sure, and its mask `(H, W)`
    bool where there is one."""

    kind: str
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


class Detector(Protocol):
    """Finds objects of the named classes, the surest first."""

    def detect(self, pictures: Sequence[np.ndarray], kinds: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Objects of each uint8 RGB picture; `kinds` are the classes that are asked for in it. Raises ValueError for a class
        that the detector does not know."""
        ...


class Mask2Former:
    """Instance segmentation with fixed classes (COCO): `Mask2FormerForUniversalSegmentation`. Classes go by GenEval's names too."""

    def __init__(self, path: str, revision: str | None, threshold: float, device: torch.device) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        self.threshold, self.device = threshold, device
        self.model = pretrained(
            Mask2FormerForUniversalSegmentation, path, revision, torch.float32, allowed=("relative_position_index",)
        )
        self.model.to(device).eval().requires_grad_(False)
        self.processor = AutoImageProcessor.from_pretrained(path, revision=revision)
        self.names = {int(key): str(name) for key, name in self.model.config.id2label.items()}
        own = set(self.names.values())
        asked = {OTHER_NAMES[kind]: kind for kind in OTHER_NAMES if kind not in own and OTHER_NAMES[kind] in own}
        self.names = {key: asked.get(name, name) for key, name in self.names.items()}

    def detect(self, pictures: Sequence[np.ndarray], kinds: Sequence[Sequence[str]]) -> list[list[Detection]]:
        known = set(self.names.values())
        for kind in {one for some in kinds for one in some} - known:
            raise ValueError(f"the detector does not know '{kind}'")
        found = []
        for picture in pictures:  # one at a time: padding to a common size would change what is seen
            inputs = self.processor(images=Image.fromarray(picture), return_tensors="pt").to(self.device)
            with torch.inference_mode():
                output = self.model(**inputs)
            (one,) = self.processor.post_process_instance_segmentation(
                output, threshold=self.threshold, target_sizes=[picture.shape[:2]], return_binary_maps=True
            )
            found.append(self._objects(one))
        return found

    def _objects(self, result: dict[str, Any]) -> list[Detection]:
        maps = result["segmentation"]
        objects = []
        for segment in result["segments_info"]:
            mask = maps[segment["id"]].bool().cpu().numpy()
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            objects.append(Detection(self.names[segment["label_id"]], box, float(segment["score"]), mask))
        return sorted(objects, key=lambda one: -one.score)


class Owl:
    """Boxes of any named classes: `Owlv2ForObjectDetection`."""

    def __init__(self, path: str, revision: str | None, threshold: float, device: torch.device) -> None:
        from transformers import AutoProcessor, Owlv2ForObjectDetection

        self.threshold, self.device = threshold, device
        self.model = pretrained(Owlv2ForObjectDetection, path, revision, torch.float32, allowed=("position_ids",))
        self.model.to(device).eval().requires_grad_(False)
        self.processor = AutoProcessor.from_pretrained(path, revision=revision)

    def detect(self, pictures: Sequence[np.ndarray], kinds: Sequence[Sequence[str]]) -> list[list[Detection]]:
        found = []
        for picture, names in zip(pictures, kinds, strict=True):
            asked = [f"a photo of a {name}" for name in names]
            inputs = self.processor(text=[asked], images=Image.fromarray(picture), return_tensors="pt").to(self.device)
            with torch.inference_mode():
                output = self.model(**inputs)
            (one,) = self.processor.post_process_grounded_object_detection(
                output, threshold=self.threshold, target_sizes=[picture.shape[:2]]
            )
            height, width = picture.shape[:2]
            boxes = one["boxes"].cpu().numpy().clip(0, [width, height, width, height]).tolist()
            objects = [
                Detection(names[int(label)], (x0, y0, x1, y1), float(score))
                for (x0, y0, x1, y1), score, label in zip(boxes, one["scores"], one["labels"], strict=True)
                if x0 < x1 and y0 < y1  # else it lies in the padding that makes the picture square
            ]
            found.append(sorted(objects, key=lambda item: -item.score))
        return found


KINDS: dict[str, Any] = {"mask2former": Mask2Former, "owlv2": Owl}


def load_detector(kind: str, path: str, revision: str | None, threshold: float, device: torch.device) -> Detector:
    """A detector by its name. Raises UserError for another name, or when its weights cannot be loaded."""
    if kind not in KINDS:
        raise UserError(f"no detector '{kind}'; there is: {', '.join(KINDS)}")
    return KINDS[kind](path, revision, threshold, device)

"""What is in a picture, and does it fit the caption.

Colour distances are Euclidean on the scale [-1, 1] per channel (`world.unit`), positions are pixels, x to the right
and y down. Three judgements, from soft to hard:

    dense   partial credit in [0, 1]; 1 only for an exact picture
    exact   exactly the described objects and no others (tolerance .9: forgives faint noise and specks under 4 px)
    strict  exact at tolerance .5, and nothing but clean background around the objects; meant for evaluation only,
            never as a training reward
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mmrl.data.shapes.captions import Target, wanted
from mmrl.data.shapes.world import BACKGROUND, COLORS, GLYPHS, PALETTE, SHAPES, unit

TOLERANCE = 0.9
STRICT_TOLERANCE = 0.5
MIN_PIXELS = 4
MIN_IOU = 0.75
MIN_OFFSET = 4.0
"""How many pixels the centre of "a" must lie left of, or above, the centre of "b"."""
COLOR_ONLY, SHAPE_ONLY, RELATION = 0.5, 0.25, 0.4
"""Dense credit: an object with only its colour or only its shape right; the share of a relation in its caption."""

_WINDOW = 13
_ANCHORS = unit(np.array([BACKGROUND, *PALETTE.values()]))
_IN_PLANE = np.zeros((3, 3, 3, 3), dtype=bool)
_IN_PLANE[1, 1, 1, :] = _IN_PLANE[1, 1, :, 1] = True


@dataclass(frozen=True)
class Found:
    """One connected component: colour, shape (None if no glyph fits), centre of its box, pixels, IoU with the shape."""

    color: str
    shape: str | None
    x: float
    y: float
    pixels: int
    iou: float


def _template_bank() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Glyphs at 5 x 5 shifts around the middle of a window: masks (n, window ** 2), areas (n,), shape index (n,)."""
    masks, areas, owner = [], [], []
    for index, glyph in enumerate(GLYPHS.values()):
        height, width = glyph.shape
        for shift_y in range(-2, 3):
            for shift_x in range(-2, 3):
                mask = np.zeros((_WINDOW, _WINDOW), dtype=np.float32)
                top, left = (_WINDOW - height) // 2 + shift_y, (_WINDOW - width) // 2 + shift_x
                mask[top : top + height, left : left + width] = glyph
                masks.append(mask.ravel())
                areas.append(glyph.sum())
                owner.append(index)
    return np.stack(masks), np.array(areas, dtype=np.float32), np.array(owner)


_MASKS, _AREAS, _OWNER = _template_bank()


def _nearest(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest anchor (0 background, 1.. palette) of every pixel and the distance to it, both (..., H, W)."""
    pixels = unit(images)
    square = np.maximum(
        (pixels**2).sum(-1, keepdims=True) - 2 * pixels @ _ANCHORS.T + (_ANCHORS**2).sum(-1), np.float32(0)
    )
    nearest = square.argmin(-1)
    return nearest, np.sqrt(np.take_along_axis(square, nearest[..., None], -1)[..., 0])


def _components(images: np.ndarray, tolerance: float) -> tuple[list[list[Found]], np.ndarray]:
    """Objects of every picture of a uint8 batch (B, H, W, 3), and the mask (B, H, W) of the pixels they cover."""
    nearest, distance = _nearest(images)
    planes = (nearest[:, None] == np.arange(1, len(COLORS) + 1)[:, None, None]) & (distance <= tolerance)[:, None]
    labels, count = ndimage.label(planes, structure=_IN_PLANE)
    found: list[list[Found]] = [[] for _ in images]
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [
        (index, box) for index, box in enumerate(ndimage.find_objects(labels), start=1) if areas[index] >= MIN_PIXELS
    ]
    if not kept:
        return found, np.zeros(nearest.shape, dtype=bool)
    half = _WINDOW // 2
    padded = np.pad(labels, ((0, 0), (0, 0), (half, half), (half, half)))
    windows = np.empty((len(kept), _WINDOW * _WINDOW), dtype=np.float32)
    for row, (index, (batch, color, rows, columns)) in enumerate(kept):
        top, left = (rows.start + rows.stop - 1) // 2, (columns.start + columns.stop - 1) // 2
        patch = padded[batch.start, color.start, top : top + _WINDOW, left : left + _WINDOW]
        windows[row] = (patch == index).ravel()
    overlap = windows @ _MASKS.T
    pixels = areas[[index for index, _ in kept]].astype(np.float32)
    iou = overlap / (pixels[:, None] + _AREAS - overlap)
    best = iou.argmax(-1)
    for row, (index, (batch, color, rows, columns)) in enumerate(kept):
        score = float(iou[row, best[row]])
        shape = SHAPES[_OWNER[best[row]]] if score >= MIN_IOU else None
        x, y = (columns.start + columns.stop - 1) / 2, (rows.start + rows.stop - 1) / 2
        found[batch.start].append(Found(COLORS[color.start], shape, x, y, int(areas[index]), score))
    covered = ((areas >= MIN_PIXELS) & (np.arange(count + 1) > 0))[labels].any(axis=1)
    return found, covered


def detect_batch(images: np.ndarray, tolerance: float = TOLERANCE) -> list[list[Found]]:
    """Objects of every picture of a uint8 batch (B, H, W, 3): several thousand pictures per second."""
    return _components(images, tolerance)[0]


def detect(image: np.ndarray, tolerance: float = TOLERANCE) -> list[Found]:
    """Objects of one uint8 picture (H, W, 3): 4-connected components of pixels of one palette colour."""
    return detect_batch(image[None], tolerance)[0]


def _holds(relation: str, a: Found, b: Found) -> bool:
    return (b.x - a.x if relation == "left of" else b.y - a.y) >= MIN_OFFSET


def exact(found: Sequence[Found], target: Target) -> bool:
    """Whether the picture shows exactly what the target describes and nothing else."""
    things = wanted(target)
    if sorted(things) != sorted((item.color, item.shape or "") for item in found):
        return False
    if target["kind"] == "count":
        return True
    first = [(item.color, item.shape) for item in found].index(things[0])
    return _holds(target["relation"], found[first], found[1 - first])


def pairing(found: Sequence[Found], things: Sequence[tuple[str, str]]) -> tuple[float, dict[int, Found]]:
    """Credit in [0, 1] for the (colour, shape) of the wanted things, and the found objects that are right in both.

    Every wanted thing is paired with at most one found object (right in both respects first, then colour, then
    shape). The credit is divided by the number of things wanted plus those left over, so what was not asked for costs.
    """
    free, open_things, credit = list(found), list(range(len(things))), 0.0
    pair: dict[int, Found] = {}
    for level in (1.0, COLOR_ONLY, SHAPE_ONLY):
        for index in list(open_things):
            color, shape = things[index]
            fits = [
                item
                for item in free
                if (level == SHAPE_ONLY or item.color == color) and (level == COLOR_ONLY or item.shape == shape)
            ]
            if fits:
                credit += level
                free.remove(fits[0])
                open_things.remove(index)
                if level == 1.0:
                    pair[index] = fits[0]
    return credit / max(len(things), len(found)), pair


def dense(found: Sequence[Found], target: Target) -> float:
    """Partial credit in [0, 1]: that of `pairing`; in a relation this makes up 1 - RELATION of the score, the rest is for
    both objects standing as told."""
    things = wanted(target)
    score, pair = pairing(found, things)
    if target["kind"] == "count":
        return score
    stands = len(pair) == 2 and _holds(target["relation"], pair[0], pair[1])
    return (1 - RELATION) * score + RELATION * stands * len(things) / max(len(things), len(found))


def detect_strictly(images: np.ndarray) -> tuple[list[list[Found]], np.ndarray]:
    """Objects of a uint8 batch (B, H, W, 3) at tolerance .5, and which pictures `(B,)` have a pixel further than 1 px from
    an object that is no clean background (within .5)."""
    found, covered = _components(images, STRICT_TOLERANCE)
    around = ndimage.binary_dilation(covered, structure=np.ones((1, 3, 3), dtype=bool))
    lit = np.linalg.norm(unit(images) - _ANCHORS[0], axis=-1) > STRICT_TOLERANCE
    return found, (lit & ~around).any(axis=(1, 2))


def strict_batch(images: np.ndarray, targets: Sequence[Target]) -> list[bool]:
    """`strict` for every picture of a uint8 batch (B, H, W, 3)."""
    found, dirty = detect_strictly(images)
    return [exact(f, target) and not bool(d) for f, target, d in zip(found, targets, dirty, strict=True)]


def strict(image: np.ndarray, target: Target) -> bool:
    """Exact at tolerance .5, and every pixel further than 1 px from an object is clean background (within .5).

    The ring of 1 px is for soft edges. For evaluation only: a policy must never be trained on it.
    """
    return strict_batch(image[None], [target])[0]


def palette_distance(image: np.ndarray) -> float:
    """Mean distance of the pixels of one or more uint8 pictures (..., H, W, 3) to their nearest palette colour.

    The background counts as a palette colour; 0 for a drawn picture, on the scale [-1, 1] per channel.
    """
    return float(_nearest(image)[1].mean())

"""Contact sheets: the samples of one evaluation in one PNG, each over its prompt and marked with its verdict. What the prompt
shows stands above a written answer and left of a drawn picture; of a video there are some frames.

The boxes of the drawn pictures are kept inside the PNG, so that a report can cut them out again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mmrl.tiles import FAINT, PAPER, Tile, beside, draw_row, flow, groups_of, mosaic, row_height

if TYPE_CHECKING:
    from mmrl.evaluate import Picture

VERDICTS = ("strict", "exact", "right", "correct", "accuracy")
"""Rewards that decide whether a sample is right, the first one present wins."""
BOXES = "mmrl:boxes"
"""The PNG text entry with `[x, y, width, height, enlargement]` per picture, or null for a text or a video."""
SMALL, LARGE, TEXT_WIDTH, VIDEO_WIDTH = 144, 256, 240, 320
GAP, BORDER, LINE = 14, 3, 15
INK = "#1f2328"
COLOURS = {"right": "#1a7f37", "wrong": "#c62f2f", "partly": "#b57d00", "open": "#b8bec5"}

State = Literal["right", "wrong", "partly", "open"]


@dataclass(frozen=True)
class Verdict:
    """`right` and `wrong` come from a reward that decides (`by`), `partly` lies between, `open` is undecided."""

    state: State
    label: str
    by: str = ""

    @property
    def words(self) -> str:
        """What to say beside the mark."""
        return self.state if self.state in ("right", "wrong") else self.label


@dataclass(frozen=True)
class Cell:
    """One entry of the sheet, laid out: what stands above (what the prompt shows), an image or lines of text, lines of the
    prompt and of the right answer, and the verdict. `box` is the drawn picture inside the image, and its enlargement."""

    media: list[list[Tile]]
    image: Image.Image | None
    box: tuple[int, int, int, int, int] | None
    text: list[str]
    caption: list[str]
    answer: list[str]
    verdict: Verdict


def verdict(rewards: Mapping[str, float | None]) -> Verdict:
    """What a picture's rewards say: right or wrong by a deciding reward in [0, 1], else the first values as numbers."""
    for name in VERDICTS:
        value = rewards.get(name)
        if value is None or not 0 <= value <= 1:
            continue
        state: State = "right" if value > 1 - 1e-6 else "wrong" if value < 1e-6 else "partly"
        return Verdict(state, name if state != "partly" else f"{name} {value:.2f}", name)
    shown = [f"{name} {'not scored' if value is None else f'{value:.3g}'}" for name, value in rewards.items()]
    return Verdict("open", ", ".join(shown[:2]))


def save_grid(pictures: Sequence[Picture], path: Path) -> None:
    """Write the contact sheet of `pictures` to `path` as PNG. Replaces it in one step."""
    font, bold = ImageFont.load_default(12), ImageFont.load_default(13)
    images = [_body(picture) for picture in pictures]
    width = max((image.width for image, _ in images if image is not None), default=TEXT_WIDTH)
    if any(p.text or p.media for p in pictures):
        width = max(width, TEXT_WIDTH)
    cells = []
    for picture, (image, box) in zip(pictures, images, strict=True):
        above = flow(picture.media, width) if image is None else []
        text = _shortened(wrap(picture.text or "", font, width - 12, 10**6))
        right = wrap(f"right: {picture.answer}", font, width, 1) if picture.answer is not None else []
        caption = wrap(picture.prompt, bold, width, 3 if not picture.media else 5)
        cells.append(Cell(above, image, box, text, caption, right, verdict(picture.rewards)))
    sheet, boxes = _draw(cells, width, font, bold)
    info = PngInfo()
    info.add_text(BOXES, json.dumps(boxes))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    sheet.save(temporary, format="PNG", pnginfo=info, optimize=True)
    temporary.replace(path)


def cut_grid(path: Path) -> list[Image.Image | None] | None:
    """The pictures of a sheet written by `save_grid` (None for a text), small ones in their own size.

    None if `path` is another PNG.
    """
    with Image.open(path) as sheet:
        written = sheet.info.get(BOXES)
        if written is None:
            return None
        cut: list[Image.Image | None] = []
        for box in json.loads(written):
            if box is None:
                cut.append(None)
                continue
            x, y, width, height, factor = box
            image = sheet.crop((x, y, x + width, y + height)).convert("RGB")
            cut.append(image.resize((width // factor, height // factor), Image.Resampling.NEAREST))
        return cut


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int) -> list[str]:
    """`text` as at most `most` lines of at most `width` pixels; a cut is shown by an ellipsis."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while word:
                joined = f"{line} {word}".strip()
                if font.getlength(joined) <= width:
                    line, word = joined, ""
                elif line:
                    lines.append(line)
                    line = ""
                else:
                    fits = max(1, sum(font.getlength(word[: end + 1]) <= width for end in range(len(word))))
                    lines.append(word[:fits])
                    word = word[fits:]
        if line:
            lines.append(line)
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + "..."]
    return lines


def _shortened(lines: list[str]) -> list[str]:
    """At most 12 lines, without the middle of a long text: an answer stands at the end."""
    return lines if len(lines) <= 12 else [*lines[:5], "...", *lines[-6:]]


def _body(picture: Picture) -> tuple[Image.Image | None, tuple[int, int, int, int, int] | None]:
    """The image of a sample, with what its prompt shows, and the box of what was drawn; of a video frames without a box."""
    if picture.video is not None:
        return mosaic(flow(beside(picture.media, groups_of([picture.video], picture.fps)), VIDEO_WIDTH)), None
    if picture.image is None:
        return None, None
    image, factor = _resize(Image.fromarray(picture.image).convert("RGB"))
    if not picture.media:
        return image, (0, 0, *image.size, factor)
    (row,) = beside([[_as_high(tile, image.height)] for tiles in picture.media for tile in tiles], [[Tile(image)]])
    whole = mosaic([row])
    return whole, (whole.width - image.width, 0, *image.size, factor)


def _as_high(tile: Tile, height: int) -> Tile:
    """The picture of a tile, without its word, in another height."""
    image = tile.image
    how = Image.Resampling.NEAREST if height % image.height == 0 else Image.Resampling.LANCZOS
    return Tile(image.resize((max(1, round(image.width * height / image.height)), height), how))


def _resize(image: Image.Image) -> tuple[Image.Image, int]:
    """Small images grow by a whole factor without smoothing, large ones shrink."""
    side = max(image.size)
    if side * 2 <= SMALL:
        factor = SMALL // side
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST), factor
    if side > LARGE:
        size = (max(1, round(image.width * LARGE / side)), max(1, round(image.height * LARGE / side)))
        return image.resize(size, Image.Resampling.LANCZOS), 1
    return image, 1


def _draw(
    cells: Sequence[Cell], width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    bold: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> tuple[Image.Image, list[list[int] | None]]:  # fmt: skip
    columns = max(1, min(len(cells), 6 if width <= 160 else 4))
    rows = math.ceil(len(cells) / columns)
    step_x = width + 2 * BORDER + GAP
    heights = [max(_height(cell) for cell in cells[row * columns : (row + 1) * columns]) for row in range(rows)]
    sheet = Image.new("RGB", (columns * step_x + GAP, max(1, sum(heights)) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    boxes: list[list[int] | None] = []
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        x, y = GAP + column * step_x, GAP + sum(heights[:row])
        for tiles in cell.media:
            draw_row(sheet, tiles, x, y)
            y += row_height(tiles)
        inner = _body_height(cell)
        frame = (x, y, x + _frame_width(cell, width) + 2 * BORDER - 1, y + inner + 2 * BORDER - 1)
        draw.rectangle(frame, outline=COLOURS[cell.verdict.state], width=BORDER)
        if cell.image is not None:
            sheet.paste(cell.image, (x + BORDER, y + BORDER))
        box = cell.box
        boxes.append(None if box is None else [box[0] + x + BORDER, box[1] + y + BORDER, *box[2:]])
        top = y + BORDER + (cell.image.height if cell.image is not None else 0) + 4
        for number, line in enumerate(cell.text):
            draw.text((x + BORDER + 6, top + number * LINE), line, fill=INK, font=font)
        below = y + inner + 2 * BORDER + 5
        for number, line in enumerate(cell.caption):
            draw.text((x, below + number * LINE), line, fill=INK, font=bold)
        below += len(cell.caption) * LINE + 2
        for number, line in enumerate(cell.answer):
            draw.text((x, below + number * LINE), line, fill=FAINT, font=font)
        _mark(draw, x, below + len(cell.answer) * LINE, cell.verdict, font, width)
    return sheet, boxes


def _frame_width(cell: Cell, width: int) -> int:
    return cell.image.width if cell.image is not None and not cell.text else width


def _body_height(cell: Cell) -> int:
    text = len(cell.text) * LINE + 10 if cell.text or cell.image is None else 0
    return (cell.image.height if cell.image is not None else 0) + max(text, 0 if cell.image is not None else 40)


def _height(cell: Cell) -> int:
    lines = len(cell.caption) + len(cell.answer) + 1
    return sum(row_height(row) for row in cell.media) + _body_height(cell) + 2 * BORDER + lines * LINE + 10 + GAP


def _mark(
    draw: ImageDraw.ImageDraw, x: int, y: int, found: Verdict,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int,
) -> None:  # fmt: skip
    """A tick, a cross or nothing, and the label: readable without colours, and without glyphs a font may lack."""
    colour, shift = COLOURS[found.state], 14
    if found.state == "right":
        draw.line([(x + 1, y + 7), (x + 4, y + 10), (x + 10, y + 3)], fill=colour, width=2)
    elif found.state == "wrong":
        draw.line([(x + 2, y + 3), (x + 9, y + 10)], fill=colour, width=2)
        draw.line([(x + 9, y + 3), (x + 2, y + 10)], fill=colour, width=2)
    else:
        colour, shift = (FAINT if found.state == "open" else colour), 0
    for line in wrap(found.words, font, width - shift, 1):
        draw.text((x + shift, y), line, fill=colour, font=font)

"""`mmrl data preview`: a picture sheet of what the model gets, before anything is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmrl.config.resolve import Resolved, ResolvedDraws, ResolvedExamples, load
from mmrl.errors import UserError
from mmrl.report.grid import INK, wrap
from mmrl.rollout import Prompt, Sample
from mmrl.tiles import FAINT, LINE, PAPER, Tile, beside, draw_row, flow, groups_of, row_height

WIDTH, GAP, COLUMNS, PAD = 272, 16, 4, 10
"""Pixels of a card and between cards, cards per row, pixels inside a card's edge."""
EDGE, BAND, RIGHT, WRONG = "#d8dee4", "#f2f4f7", "#1a7f37", "#c62f2f"


@dataclass
class Card:
    """One prompt or example: its pictures in rows, what is asked, what is right, and where it comes from."""

    rows: list[list[Tile]]
    lines: list[tuple[str, str]] = field(default_factory=list)
    """(text, colour) from top to bottom."""

    def height(self) -> int:
        """In pixels."""
        return 2 * PAD + sum(row_height(row) for row in self.rows) + len(self.lines) * LINE


def write_preview(config: str, overrides: Sequence[str], out: Path, count: int, stage: str | None) -> list[str]:
    """Write the sheet of `count` prompts and examples to `out` as PNG; returns what there is to say about it.

    `stage`: a stage's name or "evaluation"; None shares the cards out among all. Raises UserError for an unknown stage,
    for data that cannot be read and for a file that cannot be written.
    """
    resolved = load(config, overrides, read_data=False)
    sources = _sources(resolved)
    if stage is not None:
        if stage not in sources:
            raise UserError(f"no stage '{stage}' in {config}; there is: {', '.join(sources)}")
        sources = {stage: sources[stage]}
    share = math.ceil(count / len(sources))
    sections, said = [], []
    for number, (name, source) in enumerate(sources.items()):
        shown, heading = _read(name, source, min(share, max(1, count - number * share)))
        sections.append((heading, [card(item) for item in shown]))
        said.append(heading)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet(sections).save(out, format="PNG")
    except OSError as error:
        raise UserError(f"cannot write {out.absolute()}: {error.strerror or error}; choose another --out") from None
    return [*said, str(out)]


def _sources(resolved: Resolved) -> dict[str, tuple[str, Any]]:
    """Stage (or "evaluation") -> (the source's name in the config, the source)."""
    found: dict[str, tuple[str, Any]] = {}
    for stage in resolved.stages:
        if isinstance(stage, ResolvedExamples):
            found[stage.name] = (stage.section.examples.name, stage.examples)
        elif isinstance(stage, ResolvedDraws):
            found[stage.name] = (stage.section.prompts.name, stage.prompts)
    if resolved.evaluation is not None and resolved.config.evaluation is not None:
        found.setdefault("evaluation", (resolved.config.evaluation.prompts.name, resolved.evaluation.prompts))
    return found


def _read(name: str, source: tuple[str, Any], count: int) -> tuple[list[Prompt | Sample], str]:
    """Some prompts, evenly from all of them, or the first examples; and a heading."""
    label, component = source
    if hasattr(component, "open"):
        stream = component.open(0)
        return [stream.example(index) for index in range(count)], f"{name}: the first {count} examples of {label}"
    prompts = component.load()
    count = min(count, len(prompts))
    positions = [index * len(prompts) // count for index in range(count)]
    return [prompts[position] for position in positions], f"{name}: {count} of {len(prompts)} prompts of {label}"


def card(item: Prompt | Sample) -> Card:
    """A prompt with its right answer, or an example with what the policy should produce, laid out."""
    font, bold = ImageFont.load_default(12), ImageFont.load_default(13)
    prompt = item.prompt if isinstance(item, Sample) else item
    groups = groups_of(prompt.media, prompt.meta.get("fps"))
    if isinstance(item, Sample):
        made = groups_of([*item.images, *([] if item.video is None else [item.video])], item.meta.get("fps"))
        groups = beside(groups, made)
    inner = WIDTH - 2 * PAD
    lines = [(line, INK) for line in wrap(prompt.text, bold, inner, 14)]
    right = item.text if isinstance(item, Sample) else _answer(prompt.target)
    if right:
        lines += [("", INK), *((line, RIGHT) for line in wrap(right, font, inner, 5))]
    if isinstance(item, Sample) and isinstance(item.meta.get("rejected"), str):
        lines += [(line, WRONG) for line in wrap(f"rejected: {item.meta['rejected']}", font, inner, 5)]
    meta = prompt.meta
    about = [str(meta["kind"])] if "kind" in meta else []
    about += [f"level {meta['level']}"] if "level" in meta else []
    lines += [(line, FAINT) for line in wrap(" · ".join([*about, str(prompt.id)]), font, inner, 1)]
    return Card(flow(groups, inner), lines)


def sheet(sections: Sequence[tuple[str, Sequence[Card]]]) -> Image.Image:
    """Cards below the headings of their sections, row by row."""
    columns = min(COLUMNS, max(len(cards) for _, cards in sections))
    title = ImageFont.load_default(17)
    headings = max(int(title.getlength(heading)) for heading, _ in sections) + 2 * GAP
    width = max(columns * (WIDTH + GAP) + GAP, headings)
    rows: list[tuple[str, Sequence[Card]]] = []
    for heading, cards in sections:
        rows.append((heading, ()))
        rows += [("", cards[start : start + columns]) for start in range(0, len(cards), columns)]
    heights = [max(c.height() for c in cards) + GAP if cards else 3 * LINE for _, cards in rows]
    page = Image.new("RGB", (width, sum(heights) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    y = GAP
    for (heading, cards), height in zip(rows, heights, strict=True):
        if heading:
            draw.text((GAP, y + 8), heading, fill=INK, font=title)
        for column, one in enumerate(cards):
            _draw(page, draw, one, GAP + column * (WIDTH + GAP), y, height - GAP)
        y += height
    return page


def _draw(page: Image.Image, draw: ImageDraw.ImageDraw, one: Card, x: int, y: int, height: int) -> None:
    font, bold = ImageFont.load_default(12), ImageFont.load_default(13)
    draw.rectangle((x, y, x + WIDTH - 1, y + height - 1), fill=BAND, outline=EDGE)
    top = y + PAD
    for row in one.rows:
        draw_row(page, row, x + PAD, top)
        top += row_height(row)
    for text, colour in one.lines:
        draw.text((x + PAD, top), text, fill=colour, font=bold if colour == INK else font)
        top += LINE


def _answer(target: Any) -> str:
    """What is right: the target's own "answer", or the target as it is."""
    if target is None:
        return ""
    if isinstance(target, Mapping) and "answer" in target:
        return f"answer: {target['answer']}"
    return f"target: {target if isinstance(target, str) else json.dumps(target, ensure_ascii=False, default=str)}"

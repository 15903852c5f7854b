"""The samples of a report: before and after by prompt, and over time."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from mmrl.report.data import RunData, Sheet, Shot
from mmrl.report.grid import Verdict, verdict

PIXELATED = 64
"""Images up to this side are embedded as they are and enlarged by the browser without smoothing."""
PAIR_SIDE, STRIP_SIDE, WHOLE_SIDE = 256, 128, 1200
STRIP_ROWS, STRIP_COLUMNS = 6, 8
LONG = 900
"""Characters of an answer from which on its middle is folded away."""


@dataclass(frozen=True)
class Cut:
    """A long text without its middle: an answer stands at the end."""

    head: str
    between: int
    tail: str


@dataclass(frozen=True)
class Seen:
    """A sample as the page shows it. `source` is the data URI of an image or a video; `text` where there is none."""

    source: str | None
    pixelated: bool
    text: str | None
    verdict: Verdict
    rewards: str

    @property
    def cut(self) -> Cut | None:
        """The text if it is too long to be shown as it is."""
        if self.text is None or len(self.text) <= LONG:
            return None
        half = LONG // 2
        return Cut(self.text[:half], len(self.text) - 2 * half, self.text[-half:])


@dataclass(frozen=True)
class Thumb:
    """A picture that a prompt shows, as a data URI, with the word below it."""

    source: str
    pixelated: bool
    label: str


@dataclass(frozen=True)
class Pair:
    """A prompt with what it shows and what is right, and the first and the last sample of a stage. None = not there."""

    prompt: str
    before: Seen | None
    after: Seen | None
    media: list[list[Thumb]]
    answer: str | None
    about: str

    @property
    def tiles(self) -> int:
        """Pictures in the longest row."""
        return max((len(row) for row in self.media), default=0)

    @property
    def given(self) -> list[Thumb]:
        """What the prompt shows, where it stands beside what was drawn from it."""
        drawn = any(seen is not None and seen.source is not None for seen in (self.before, self.after))
        return [thumb for row in self.media for thumb in row] if drawn else []


@dataclass(frozen=True)
class Comparison:
    """A stage's first and last samples by prompt, or whole sheets."""

    stage: str
    before: str
    after: str
    pairs: list[Pair]
    wholes: list[tuple[str, str]]
    right: tuple[int, int] | None
    """How many were right before and after, where a reward decides for all of them."""
    decided_by: str

    @property
    def texts(self) -> bool:
        """Whether there is text to read, which needs wider columns."""
        return any(
            seen is not None and seen.text is not None for pair in self.pairs for seen in (pair.before, pair.after)
        )


@dataclass(frozen=True)
class Strip:
    """Pictures of the same prompts over time: `columns` are labels, `rows` are (prompt, one picture per column)."""

    stage: str
    columns: list[str]
    rows: list[tuple[str, list[Seen | None]]]
    prompts: int


def comparisons(data: RunData) -> list[Comparison]:
    """One per stage that left pictures."""
    return [_comparison(name, sheets) for name, sheets in _by_stage(data).items()]


def strips(data: RunData) -> list[Strip]:
    """One per stage with pictures from its middle: evenly chosen columns, the first and the last among them."""
    found = []
    for name, sheets in _by_stage(data).items():
        if len(sheets) < 3 or not any(shot.image or shot.video for sheet in sheets for shot in sheet.shots):
            continue
        last = len(sheets) - 1
        count = min(STRIP_COLUMNS, len(sheets))
        chosen = [sheets[round(index * last / (count - 1))] for index in range(count)]
        prompts = [shot.prompt for shot in sheets[0].shots]
        rows = [
            (prompt, [_seen(_find(sheet, index, prompt), STRIP_SIDE) for sheet in chosen])
            for index, prompt in enumerate(prompts[:STRIP_ROWS])
        ]
        found.append(Strip(name, [_label(sheet, sheets[0]) for sheet in chosen], rows, len(prompts)))
    return found


def _by_stage(data: RunData) -> dict[str, list[Sheet]]:
    stages: dict[str, list[Sheet]] = {}
    order = ("before", "during", "after")
    for sheet in sorted(data.sheets, key=lambda sheet: (sheet.total, order.index(sheet.when))):
        if sheet.shots:
            stages.setdefault(sheet.stage, []).append(sheet)
    return stages


def _comparison(stage: str, sheets: list[Sheet]) -> Comparison:
    first = sheets[0] if sheets[0].when != "after" else None
    last = sheets[-1] if len(sheets) > 1 or first is None else None
    wholes = [
        (_label(sheet, sheets[0]), _encode(sheet.whole, WHOLE_SIDE)[0])
        for sheet in (first, last)
        if sheet is not None and sheet.whole is not None
    ]
    shots = [shot for sheet in (last or first,) if sheet for shot in sheet.shots]
    pairs = [_pair(shot, _find(first, index, shot.prompt), _find(last, index, shot.prompt))
             for index, shot in enumerate(shots)]  # fmt: skip
    decided = [
        (pair.before.verdict, pair.after.verdict)
        for pair in pairs
        if pair.before and pair.after and "open" not in (pair.before.verdict.state, pair.after.verdict.state)
    ]
    right = (sum(a.state == "right" for a, _ in decided), sum(b.state == "right" for _, b in decided))
    names = {shown.by for both in decided for shown in both}
    whole = len(decided) == len(pairs) and len(names) == 1
    return Comparison(
        stage=stage,
        before=_label(first, sheets[0]) if first else "",
        after=_label(last, sheets[0]) if last else "",
        pairs=[] if wholes else pairs,
        wholes=wholes,
        right=right if whole else None,
        decided_by=names.pop() if whole else "",
    )


def _pair(shot: Shot, before: Shot | None, after: Shot | None) -> Pair:
    media = [[Thumb(*_encode(tile.image, PAIR_SIDE), tile.label) for tile in row] for row in shot.media]
    return Pair(shot.prompt, _seen(before, PAIR_SIDE), _seen(after, PAIR_SIDE), media, shot.answer, shot.about)


def _label(sheet: Sheet, first: Sheet) -> str:
    return sheet.when if sheet.when != "during" else f"step {sheet.total - first.total}"


def _find(sheet: Sheet | None, index: int, prompt: str) -> Shot | None:
    """The shot at `index`, if it is of this prompt."""
    if sheet is None or index >= len(sheet.shots) or sheet.shots[index].prompt != prompt:
        return None
    return sheet.shots[index]


def _seen(shot: Shot | None, most: int) -> Seen | None:
    if shot is None:
        return None
    source, pixelated = (None, False)
    if shot.video is not None:
        with Image.open(io.BytesIO(shot.video)) as frames:
            source, pixelated = _uri(shot.video, "webp"), max(frames.size) <= PIXELATED
    elif shot.image is not None:
        source, pixelated = _encode(shot.image, most)
    rewards = ", ".join(f"{k} {'not scored' if v is None else f'{v:.3g}'}" for k, v in shot.rewards.items())
    return Seen(source, pixelated, shot.text, verdict(shot.rewards), rewards)


def _encode(image: Image.Image, most: int) -> tuple[str, bool]:
    """A data URI of `image`, at most `most` pixels wide and high, and whether it is small enough to show its pixels."""
    buffer = io.BytesIO()
    small = max(image.size) <= PIXELATED
    if small:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image = image.copy()
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=88)
    return _uri(buffer.getvalue(), "png" if small else "jpeg"), small


def _uri(file: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"

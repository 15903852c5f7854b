"""Panels as inline SVG. Colours are CSS variables of the page, so that one drawing serves light and dark."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mmrl.report.breakdown import Bars, Breakdown
from mmrl.report.panels import Curve, Panel

SERIES = 8
"""Colours of the page: `--s0` to `--s7`; further curves start again."""
INK, RULE, PAGE, TEXT = "#0a0b20", "#0a0b21", "#0a0b22", "#0a0b23"
BARS = (("before", 0, 0.42), ("after", 0, 1.0), ("blind", 7, 0.8))
"""Bars of a group: name, colour of the page and its opacity."""
BINS = 400
"""Longer curves are drawn as means and ranges of this many bins."""
MARKS = 60
"""More evaluations than this are drawn without marks."""
SMOOTH_FROM = 20
"""Fewer points than this are drawn as they are."""
LOG_RANGE = 30.0
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "font.family": "sans-serif",
    "axes.unicode_minus": True,
    "path.simplify": True,
}


def draw(panel: Panel) -> str:
    """The diagram as an `<svg>` element that scales with its container."""
    size = (5.3, 2.35) if panel.wide else (3.5, 1.75)
    salt = hashlib.sha256(repr(panel).encode()).hexdigest()[:12]
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": salt}):
        figure = Figure(figsize=size)
        canvas = FigureCanvasSVG(figure)
        left, bottom = (0.52 / size[0], 0.24 / size[1])
        axes = figure.add_axes((left, bottom, 1 - left - 0.1 / size[0], 1 - bottom - 0.1 / size[1]))
        if panel.style == "stack":
            _stack(axes, panel.curves)
        else:
            for index, curve in enumerate(panel.curves):
                if panel.style == "points":
                    _points(axes, curve, _series(index))
                else:
                    _line(axes, curve, _series(index), panel.style == "line")
        _axes(axes, panel)
        return _svg(canvas)


def draw_bars(found: Breakdown) -> str:
    """A row of bars per group, lying, with the chance level as a line across them; an `<svg>` as from `draw`."""
    kinds = [(name, colour, alpha) for name, colour, alpha in BARS
             if any(math.isfinite(getattr(row, name)) for row in found.rows)]  # fmt: skip
    labels = [row.label if len(row.label) <= 34 else row.label[:33] + "…" for row in found.rows]
    left = 0.2 + 0.075 * max(len(label) for label in labels)
    tall = 0.17 * len(kinds)
    size = (5.3, 0.36 + (tall + 0.16) * len(labels))
    salt = hashlib.sha256(repr(found).encode()).hexdigest()[:12]
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": salt}):
        figure = Figure(figsize=size)
        canvas = FigureCanvasSVG(figure)
        bottom = 0.26 / size[1]
        axes = figure.add_axes((left / size[0], bottom, 1 - (left + 0.5) / size[0], 1 - bottom - 0.04 / size[1]))
        for place, row in enumerate(found.rows):
            _bar_group(axes, place * (tall + 0.16), row, kinds)
        axes.set_ylim((tall + 0.16) * len(labels) - 0.08, -0.08)
        axes.set_yticks([place * (tall + 0.16) + tall / 2 for place in range(len(labels))], labels)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_per_cent))
        _style(axes, "x")
        for label in axes.get_yticklabels():
            label.set_color(TEXT)
        return _svg(canvas)


def _bar_group(axes: Axes, top: float, row: Bars, kinds: list[tuple[str, int, float]]) -> None:
    """Bars with their values behind them; a value that the line of the chance level would cross stands behind that."""
    for number, (name, colour, alpha) in enumerate(kinds):
        value, middle = getattr(row, name), top + 0.17 * (number + 0.5)
        if math.isfinite(value):
            axes.barh(middle, value, 0.145, color=_series(colour), alpha=alpha, linewidth=0)
            end = row.chance if value <= row.chance < value + 0.16 else value
            axes.annotate(f"{100 * value:.1f}%", (end, middle), (4, 0), textcoords="offset points",
                          va="center_baseline", color=INK, fontsize=8)  # fmt: skip
    if math.isfinite(row.chance):
        axes.plot([row.chance] * 2, [top - 0.03, top + 0.17 * len(kinds) + 0.03], color=TEXT, linewidth=1.3)


def _svg(canvas: FigureCanvasSVG) -> str:
    buffer = io.StringIO()
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    return _inline(buffer.getvalue())


def _series(index: int) -> str:
    return f"#0a0b0{index % SERIES}"


def _line(axes: Axes, curve: Curve, colour: str, smooth: bool) -> None:
    x, y = np.asarray(curve.x), np.asarray(curve.y)
    smooth = smooth and len(x) >= SMOOTH_FROM
    if len(x) > 2 * BINS:
        x, y, low, high = _binned(x, y)
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    elif smooth:
        axes.plot(x, y, color=colour, alpha=0.32, linewidth=0.8)
    shown = _smoothed(y) if smooth else y
    axes.plot(x, shown, color=colour, linewidth=1.5, solid_joinstyle="round")
    alone = _alone(shown)
    axes.plot(x[alone], shown[alone], "o", color=colour, markersize=2.5)


def _points(axes: Axes, curve: Curve, colour: str) -> None:
    """Evaluations: marks, and a thin line that only guides the eye."""
    x, y = np.asarray(curve.x), np.asarray(curve.y)
    known = np.isfinite(y)
    if curve.guide:
        axes.plot(x[known], y[known], color=colour, linewidth=1.4, linestyle=(0, (1, 1.6)))
        if known.sum() == 1:
            axes.plot(x[known], y[known], "_", color=colour, markersize=9)
        return
    axes.plot(x[known], y[known], color=colour, linewidth=1.2, linestyle="-" if curve.mark else (0, (4, 2)))
    alone = np.ones(len(x), dtype=bool) if known.sum() <= MARKS else _alone(y)
    axes.plot(x[alone], y[alone], "o", color=colour, markersize=5 if curve.mark else 3.5,
              markerfacecolor=PAGE if curve.mark else colour, markeredgewidth=1.4)  # fmt: skip


def _stack(axes: Axes, curves: list[Curve]) -> None:
    x = np.asarray(curves[0].x)
    rows = np.nan_to_num(np.asarray([curve.y for curve in curves]))
    if len(x) > 2 * BINS:
        rows = np.asarray([_binned(x, row)[1] for row in rows])
        x = _binned(x, x)[1]
    elif len(x) >= SMOOTH_FROM:
        rows = np.asarray([_smoothed(row) for row in rows])
    if len(x) == 1:
        x, rows = np.asarray([x[0] - 0.4, x[0] + 0.4]), np.repeat(rows, 2, axis=1)
    colours = [_series(index) for index in range(len(curves))]
    axes.stackplot(x, rows, colors=colours, alpha=0.75, linewidth=0)


def _axes(axes: Axes, panel: Panel) -> None:
    values = np.asarray([y for curve in panel.curves for y in curve.y if math.isfinite(y)])
    log = panel.log and values.min() > 0 and values.max() / values.min() > LOG_RANGE
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        if panel.share or panel.style in ("stack", "raw"):
            axes.set_ylim(bottom=0, top=1.06 * values.max() if panel.style != "stack" and values.max() > 0 else None)
            if values.max() <= 0:
                axes.set_ylim(top=1)
    axes.yaxis.set_major_formatter(FuncFormatter(_per_cent if panel.share else _plain))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if panel.style == "stack":
        axes.margins(x=0)
    _style(axes, "y")


def _style(axes: Axes, grid: Literal["x", "y"]) -> None:
    axes.grid(axis=grid, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=INK, length=0, pad=3)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)


def _plain(value: float, _: object) -> str:
    size = abs(value)
    if size >= 10000:
        text = f"{value / 1000:.4g}k"
    elif 0 < size < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def _per_cent(value: float, _: object) -> str:
    return f"{100 * value:.4g}%"


def _smoothed(y: np.ndarray) -> np.ndarray:
    """Centred moving mean over about a fifteenth of the curve; a gap stays a gap."""
    half = max(2, len(y) // 30)
    known = np.isfinite(y)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, y, 0.0), kernel, "full")[half:-half]
    count = np.convolve(known.astype(float), kernel, "full")[half:-half]
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres, means, minima and maxima of BINS bins; a bin without data is a gap."""
    edges = np.linspace(0, len(x), BINS + 1).astype(int)
    rows = []
    for start, stop in itertools.pairwise(edges):
        known = y[start:stop][np.isfinite(y[start:stop])]
        found = (known.mean(), known.min(), known.max()) if len(known) else (np.nan, np.nan, np.nan)
        rows.append((x[start:stop].mean(), *found))
    centre, mean, low, high = np.asarray(rows).T
    return centre, mean, low, high


def _alone(y: np.ndarray) -> np.ndarray:
    """Points without a neighbour, which a line would not show."""
    known = np.concatenate([[False], np.isfinite(y), [False]])
    return known[1:-1] & ~known[:-2] & ~known[2:]


def _inline(svg: str) -> str:
    """The bare element: no prolog, no namespaces, page colours for the placeholders."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    rest = re.sub(r'xlink:href="#', 'href="#', rest)
    rest = re.sub(
        r'\bid="(figure|axes|patch|matplotlib|xtick|ytick|line2d|text|PolyCollection|FillBetween)[^"]*"', "", rest
    )
    rest = re.sub(r"#0a0b0(\d)", r"var(--s\1)", rest)
    for colour, name in ((INK, "faint"), (RULE, "rule"), (PAGE, "page"), (TEXT, "ink")):
        rest = rest.replace(colour, f"var(--{name})")
    return f'<svg {box[0] if box else ""} role="img">{rest}'

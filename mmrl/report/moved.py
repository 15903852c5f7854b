"""A picture of how samples fare under new rewards: old against new advantage, and how the totals lie."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmrl.advantage.types import Bools, Floats
from mmrl.replay.shift import flips

INK, FAINT, RULE = "#1f2328", "#667079", "#d9dee3"
SAME, FLIPPED, OLD, NEW = "#2f6fb5", "#c62f2f", "#8a929a", "#2f6fb5"
FEW, MANY = 300, 20000
BINS = 20


def draw_moved(old: Floats, new: Floats, before: Floats, after: Floats, title: str) -> bytes:
    """A PNG of `moved_figure`."""
    file = io.BytesIO()
    moved_figure(old, new, before, after, title).savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def moved_figure(old: Floats, new: Floats, before: Floats, after: Floats, title: str) -> Figure:
    """Advantages `before` against `after (N,)` of samples that have both totals, on axes of one scale; and how the totals `old`, `new
    (N,)` (NaN: none) lie, over one range."""
    both = np.isfinite(old) & np.isfinite(new)
    with matplotlib.rc_context({"font.size": 9, "font.family": "sans-serif", "text.parse_math": False}):
        figure = Figure(figsize=(9.2, 4.6), dpi=130, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, color=INK)
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1))
        _scatter(figure.add_subplot(grid[:, 0]), before[both], after[both])
        totals = [values[np.isfinite(values)] for values in (old, new)]
        edges = _edges(totals)
        for place, (name, colour) in enumerate((("old", OLD), ("new", NEW))):
            _histogram(figure.add_subplot(grid[place, 1]), totals[place], edges, name, colour)
    return figure


def _scatter(axes: Axes, before: Floats, after: Floats) -> None:
    _style(axes)
    axes.set_title("advantage of each sample", loc="left", fontsize=9, color=FAINT)
    axes.set_xlabel("old advantage", color=FAINT)
    axes.set_ylabel("new advantage", color=FAINT)
    if not len(before):
        _nothing(axes, "no sample has an old and a new reward")
        return
    size = 1.08 * float(np.abs([before, after]).max()) or 1.0  # around 0, so that the quarters are the signs
    axes.set(xlim=(-size, size), ylim=(-size, size), aspect="equal")
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.axline((0, 0), slope=1, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2, label="unchanged")
    for place, draw in (("x", axes.axhline), ("y", axes.axvline)):
        draw(0, color=RULE, linewidth=1, zorder=1, gid=place)
    turned = flips(before, after)
    shown = np.ones(len(before), dtype=bool) if len(before) <= MANY else _spread(len(before))
    size, alpha = (16, 0.7) if len(before) <= FEW else (7, 0.45)
    for rows, colour, name in ((~turned, SAME, "same sign, or 0"), (turned, FLIPPED, "other sign")):
        drawn = rows & shown
        axes.scatter(before[drawn], after[drawn], s=size, alpha=alpha, color=colour, linewidths=0, zorder=3,
                     label=f"{name}: {int(rows.sum())} ({rows.mean():.0%})")  # fmt: skip
    legend = axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=3, frameon=False, fontsize=8,
                         handletextpad=0.3, borderaxespad=0, columnspacing=1)  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _spread(number: int) -> Bools:
    """MANY places, evenly over `number`."""
    found = np.zeros(number, dtype=bool)
    found[np.linspace(0, number - 1, MANY).astype(int)] = True
    return found


def _edges(totals: Sequence[Floats]) -> Floats:
    """Of the bars of both histograms."""
    values = np.concatenate(totals)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    bins = (
        min(max(4, int(max(map(len, totals)) ** 0.5)), BINS) * 2 + 1
    )  # odd, so that one value alone stands in the middle
    return np.linspace(low, high, bins + 1)


def _histogram(axes: Axes, values: Floats, edges: Floats, name: str, colour: str) -> None:
    _style(axes)
    axes.set_title(f"{name} total reward", loc="left", fontsize=9, color=FAINT)
    axes.set_ylabel("samples", color=FAINT)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if not len(values):
        _nothing(axes, "no sample has one")
        return
    axes.hist(values, bins=edges.tolist(), color=colour, alpha=0.85, zorder=2)
    margin = 0.03 * (edges[-1] - edges[0])
    axes.set_xlim(edges[0] - margin, edges[-1] + margin)
    axes.axvline(float(values.mean()), color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=3)
    axes.set_title(f"mean {values.mean():.3g}", loc="right", fontsize=9, color=INK)


def _nothing(axes: Axes, what: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.annotate(what, (0.5, 0.5), xycoords="axes fraction", ha="center", color=FAINT)


def _style(axes: Axes) -> None:
    axes.grid(color=RULE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=FAINT, length=0)

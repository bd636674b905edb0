"""Colours, sizes and helpers that all figures share."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.levels.level import Level
from analysis.walls.names import WallName

INK, MUTED, GRID_COLOUR, PAPER = "#1c2430", "#66707e", "#e3e6ea", "#ffffff"
BLUE, ORANGE, GREEN, BAND = "#0f62a8", "#c2510a", "#0a7a5c", "#a9c9e6"
"""Colours that colour-blind people can distinguish. In SVG they become CSS variables (VARIABLES)."""
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID_COLOUR: "--grid",
    PAPER: "--paper",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    BAND: "--band",
}
WALLS: dict[WallName, str] = {
    "kv_cache": "KV cache full",
    "prefix_cache": "Prefix cache full",
    "ttft": "First token too late",
    "tpot": "Tokens too slow",
    "stall": "Answers stand still",
    "throughput": "Throughput falls",
    "max_num_seqs": "No free slot",
    "errors": "Server errors",
    "not_reached": "Not reached",
}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "seatcount",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID_COLOUR,
    "grid.linewidth": 1.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def svg(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """Returns a figure as SVG text, with CSS variables as colours. size: width and height, inches."""
    with mpl.rc_context(STYLE):
        figure = new_figure(draw, size)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return themed(out.getvalue())


def png(draw: Callable[[Axes], None], size: tuple[float, float]) -> bytes:
    """Returns a figure as PNG bytes, for use during development. size: width and height, inches."""
    with mpl.rc_context(STYLE):
        figure = new_figure(draw, size)
        figure.set_facecolor(PAPER)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=130, facecolor=PAPER)
    return out.getvalue()


def new_figure(draw: Callable[[Axes], None], size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    return figure


def themed(text: str) -> str:
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    text = text.replace("'DejaVu Sans'", "var(--font, system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif)")
    return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', ' width="100%"', text, count=1)


def beyond_text(axes: Axes, users: int, row: int, right: float) -> None:
    """Draws an arrow to the right with the words "no wall up to N", where N is `users`.

    row: height of the arrow on the vertical axis. right: right end of the users axis.
    """
    arrow = {"arrowstyle": "->", "color": MUTED, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    roomy = users < 0.5 * right
    tip = users + 0.12 * right if roomy else 0.985 * right
    axes.annotate("", (tip, row), (users, row), arrowprops=arrow)
    axes.plot(users, row, "|", color=MUTED, markersize=8)
    axes.annotate(
        f"no wall up to {users}",
        (tip if roomy else users, row),
        (8 if roomy else -8, 0),
        textcoords="offset points",
        va="center",
        ha="left" if roomy else "right",
        color=MUTED,
    )


def connect(axes: Axes, levels: Sequence[Level], x: Sequence[float], y: Sequence[float]) -> None:
    trusted = [(a, b) for level, a, b in zip(levels, x, y, strict=True) if level.trusted]
    if trusted:
        axes.plot(*zip(*trusted, strict=True), color=BLUE, linewidth=1.6)


def thousands(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 1e3 else f"{value:.0f}"


def in_milliseconds(value: float) -> str:
    return f"{value / 1e3:g} s" if value >= 1e3 else f"{value:g} ms"

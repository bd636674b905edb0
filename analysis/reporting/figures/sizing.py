"""Draws the figure of a sizing: the parts of one GPU's memory."""

from matplotlib.axes import Axes

from analysis.answers.sizing import Sizing
from analysis.reporting.figures.style import (
    BAND,
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
)
from loadtest.units import GIB


def draw_vram_parts(axes: Axes, found: Sizing) -> None:
    """Draws the parts of one GPU's memory after start-up, and the 90 % band of the KV-cache pool."""
    over = found.overhead_band_bytes
    pool = found.pool_bytes or (0, 0, 0)
    parts = [
        ("weights", found.weights_bytes, BLUE),
        ("activation peak", over.activation[1], MUTED),
        ("libraries", over.non_torch[1], INK),
        ("CUDA graphs", over.cuda_graphs[1] if over.graphs_in_budget else 0, GREEN),
        ("KV pool", pool[1], BAND),
    ]
    left = 0.0
    for name, count, colour in parts:
        size = count / GIB
        axes.barh(0, size, left=left, color=colour, height=0.6, label=f"{name} {size:.2f}")
        left += size
    ends = [left + (end - pool[1]) / GIB for end in (pool[0], pool[2])]
    axes.plot(ends, [0.42, 0.42], color=INK, linewidth=1.4)
    total = found.vram_bytes / GIB
    axes.axvline((found.budget_bytes or 0) / GIB, color=ORANGE, linewidth=1.6)
    axes.annotate(
        f"budget {(found.budget_bytes or 0) / GIB:.1f}",
        ((found.budget_bytes or 0) / GIB, 0.5),
        (-5, 0),
        textcoords="offset points",
        ha="right",
        color=ORANGE,
    )
    axes.set(xlim=(0, total), ylim=(-0.45, 0.65), yticks=[], xlabel="GiB")
    axes.grid(visible=False)
    axes.set_title(f"{found.model} on {found.gpu}: memory of one GPU, GiB")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=3, handlelength=1.0)

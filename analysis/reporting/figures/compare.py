"""Draws the figures of a comparison. The first run is blue, the second orange."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from analysis.answers.compare import Comparison, ComparisonRow, row_name
from analysis.levels.level import Level
from analysis.reporting.figures.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    beyond_text,
    in_milliseconds,
    svg,
)
from analysis.statistics.samples import Quantiles


def comparison_figures(found: Comparison) -> dict[str, str]:
    """Returns every figure for which the comparison has data, as a map from name to SVG. Deterministic."""
    ratios = [row for row in found.rows if row.ratio is not None and row.ratio_interval is not None]
    wanted: dict[str, tuple[tuple[float, float], Callable[[Axes], None]]] = {}
    if any(answer.headline.interval_x is not None for answer in found.answers):
        wanted["capacity"] = (7.2, 1.7), lambda axes: draw_two_capacities(axes, found)
    if ratios:
        wanted["ratios"] = (
            (7.2, 0.9 + 0.27 * len(ratios)),
            lambda axes: draw_ratio_forest(axes, found, ratios),
        )
    if found.common_levels:
        wanted["ttft"] = (3.55, 2.7), lambda axes: draw_two_ttfts(axes, found)
        wanted["tpot"] = (3.55, 2.7), lambda axes: draw_two_tpots(axes, found)
        wanted["throughput"] = (7.2, 2.8), lambda axes: draw_two_throughputs(axes, found)
    return {name: svg(draw, size) for name, (size, draw) in wanted.items()}


def draw_two_capacities(axes: Axes, found: Comparison) -> None:
    """Draws the limit of each run, in users, with its interval.

    A run that reached no limit is drawn as an arrow to the right.
    """
    sides = zip(found.names, found.answers, (BLUE, ORANGE), strict=True)
    known = [
        (name, answer, answer.headline.interval_x, colour)
        for name, answer, colour in sides
        if answer.headline.interval_x
    ]
    right = 1.2 * max(high or 1.3 * low for _, _, (low, high), _ in known)
    for row_number, (_, answer, (low, high), colour) in enumerate(known):
        if answer.headline.estimate_x is None or high is None:
            beyond_text(axes, round(low), row_number, right)
            continue
        axes.plot(
            [low, high], [row_number, row_number], color=colour, linewidth=9, alpha=0.4, solid_capstyle="butt"
        )
        axes.plot(answer.headline.estimate_x, row_number, "o", color=colour, markersize=7)
        words, end = f"{answer.headline.estimate_x:.1f}", (high, row_number)
        axes.annotate(words, end, (8, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(range(len(known)), [name for name, *_ in known])
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set(xlim=(0, right), ylim=(len(known) - 0.4, -0.6), xlabel="users")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.set_title("Where each reaches its limit")


def draw_ratio_forest(axes: Axes, found: Comparison, rows: Sequence[ComparisonRow]) -> None:
    """Draws the ratio of the second run to the first for each figure of the table, with its interval.

    A point is filled if the difference is more than chance.
    """
    known = [(row, row.ratio, row.ratio_interval) for row in rows if row.ratio and row.ratio_interval]
    ends = [end for _, _, interval in known for end in interval if end is not None]
    low, high = min([0.8, *ends]), max([1.25, *ends])
    for row_number, (row, ratio, (left, right)) in enumerate(known):
        colour, face = (ORANGE, ORANGE) if row.different == "yes" else (MUTED, PAPER)
        bar = [left or low / 2, right or high * 2]
        axes.plot(
            bar, [row_number, row_number], color=colour, linewidth=3.5, alpha=0.4, solid_capstyle="butt"
        )
        axes.plot(ratio, row_number, "o", color=colour, markersize=6, markerfacecolor=face)
    axes.set_yticks(range(len(known)), [row_name(row) for row, _, _ in known])
    axes.axvline(1.0, color=INK, linewidth=1.2)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_xscale("log")
    axes.set(xlim=(low / 1.05, high * 1.05), ylim=(len(known) - 0.4, -0.6))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"x {value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_title(f"{found.names[1]} against {found.names[0]} (filled: real)")


def draw_two_ttfts(axes: Axes, found: Comparison) -> None:
    """Draws TTFT p95 of both runs against users, with intervals and the objective."""
    _two(axes, found, lambda level: level.requests.ttft_s, found.slo.ttft_p95_s, "Time to first token, p95")


def draw_two_tpots(axes: Axes, found: Comparison) -> None:
    """Draws TPOT p95 of both runs against users, with intervals and the objective."""
    _two(axes, found, lambda level: level.requests.tpot_s, found.slo.tpot_p95_s, "Time per output token, p95")


def _two(axes: Axes, found: Comparison, of: Callable[[Level], Quantiles], limit_s: float, title: str) -> None:
    seen = [1e3 * limit_s]
    for answer, colour in zip(found.answers, (BLUE, ORANGE), strict=True):
        known = [(level, of(level)) for level in answer.levels if level.trusted and of(level).p95 is not None]
        users, p95 = [level.users for level, _ in known], [1e3 * (q.p95 or 0.0) for _, q in known]
        seen += p95
        axes.plot(users, p95, "o-", color=colour, linewidth=1.6, markersize=5)
        for level, q in known:
            if q.p95_interval is not None:
                ends = [1e3 * end for end in q.p95_interval]
                axes.plot([level.users] * 2, ends, color=colour, linewidth=3.5, alpha=0.35)
    axes.axhline(1e3 * limit_s, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"objective {in_milliseconds(1e3 * limit_s)}",
        (0, 1e3 * limit_s),
        (4, 4),
        textcoords="offset points",
        color=MUTED,
    )
    low, high = min(seen), max(seen)
    axes.set_yscale("log")
    axes.set(xlim=(0, None), ylim=(low / 1.5, high * max((high / low) ** 0.25, 1.7)), xlabel="users")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_milliseconds(value)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))
    axes.tick_params(axis="y", which="minor", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_title(title)


def draw_two_throughputs(axes: Axes, found: Comparison) -> None:
    """Draws output tokens a second of both runs against users; trusted levels only."""
    top = 1.0
    for answer, name, colour in zip(found.answers, found.names, (BLUE, ORANGE), strict=True):
        known = [level for level in answer.levels if level.trusted]
        rates = [level.requests.output_tok_s for level in known]
        axes.plot([level.users for level in known], rates, "o-", color=colour, linewidth=1.6, label=name)
        top = max([top, *rates])
    axes.set(xlim=(0, None), ylim=(0, 1.2 * top), xlabel="users")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.legend(loc="lower right", handlelength=1.4)
    axes.set_title("Output throughput, tokens a second")

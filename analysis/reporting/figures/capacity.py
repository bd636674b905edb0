"""Draws the figures of the capacity report: memory, walls, latency and throughput."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from analysis.answers.capacity import Bound, ModelAnswer
from analysis.levels.level import Level
from analysis.reporting.figures.style import (
    BAND,
    BLUE,
    GREEN,
    GRID_COLOUR,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    WALLS,
    beyond_text,
    connect,
    in_milliseconds,
    svg,
    thousands,
)
from analysis.statistics.samples import Quantiles
from loadtest.record import Slo
from loadtest.units import GIB


def capacity_figures(answer: ModelAnswer, slo: Slo) -> dict[str, str]:
    """Returns every figure for which the answer has data, as a map from name to SVG text. Deterministic."""
    wanted: dict[str, tuple[tuple[float, float], Callable[[Axes], None]]] = {}
    if answer.memory.pool_tokens and any(
        not math.isnan(level.server.kv_cache_usage) for level in answer.levels
    ):
        wanted["memory"] = (7.2, 3.5), lambda axes: draw_memory(axes, answer)
    if answer.memory.vram_base_bytes is not None and answer.memory.vram_bytes_per_user is not None:
        wanted["vram"] = (7.2, 3.0), lambda axes: draw_vram(axes, answer)
    if answer.bounds:
        wanted["walls"] = (
            (7.2, 0.9 + 0.34 * (len(answer.bounds) + len(answer.not_met))),
            lambda axes: draw_walls(axes, answer),
        )
    if answer.levels:
        wanted["ttft"] = (3.55, 2.7), lambda axes: draw_ttft(axes, answer, slo)
        wanted["tpot"] = (3.55, 2.7), lambda axes: draw_tpot(axes, answer, slo)
        if (stall_s := slo.stall_p95_s) is not None:
            wanted["stall"] = (3.55, 2.7), lambda axes: draw_stall(axes, answer, stall_s)
        wanted["throughput"] = (7.2, 2.8), lambda axes: draw_throughput(axes, answer)
    return {name: svg(draw, size) for name, (size, draw) in wanted.items()}


def draw_memory(axes: Axes, answer: ModelAnswer) -> None:
    """Draws KV tokens in use against requests in flight.

    Shows the measured points, the predicted line with its band, and the size of the KV-cache pool.
    """
    found, pool = answer.memory, answer.memory.pool_tokens or 0
    seen = [level for level in answer.levels if not math.isnan(level.server.kv_cache_usage)]
    reach = _reach(answer, [level.in_flight for level in seen])
    if found.tokens_per_user is not None and found.tokens_per_user_sd is not None:
        _predicted_use(axes, answer, pool, reach)
    axes.axhline(pool, color=ORANGE, linewidth=1.6)
    axes.annotate(
        f"pool {thousands(pool)} tokens", (0, pool), (6, 5), textcoords="offset points", color=ORANGE
    )
    in_flight = [level.in_flight for level in seen]
    held = [level.server.kv_cache_usage * pool for level in seen]
    _points(axes, seen, in_flight, held, BLUE)
    _answer_line(axes, answer, at=answer.max_in_flight)
    axes.set(xlim=(0, reach), ylim=(0, 1.25 * pool), xlabel="requests in flight")
    axes.set_title("KV cache in use, tokens")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    if found.bytes_per_token:
        scale, unit = (GIB, "GiB") if pool * found.bytes_per_token >= GIB / 2 else (2**20, "MiB")
        size = axes.twinx()
        size.set(ylim=(0, 1.25 * pool * found.bytes_per_token / scale), ylabel=unit)
        size.grid(visible=False)
        size.tick_params(length=0)


def _predicted_use(axes: Axes, answer: ModelAnswer, pool: int, reach: float) -> None:
    found = answer.memory
    mean, sd = found.tokens_per_user or 0.0, found.tokens_per_user_sd or 0.0
    shared = found.shared_prefix_tokens or 0
    users = np.linspace(0, reach, 200)
    line = np.where(users > 0, shared + users * (mean - shared), 0.0)
    band = 1.645 * sd * np.sqrt(users)
    axes.fill_between(
        users,
        np.minimum(np.maximum(line - band, 0), pool),
        np.minimum(line + band, pool),
        color=BAND,
        alpha=0.55,
        linewidth=0,
        label="9 of 10 instants",
    )
    inside = line <= pool
    axes.plot(users[inside], line[inside], color=BLUE, linewidth=1.8, label=f"{mean:,.0f} tokens a request")
    axes.legend(loc=(0.015, 0.5), handlelength=1.4)


def draw_vram(axes: Axes, answer: ModelAnswer) -> None:
    """Draws GPU memory against requests in flight.

    Shows the memory without the KV cache, the KV cache in use, and all the memory that the server holds.
    """
    found = answer.memory
    base, per = (found.vram_base_bytes or 0) / GIB, (found.vram_bytes_per_user or 0) / GIB
    pool = (found.pool_tokens or 0) * (found.bytes_per_token or 0) / GIB
    reach = _reach(answer, [level.in_flight for level in answer.levels])
    users = np.linspace(0, reach, 200)
    use = np.minimum(users * per, pool)
    axes.fill_between(
        users, 0, base, color=GRID_COLOUR, linewidth=0, label="weights, activations, CUDA graphs"
    )
    axes.fill_between(users, base, base + use, color=BAND, linewidth=0, label="KV cache in use")
    axes.axhline(base + pool, color=ORANGE, linewidth=1.6)
    axes.annotate(
        f"held from the start: {base + pool:.1f} GiB",
        (0, base + pool),
        (6, 5),
        textcoords="offset points",
        color=ORANGE,
    )
    _answer_line(axes, answer, at=answer.max_in_flight)
    axes.set(xlim=(0, reach), ylim=(0, 1.2 * (base + pool)), xlabel="requests in flight")
    axes.set_title("GPU memory, GiB")
    axes.legend(loc="lower right")


def draw_ttft(axes: Axes, answer: ModelAnswer, slo: Slo) -> None:
    """Draws TTFT p95 against users, with its interval and the objective."""
    _latency(axes, answer, lambda level: level.requests.ttft_s, slo.ttft_p95_s, "Time to first token, p95")


def draw_tpot(axes: Axes, answer: ModelAnswer, slo: Slo) -> None:
    """Draws TPOT p95 against users, with its interval and the objective."""
    _latency(axes, answer, lambda level: level.requests.tpot_s, slo.tpot_p95_s, "Time per output token, p95")


def draw_stall(axes: Axes, answer: ModelAnswer, limit_s: float) -> None:
    """Draws the p95 of stalls against users, with its interval and the objective."""
    _latency(axes, answer, lambda level: level.requests.stall_s, limit_s, "Longest stall of an answer, p95")


def _latency(
    axes: Axes, answer: ModelAnswer, of: Callable[[Level], Quantiles], limit_s: float, title: str
) -> None:
    seen = [(level, of(level), of(level).p95) for level in answer.levels]
    known = [(level, found, 1e3 * p95) for level, found, p95 in seen if p95 is not None]
    levels, users = [level for level, _, _ in known], [level.users for level, _, _ in known]
    p95 = [value for _, _, value in known]
    connect(axes, levels, users, p95)
    for level, found, _ in known:
        if found.p95_interval is not None:
            ends = [1e3 * end for end in found.p95_interval]
            axes.plot([level.users] * 2, ends, color=BLUE, linewidth=3.5, alpha=0.35, solid_capstyle="butt")
    _points(axes, levels, users, p95, BLUE)
    bounded = [(level.users, 1e3 * low) for level, q, _ in seen if (low := q.p95_at_least) is not None]
    if bounded:
        at, least = zip(*bounded, strict=True)
        axes.plot(at, least, linestyle="none", marker="^", color=BLUE, fillstyle="none", label="at least")
    if not known and not bounded:
        axes.annotate(
            "too few requests for a p95",
            (0.5, 0.5),
            xycoords="axes fraction",
            ha="center",
            va="center",
            color=MUTED,
        )
    limit = 1e3 * limit_s
    axes.axhline(limit, color=ORANGE, linewidth=1.6)
    axes.annotate(
        f"objective {in_milliseconds(limit)}", (0, limit), (4, 4), textcoords="offset points", color=ORANGE
    )
    _answer_line(axes, answer)
    axes.set_yscale("log")
    measured = [*p95, *(least for _, least in bounded)]
    above_zero = [value for value in measured if value > 0]  # 0 where a gateway sends answers in one piece
    low, high = min([*above_zero, limit]), max([*above_zero, limit])
    room = (high / low) ** 0.25  # leaves space for the words above the objective
    axes.set(xlim=(0, _reach(answer, users)), ylim=(low / 1.5, high * max(room, 1.7)), xlabel="users")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_milliseconds(value)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))
    axes.tick_params(axis="y", which="minor", length=0)
    axes.set_title(title)


def draw_throughput(axes: Axes, answer: ModelAnswer) -> None:
    """Draws output tokens a second against users. The standard errors are small, so they are not drawn."""
    seen = answer.levels
    users = [level.users for level in seen]
    rate = [level.requests.output_tok_s for level in seen]
    reach = _reach(answer, users)
    connect(axes, seen, users, rate)
    _points(axes, seen, users, rate, BLUE)
    _answer_line(axes, answer)
    axes.set(xlim=(0, reach), ylim=(0, 1.2 * max(rate) or 1.0), xlabel="users")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title("Output throughput, tokens a second")


def draw_walls(axes: Axes, answer: ModelAnswer) -> None:
    """Draws the number of users at which each wall (limit) lies, with its interval.

    The wall that limits the answer is orange. A wall that was not met is drawn as an arrow to the right.
    """
    right = 1.15 * max(
        [max(bound.interval_x[1], bound.users_x) for bound in answer.bounds]
        + [1.15 * wall.up_to_users for wall in answer.not_met]
    )
    names = [bound.name for bound in answer.bounds] + [wall.name for wall in answer.not_met]
    for row, bound in enumerate(answer.bounds):
        _wall(axes, bound, row, binds=bound.name == answer.headline.binding)
    for row, wall in enumerate(answer.not_met, start=len(answer.bounds)):
        beyond_text(axes, wall.up_to_users, row, right)
    axes.set_yticks(range(len(names)), [WALLS[name] for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(INK if name == answer.headline.binding else MUTED)
        label.set_fontweight("bold" if name == answer.headline.binding else "normal")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set(xlim=(0, right), ylim=(len(names) - 0.4, -0.6), xlabel="users")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.set_title("Where each wall stands")


def _wall(axes: Axes, bound: Bound, row: int, *, binds: bool) -> None:
    colour, (low, high) = ORANGE if binds else BLUE, bound.interval_x
    axes.plot([low, high], [row, row], color=colour, linewidth=9, alpha=0.4, solid_capstyle="butt")
    axes.plot(bound.users_x, row, "o", color=colour, markersize=7)
    end = (max(high, bound.users_x), row)
    axes.annotate(f"{bound.users_x:.1f}", end, (8, 0), textcoords="offset points", va="center", color=INK)


def _reach(answer: ModelAnswer, users: Sequence[float]) -> float:
    """Returns the right end of the horizontal axis.

    It lies a little beyond all levels, beyond the answer, and beyond the upper end of the answer's interval.
    """
    upper = (
        answer.headline.interval_x[1] if answer.headline.interval_x and answer.headline.interval_x[1] else 0.0
    )
    return 1.08 * max([*users, upper, answer.headline.max_users or 1])


def _answer_line(axes: Axes, answer: ModelAnswer, *, at: float | None = None) -> None:
    """Draws a line at the number of users to plan for, and a band over the interval of the limit.

    at: None if the axis counts users. If it counts requests in flight, the number of them at which the line
    stands.
    """
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    if answer.headline.max_users is None:
        return
    scale = 1.0 if at is None or not answer.headline.max_users else at / answer.headline.max_users
    if answer.headline.interval_x is not None and answer.headline.interval_x[1] is not None:
        low, high = answer.headline.interval_x[0], answer.headline.interval_x[1]
        axes.axvspan(low * scale, high * scale, color=GREEN, alpha=0.16, linewidth=0)
    line = answer.headline.max_users * scale
    axes.axvline(line, color=GREEN, linewidth=1.4, linestyle=(0, (4, 3)))
    users = "1 user" if answer.headline.max_users == 1 else f"{answer.headline.max_users} users"
    axes.annotate(
        users,
        (line, 1.0),
        (-5, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GREEN,
        fontweight="bold",
    )


def _points(axes: Axes, levels: Sequence[Level], x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """Draws one point for each level. Points of trusted levels are filled, the others are hollow."""
    for level, a, b in zip(levels, x, y, strict=True):
        face = colour if level.trusted else PAPER
        axes.plot(a, b, "o", markersize=6, markerfacecolor=face, markeredgecolor=colour, zorder=5)

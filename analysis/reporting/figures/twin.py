"""Draws the figure of the twin, a simulated copy of the server: predicted and measured latency."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from analysis.answers.twin import TwinAnswer
from analysis.reporting.figures.style import (
    BAND,
    BLUE,
    GREEN,
    ORANGE,
    PAPER,
    in_milliseconds,
)


def draw_twin(axes: Axes, answer: TwinAnswer) -> None:
    """Draws TTFT p95 against users.

    Shows the predicted line with its band, the measured points, the objective, and the limit in users.
    """
    seen = [one for one in answer.predictions if one.users and "ttft_p95_s" in one.values]
    users = [one.users for one in seen]
    ends = np.array([one.intervals["ttft_p95_s"] for one in seen]) * 1e3
    axes.fill_between(users, ends[:, 0], ends[:, 1], color=BAND, alpha=0.55, linewidth=0)
    line = [1e3 * one.values["ttft_p95_s"] for one in seen]
    axes.plot(users, line, color=BLUE, linewidth=1.8, label="predicted")
    for one in seen:
        if "ttft_p95_s" in one.measured:
            face = PAPER if one.held_out else BLUE
            at = 1e3 * one.measured["ttft_p95_s"]
            axes.plot(one.users, at, "o", markerfacecolor=face, markeredgecolor=BLUE, zorder=5)
    if answer.limit is not None and answer.limit.x is not None:
        _limit_line(axes, answer.limit.x)
    limit_ms = 1e3 * answer.slo.ttft_p95_s
    axes.axhline(limit_ms, color=ORANGE, linewidth=1.6)
    axes.set_yscale("log")
    axes.set(xlabel="users", xlim=(0, None), ylim=(min([*line, limit_ms]) / 1.5, 2 * max([*line, limit_ms])))
    axes.annotate(
        f"objective {in_milliseconds(limit_ms)}",
        (0, limit_ms),
        (4, 4),
        textcoords="offset points",
        color=ORANGE,
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_milliseconds(value)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))
    axes.set_title("Time to first token, p95, as the twin predicts it (hollow: held out)")


def _limit_line(axes: Axes, users: float) -> None:
    axes.axvline(users, color=GREEN, linewidth=1.4, linestyle=(0, (4, 3)))
    axes.annotate(
        f"holds {int(users)} users",
        (users, 0.0),
        (-5, 6),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        color=GREEN,
        fontweight="bold",
    )

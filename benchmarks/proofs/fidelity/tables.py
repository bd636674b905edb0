"""Tables that compare real runs with the twin."""

import math
from collections.abc import Sequence

from benchmarks.proofs.fidelity.figures import SUMMARY_ROWS, TABLE_ROWS, TwinFigures


def error_text(key: str, scale: float, real: Sequence[TwinFigures], twin: Sequence[TwinFigures]) -> str:
    """Formats the twin's error, followed in brackets by the difference of the two real runs."""
    first, second = (one[key] for one in real)
    mean = (first + second) / 2
    off, floor = sum(one[key] for one in twin) / 2 - mean, abs(first - second)
    if key.endswith("_s"):
        return f"{100 * off / mean:+.0f} % ({100 * floor / mean:.0f})"
    return f"{scale * off:+.1f} ({scale * floor:.1f})"


def print_summary(rows: Sequence[Sequence[str]]) -> None:
    print("\nerror at the run's speed, and in brackets the difference of the two real runs\n")
    print("| " + " | ".join(["condition", "", *(name for name, _, _ in SUMMARY_ROWS)]) + " |")
    print("|---|---|" + "--:|" * len(SUMMARY_ROWS))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def print_table(
    real: Sequence[TwinFigures], twin: Sequence[TwinFigures], scaled: Sequence[TwinFigures]
) -> None:
    print("| | real | real again | twin | error | at the run's speed | floor |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, key, scale in TABLE_ROWS:
        columns = [[one.get(key, math.nan) * scale for one in side] for side in (real, twin, scaled)]
        if any(math.isnan(value) for column in columns for value in column):
            continue
        mean = sum(columns[0]) / 2
        off = [sum(column) / 2 - mean for column in columns[1:]]
        floor = abs(columns[0][0] - columns[0][1])
        words = [
            f"{100 * value / mean:+.0f} %" if key.endswith("_s") and mean else f"{value:+.2f}"
            for value in (*off, floor)
        ]
        real_words = " | ".join(f"{value:.2f}" for value in columns[0])
        print(
            f"| {name} | {real_words} | {sum(columns[1]) / 2:.2f} | {words[0]} | {words[1]} "
            f"| {words[2].lstrip('+')} |"
        )

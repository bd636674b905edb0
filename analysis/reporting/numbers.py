"""TODO."""

from analysis.answers.capacity import LevelAnswer
from analysis.statistics.samples import Quantiles
from loadtest.units import GIB

NONE = "–"


def users_text(count: int) -> str:
    return "1 user" if count == 1 else f"{count} users"


def milliseconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{1e3 * value:,.0f}" if value >= 0.0995 else f"{1e3 * value:.1f}"


def percent(value: float | None) -> str:
    if value is None:
        return NONE
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def tokens_text(count: float | None, per: int | None) -> str:
    if count is None:
        return NONE
    text = f"{count:,.0f} tokens"
    return f"{text} = {size_text(count * per)}" if per else text


def size_text(count: float) -> str:
    if count >= GIB / 10:
        return f"{count / GIB:.2f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 1024:.0f} KiB"


def gib(count: int | None) -> str:
    return NONE if count is None else f"{count / GIB:.2f} GiB"


def fine_milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{1e3 * value:.3g} ms"


def percentile_cells(level: LevelAnswer) -> list[str]:
    """Users, then p50 / p95 / p99 of TTFT, TPOT, chunk gap and E2E, in ms."""
    return [str(level.users)] + [
        three_digits(found) for found in (level.ttft_s, level.tpot_s, level.chunk_gap_s, level.e2e_s)
    ]


def three_digits(found: Quantiles) -> str:
    return " / ".join(milliseconds(value) for value in (found.p50, found.p95, found.p99))

"""Formats numbers for people. A value that is not known becomes a dash."""

import math

from loadtest.units import GIB

NONE = "–"


def users_text(count: int) -> str:
    """Formats a number of users: `1 user`, `18 users`."""
    return "1 user" if count == 1 else f"{count} users"


def milliseconds(value: float | None) -> str:
    """Formats seconds as milliseconds without the unit.

    Values from 100 ms on have no decimal, smaller values have one.
    """
    if value is None or math.isnan(value):
        return NONE
    return f"{1e3 * value:,.0f}" if value >= 0.0995 else f"{1e3 * value:.1f}"


def percent(value: float | None) -> str:
    """Formats a share in per cent: 0.034 is `3.4 %`."""
    if value is None or math.isnan(value):
        return NONE
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def tokens_text(count: float | None, per: int | None) -> str:
    """Formats a number of tokens, and their size if known. per: bytes of one token; None if not known."""
    if count is None:
        return NONE
    text = f"{count:,.0f} tokens"
    return f"{text} = {size_text(count * per)}" if per else text


def size_text(count: float) -> str:
    """Formats bytes: in GiB from 0.1 GiB on, smaller sizes in MiB or KiB."""
    if count >= GIB / 10:
        return f"{count / GIB:.2f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 1024:.0f} KiB"


def gib(count: int | None) -> str:
    """Formats bytes in GiB."""
    return NONE if count is None else f"{count / GIB:.2f} GiB"


def fine_milliseconds(value: float | None) -> str:
    """Formats seconds as milliseconds with three significant digits; used for step times of the engine.

    Less than a microsecond is below anything that was measured.
    """
    if value is None:
        return NONE
    return f"{1e3 * value:.3g} ms" if value >= 1e-6 else "less than 0.001 ms"


def milliseconds_or_more(value: float | None, at_least: float | None) -> str:
    """Formats a percentile as milliseconds without the unit; with a sign in front where only a lower bound,
    `at_least`, is known: `≥ 690`."""
    return f"≥ {milliseconds(at_least)}" if value is None and at_least is not None else milliseconds(value)

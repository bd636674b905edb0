"""Numbers as a person reads them. A dash stands for what is not known."""

import math

from loadtest.units import GIB

NONE = "–"


def users_text(count: int) -> str:
    """`1 user`, `18 users`."""
    return "1 user" if count == 1 else f"{count} users"


def milliseconds(value: float | None) -> str:
    """Seconds as milliseconds, without the unit: two or three digits that mean something."""
    if value is None or math.isnan(value):
        return NONE
    return f"{1e3 * value:,.0f}" if value >= 0.0995 else f"{1e3 * value:.1f}"


def percent(value: float | None) -> str:
    """A share as `3.4 %`."""
    if value is None or math.isnan(value):
        return NONE
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def tokens_text(count: float | None, per: int | None) -> str:
    """Tokens, and their bytes where the bytes of one are known (`per`)."""
    if count is None:
        return NONE
    text = f"{count:,.0f} tokens"
    return f"{text} = {size_text(count * per)}" if per else text


def size_text(count: float) -> str:
    """Bytes in the largest unit that leaves a digit before the point."""
    if count >= GIB / 10:
        return f"{count / GIB:.2f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 1024:.0f} KiB"


def gib(count: int | None) -> str:
    """Bytes in GiB."""
    return NONE if count is None else f"{count / GIB:.2f} GiB"


def fine_milliseconds(value: float | None) -> str:
    """Seconds as milliseconds with three digits: for what one step takes."""
    return NONE if value is None else f"{1e3 * value:.3g} ms"

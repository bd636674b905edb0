"""The types of what `python -m analysis.tune` prints. Knows no maths."""

from typing import Literal

import msgspec

from loadtest.record import Slo

TuneVerdict = Literal["more", "perhaps", "no gain", "not simulated"]
"""more: the interval of the difference is above zero. perhaps: only the estimate is.
not simulated: it cannot matter, or the run does not tell what it does; the reason says which."""
UsersInterval = tuple[float, float | None]
"""Ends of a 90 % interval of users; the upper end is null where no wall was found."""


class FlagChange(msgspec.Struct, kw_only=True, frozen=True):
    """One flag of `vllm serve`, with its present value and another one."""

    flag: str
    """Such as `--max-num-seqs`."""
    now: str
    to: str


class TunedUsers(msgspec.Struct, kw_only=True, frozen=True):
    """Users at the first wall, by simulation, and the wall."""

    x: float | None
    """Null where no wall was found."""
    interval: UsersInterval | None = None
    """Null where no refit was simulated."""
    wall: str


class TriedChange(msgspec.Struct, kw_only=True, frozen=True):
    """A flag that was tried, and what it would hold."""

    change: FlagChange
    verdict: TuneVerdict
    users: TunedUsers | None = None
    """Null where it does not hold noticeably more users than now: by one user and 2 %."""
    difference: float | None = None
    """Users more than now, as estimated."""
    difference_interval: UsersInterval | None = None
    reason: str = ""


class TunedConfiguration(msgspec.Struct, kw_only=True, frozen=True):
    """The flags that together surely hold more users, and the commands that prove it."""

    changes: list[FlagChange]
    users: TunedUsers
    difference: float
    difference_interval: UsersInterval
    serve_command: str
    load_test_command: str
    compare_command: str | None
    """Null where there is no run to compare with."""


class TuneAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of a tuning. `recommended` is null where no flag surely gives more."""

    schema: int = 1
    source: str
    """The runs, or the model and the card of a planned deployment."""
    predicted: bool = False
    """Whether the deployment is planned, so that its engine is predicted instead of fitted to runs."""
    model: str
    slo: Slo
    now: TunedUsers
    tried: list[TriedChange]
    recommended: TunedConfiguration | None
    left_out: list[str]
    """What is not tried, and why."""
    warnings: list[str]

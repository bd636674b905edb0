"""The types of twin.json. Knows no maths.

A twin is a simulated copy of the server, fitted to a run. The file holds the fitted numbers, the error of the
twin, and its predictions.
"""

import msgspec

from loadtest.record import Slo

Interval = tuple[float, float]


class Term(msgspec.Struct, kw_only=True, frozen=True):
    """One fitted number of the twin, with its 90 % interval."""

    name: str
    value: float
    interval: Interval


class Prediction(msgspec.Struct, kw_only=True, frozen=True):
    """Predicted figures at one number of users, each with its 90 % interval.

    `values` and `intervals` have the field names of `VirtualFigures` as keys.
    """

    users: int
    """0 for an open loop."""
    values: dict[str, float]
    intervals: dict[str, Interval]
    measured: dict[str, float] = {}
    """Figures of the level measured at this load, where there was one and nothing was changed."""
    held_out: bool = False
    """The level was not fitted to."""


class LimitAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """How many users fit within the objectives."""

    x: float | None
    """Null where no wall was found."""
    interval: tuple[float | None, float | None]
    wall: str


class FleetAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """How many replicas a number of users needs, and what the replicas cost.

    The replicas still hold all users after `spare` of them are lost.
    """

    users: int
    replicas: int
    interval: tuple[int, int]
    spare: int
    per_replica: float
    binding: str
    router: str
    price_per_hour: float | None
    usual_ttft_p95_s: float
    after_loss_ttft_p95_s: float


class TwinAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The content of twin.json."""

    schema: int = 1
    source: str
    changes: list[str]
    slo: Slo
    engine: dict[str, float | int | bool | None]
    terms: list[Term]
    fitted_users: list[int]
    check: Prediction | None
    """The prediction for the level that was held out; null where none was."""
    predictions: list[Prediction]
    limit: LimitAnswer | None
    fleet: list[FleetAnswer]
    warnings: list[str]

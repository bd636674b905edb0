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
    """Predicted figures at one number of users, with 90 % intervals for what a load test would measure.

    `values` and `intervals` have the field names of `VirtualFigures` as keys. The intervals hold the spread
    of refits and the errors of the model; figures whose model error is not known have none.
    """

    users: int
    """0 for an open loop."""
    values: dict[str, float]
    intervals: dict[str, Interval]
    measured: dict[str, float] = {}
    """Figures of the level measured at this load, where there was one and nothing was changed."""
    held_out: bool = False
    """The fit did not see the level."""
    classes: dict[str, dict[str, float]] = {}
    """Latency and misses of each class of users, by its name and the field names of `VirtualClassFigures`."""


class LimitAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """How many users fit within the objectives."""

    x: float | None
    """Null where no wall was found."""
    interval: tuple[float | None, float | None]
    wall: str
    user_class: str | None = msgspec.field(default=None, name="class")
    """The class of users that misses its objective first, where the wall is an objective of a class."""


class FleetAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """How many replicas a number of users needs, and what the replicas cost.

    The replicas still hold all users after `spare` of them are lost.
    """

    users: int
    replicas: int
    """Enough at `per_replica`, the spare ones included."""
    replicas_by_estimate: int
    """Enough at `per_replica_estimate`, the spare ones included."""
    spare: int
    per_replica: float
    """The least users that a replica may hold: the lower end of the 90 % interval."""
    per_replica_estimate: float | None
    """Null where no wall was found, as is then the upper end of the interval."""
    per_replica_interval: tuple[float, float | None]
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
    """Of `left_out`, the level that was asked for, else the highest; null where there is none."""
    left_out: list[Prediction]
    """Each measured level, predicted by a fit that did not see it. Their errors are in all intervals."""
    predictions: list[Prediction]
    limit: LimitAnswer | None
    fleet: list[FleetAnswer]
    warnings: list[str]

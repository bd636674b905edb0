"""twin.json as types: what was fitted, how far off it was, and what it predicts. Knows no maths."""

import msgspec

from loadtest.record import Slo

Interval = tuple[float, float]


class Term(msgspec.Struct, kw_only=True, frozen=True):
    """One fitted number with its 90 % interval."""

    name: str
    value: float
    interval: Interval


class Prediction(msgspec.Struct, kw_only=True, frozen=True):
    """What a plateau sees, by the names of `VirtualFigures`, each with its 90 % interval."""

    users: int
    values: dict[str, float]
    intervals: dict[str, Interval]
    measured: dict[str, float] = {}
    """Of the level that stood there, where there was one and nothing was changed."""
    held_out: bool = False


class LimitAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """How many users fit; `x` is null where nothing broke."""

    x: float | None
    interval: tuple[float | None, float | None]
    wall: str


class FleetAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Replicas for so many users, `spare` of which may be lost, and what they cost."""

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
    """`twin.json`."""

    schema: int = 1
    source: str
    changes: list[str]
    slo: Slo
    engine: dict[str, float | int | bool | None]
    terms: list[Term]
    fitted_users: list[int]
    check: Prediction | None
    """The level that was held out."""
    predictions: list[Prediction]
    limit: LimitAnswer | None
    fleet: list[FleetAnswer]
    warnings: list[str]

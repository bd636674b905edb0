"""Takes what a load test found of the walls (limits in users), as intervals to judge a sizing by."""

import math
from dataclasses import dataclass

from analysis.answers.capacity import Bound, ModelAnswer
from analysis.answers.sizing_check import MeasuredInterval
from analysis.compare.sides import MeasuredDeployment
from analysis.walls.names import WallName


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredUsers:
    """A number of users that was measured, with its 90 % interval, or why it was not."""

    value: float | None = None
    interval: MeasuredInterval | None = None
    open_reason: str = ""
    """Why only a bound is known, and what to do; empty where the wall was reached."""
    up_to_users: int | None = None
    """The highest trusted level, where the wall lies beyond it."""


def measured_headline(side: MeasuredDeployment) -> MeasuredUsers:
    """Returns the users at the first wall."""
    head, top = side.answer.headline, side.judgement.evidence.trusted[-1:]
    if side.refused or head.interval_x is None:
        return MeasuredUsers(open_reason="the load test has no answer")
    if head.at_least:
        return MeasuredUsers(interval=head.interval_x, open_reason="no wall was reached", up_to_users=top[0])
    return MeasuredUsers(value=head.estimate_x, interval=head.interval_x)


def measured_wall(side: MeasuredDeployment, name: WallName) -> MeasuredUsers:
    """Returns the users at one wall.

    A wall that lies beyond the highest trusted level was not reached: then only a lower bound is known.
    """
    answer, trusted = side.answer, side.judgement.evidence.trusted
    if side.refused or not trusted:
        return MeasuredUsers(open_reason="the load test has no answer")
    bound = next((one for one in answer.bounds if one.name == name), None)
    if bound is None:
        return _not_met(answer, name)
    if bound.users_x > trusted[-1] and bound.basis in ("extrapolated", "model"):
        return MeasuredUsers(
            interval=(min(bound.interval_x[0], float(trusted[-1])), None),
            open_reason="the wall was not reached",
            up_to_users=trusted[-1],
        )
    if waits_for_memory(answer.bounds, bound):
        return MeasuredUsers(
            value=bound.users_x,
            interval=(bound.interval_x[0], None),
            open_reason="it lies beyond the KV cache wall, where times include waiting for memory, which the "
            "sizing leaves out of this wall",
        )
    return MeasuredUsers(value=bound.users_x, interval=bound.interval_x)


def waits_for_memory(bounds: list[Bound], bound: Bound) -> bool:
    """Whether a wall of latency lies beyond that of memory, so that it is one of memory too."""
    memory = next((one.users_x for one in bounds if one.name == "kv_cache"), math.inf)
    return bound.name in ("ttft", "tpot") and bound.users_x > memory


def _not_met(answer: ModelAnswer, name: WallName) -> MeasuredUsers:
    held = next((one for one in answer.not_met if one.name == name), None)
    if held is None:
        return MeasuredUsers(open_reason="nothing in the load test could have shown this wall")
    low = held.holds_to_users if held.limit is not None else held.up_to_users
    if low is None:
        return MeasuredUsers(open_reason="too few requests to know that the limit holds")
    return MeasuredUsers(
        interval=(float(low), None), open_reason="the wall was not reached", up_to_users=held.up_to_users
    )

"""Makes the classes of a simulated mix from those of a workload file. Knows no server."""

import math
from collections.abc import Sequence

import msgspec

from analysis.virtual.service import ChatBehaviour, ChattingClass
from loadtest.record import Slo, UserClass


def run_objectives(classes: Sequence[UserClass], slo: Slo) -> Slo:
    """Returns the objectives of the run, to which those of the classes are in proportion.

    If only classes have an objective for stalls, the shortest of these is taken.
    """
    stalls_s = [one.objectives.stall_p95_s for one in classes if one.objectives.stall_p95_s is not None]
    if slo.stall_p95_s is not None or not stalls_s:
        return slo
    return msgspec.structs.replace(slo, stall_p95_s=min(stalls_s))


def chatting_class(
    name: str, weight: float, *, slo: Slo, run_slo: Slo, chatting: ChatBehaviour
) -> ChattingClass:
    """Returns a class with its weight and its objectives.

    slo: the objectives of the class. run_slo: those of the run, from `run_objectives`.
    """
    stall_x = 1.0
    if run_slo.stall_p95_s is not None:
        stall_x = math.inf if slo.stall_p95_s is None else slo.stall_p95_s / run_slo.stall_p95_s
    return ChattingClass(
        name=name,
        weight=weight,
        chatting=chatting,
        ttft_x=slo.ttft_p95_s / run_slo.ttft_p95_s,
        tpot_x=slo.tpot_p95_s / run_slo.tpot_p95_s,
        stall_x=stall_x,
    )

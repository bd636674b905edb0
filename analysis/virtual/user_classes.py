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


def chatting_class(user_class: UserClass, chatting: ChatBehaviour, slo: Slo, run_slo: Slo) -> ChattingClass:
    """Returns a class with its weight and its objectives.

    slo: the objectives of the run as stated. run_slo: the same from `run_objectives`.
    """
    own = user_class.objectives.over(slo)
    stall_x = 1.0
    if run_slo.stall_p95_s is not None:
        stall_x = math.inf if own.stall_p95_s is None else own.stall_p95_s / run_slo.stall_p95_s
    return ChattingClass(
        name=user_class.name,
        weight=user_class.weight,
        chatting=chatting,
        ttft_x=own.ttft_p95_s / run_slo.ttft_p95_s,
        tpot_x=own.tpot_p95_s / run_slo.tpot_p95_s,
        stall_x=stall_x,
    )

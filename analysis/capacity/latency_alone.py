"""What the objectives for latency and errors alone would allow, if waiting for memory were accepted."""

import math

from analysis.answers.capacity import Headline, LatencyAlone
from analysis.capacity.headline import headline_of
from analysis.capacity.judgement import Judgement
from analysis.memory.replay import replayed_latency_users
from analysis.walls.names import WallName

LATENCY_WALLS: tuple[WallName, ...] = ("ttft", "tpot", "stall", "errors")


def latency_alone(judgement: Judgement, headline: Headline, *, confidence: float) -> LatencyAlone | None:
    """Returns the number of users that the objectives of latency and errors alone would allow.

    It comes from the measured levels if one of these walls was met. Else the engine is simulated with more
    users (basis "model"), and levels beyond the limit give a lower bound. None if there is no limit, or if
    nothing tells.
    """
    if headline.estimate_x is None:
        return None
    walls = [wall for wall in judgement.walls if wall.name in LATENCY_WALLS]
    measured = headline_of(judgement.evidence, walls, confidence=confidence)
    if measured.estimate is not None and measured.estimate_x is not None:
        return LatencyAlone(
            users=measured.estimate,
            interval=measured.interval,
            users_x=measured.estimate_x,
            interval_x=measured.interval_x,
            basis=next(wall.basis for wall in walls if wall.name == measured.binding),
            limited_by=measured.binding,
        )
    known = measured.interval_x[0] if measured.interval_x else 0.0
    if known <= headline.estimate_x:
        known = 0.0
    users = _simulated_users(judgement, headline.estimate_x) or 0.0
    if max(users, known) == 0.0:
        return None
    return LatencyAlone(
        users=math.floor(max(users, known)),
        interval=(math.floor(known), None) if known else None,
        users_x=max(users, known),
        interval_x=(known, None) if known else None,
        at_least=known >= users,
        basis="measured" if known >= users else "model",
    )


def _simulated_users(judgement: Judgement, start: float) -> float | None:
    evidence, step_cost = judgement.evidence, judgement.evidence.step_cost
    pairs, pool = evidence.pairs, evidence.pool
    if pairs is None or pool is None or step_cost is None:
        return None
    if evidence.slo.stall_p95_s is not None:
        return None  # how long a prompt holds others up hangs on max_num_batched_tokens, which no run tells
    slots = evidence.max_num_seqs
    users = replayed_latency_users(
        pairs,
        pool,
        evidence.slo,
        step_cost=step_cost.per_engine(pool.engines),
        thinking=evidence.thinking.per_engine(pool.engines) if evidence.thinking else None,
        max_num_seqs=slots // pool.engines if slots else None,
        start=start / pool.engines,
    )
    return None if users is None else users * pool.engines

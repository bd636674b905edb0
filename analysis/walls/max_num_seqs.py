"""TODO."""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from analysis.evidence.evidence import Evidence
from analysis.levels.level import load_points
from analysis.levels.queues import QUEUE_LIMIT
from analysis.statistics.crossings import logit, miss_crossing
from analysis.walls.placed import (
    RESAMPLES,
    PlacedWall,
    placed_at_crossing,
    placed_by_draws,
    placed_exactly,
)


def max_num_seqs_wall(
    max_num_seqs: int, *, active: Callable[[int], float], queue_limit: float = QUEUE_LIMIT
) -> float:
    """Users at which somebody waits for a slot 10 % of the time: the slots themselves unless users think.

    With thinking users, P(Binomial(N, p) > max_num_seqs), straight in the logit between whole users.
    """
    if active(max_num_seqs + 1) >= 1.0:
        return float(max_num_seqs)
    users = max_num_seqs
    while waiting_share(max_num_seqs, users + 1, active) <= queue_limit:
        users += 1
    low, high = (
        logit(waiting_share(max_num_seqs, n, active)) - logit(queue_limit) for n in (users, users + 1)
    )
    return users + low / (low - high)


def waiting_share(max_num_seqs: int, users: int, active: Callable[[int], float]) -> float:
    return float(stats.binom.sf(max_num_seqs, users, active(users)))


BINOMIAL_SD = 0.05  # of the ln of users: people who think do not arrive as independently as the law says


def placed_max_num_seqs(evidence: Evidence, max_num_seqs: int, rng: np.random.Generator) -> PlacedWall:
    """Of people who think: where a queue is seen for 10 % of the time, else by the binomial law."""
    crossing = None
    if evidence.thinking is not None:
        levels = [level for level in evidence.levels if level.users > max_num_seqs]
        crossing = miss_crossing(load_points(levels, lambda level: level.server.queue), limit=QUEUE_LIMIT)
    if crossing is None or crossing.between[0] == 0:
        at = max_num_seqs_wall(max_num_seqs, active=evidence.active)
        if evidence.thinking is None:
            return placed_exactly("max_num_seqs", evidence, at)
        error = math.hypot(evidence.thinking.think_error, BINOMIAL_SD)
        draws = at * np.exp(error * rng.standard_normal(RESAMPLES))
        return placed_by_draws("max_num_seqs", evidence, at, draws, measured=False)
    return placed_at_crossing("max_num_seqs", evidence, crossing, rng)

"""The `max_num_seqs` wall: the server runs no more requests at once, although it has memory for them."""

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

BINOMIAL_SD = 0.05  # in ln users, because arrivals are less independent than the binomial assumes


def place_max_num_seqs(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Places the wall of the server's `max_num_seqs`; None where that is neither stated nor detected.

    Without think time, the wall is `max_num_seqs` itself. With think time, it lies where measured levels have
    a queue for 10 % of the time. Without levels on both sides of that, it follows from the binomial
    distribution of the users in flight.
    """
    cap = evidence.max_num_seqs
    if cap is None:
        return None
    crossing = None
    if evidence.thinking is not None:
        levels = [level for level in evidence.levels if level.users > cap]
        crossing = miss_crossing(load_points(levels, lambda level: level.server.queue), limit=QUEUE_LIMIT)
    if crossing is not None and crossing.between[0] > 0:
        return placed_at_crossing("max_num_seqs", evidence, crossing, rng)
    users = max_num_seqs_wall(cap, active=evidence.active)
    if evidence.thinking is None:
        return placed_exactly("max_num_seqs", evidence, users)
    error = math.hypot(evidence.thinking.think_error, BINOMIAL_SD)
    draws = users * np.exp(error * rng.standard_normal(RESAMPLES))
    return placed_by_draws("max_num_seqs", evidence, users, draws, measured=False)


def max_num_seqs_wall(
    max_num_seqs: int, *, active: Callable[[int], float], queue_limit: float = QUEUE_LIMIT
) -> float:
    """Returns the users at which a request waits for a slot for a share `queue_limit` of the time.

    For users who think, the share is P(Binomial(N, p) > max_num_seqs), and its logit is interpolated between
    whole users. Users who do not think give max_num_seqs itself.
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
    """Returns the share of the time in which more than max_num_seqs of the users are in flight."""
    return float(stats.binom.sf(max_num_seqs, users, active(users)))

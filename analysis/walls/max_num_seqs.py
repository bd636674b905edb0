"""The `max_num_seqs` wall (a limit in users): no more requests run at once, although memory is left."""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from analysis.evidence.evidence import Evidence
from analysis.levels.level import load_points
from analysis.levels.queues import QUEUE_LIMIT
from analysis.statistics.crossings import logit, miss_crossing
from analysis.walls.placed import (
    WALL_DRAWS,
    PlacedWall,
    placed_at_crossing,
    placed_by_draws,
    placed_exactly,
)

BINOMIAL_SD = 0.05  # in ln users, because arrivals are less independent than the binomial assumes


def place_max_num_seqs(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the server's `max_num_seqs` becomes the limit.

    None if `max_num_seqs` is neither stated nor suspected. Without think time, the result is `max_num_seqs`
    itself. With think time, it is the number of users at which requests wait in a queue for 10 % of the time.
    This number is fitted to the measured levels if some levels lie below 10 % and some above. If not, it is
    computed from a binomial distribution of the number of users in flight.
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
    draws = users * np.exp(error * rng.standard_normal(WALL_DRAWS))
    return placed_by_draws("max_num_seqs", evidence, users, draws, measured=False)


def max_num_seqs_wall(
    max_num_seqs: int, *, active: Callable[[int], float], queue_limit: float = QUEUE_LIMIT
) -> float:
    """Returns the number of users at which requests wait for a slot for a share `queue_limit` of the time.

    Without think time, this number is max_num_seqs itself. With think time, a binomial distribution gives the
    share at N users: P(Binomial(N, p) > max_num_seqs). Between whole numbers of users, the logit of this
    share is interpolated.
    """
    if active(max_num_seqs + 1) >= 1.0:
        return float(max_num_seqs)
    users, step = max_num_seqs, 1
    while waiting_share(max_num_seqs, users + step, active) <= queue_limit:
        users, step = users + step, 2 * step
    while step := step // 2:  # the wall is above `users`, and not above twice the step further
        if waiting_share(max_num_seqs, users + step, active) <= queue_limit:
            users += step
    low, high = (
        logit(waiting_share(max_num_seqs, n, active)) - logit(queue_limit) for n in (users, users + 1)
    )
    return users + low / (low - high)


def waiting_share(max_num_seqs: int, users: int, active: Callable[[int], float]) -> float:
    """Returns the share of the time in which more than max_num_seqs of the users are in flight."""
    return float(stats.binom.sf(max_num_seqs, users, active(users)))

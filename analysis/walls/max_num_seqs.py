"""TODO."""

from collections.abc import Callable, Sequence

from scipy import stats

from analysis.levels.level import QUEUE_LIMIT, Level
from analysis.statistics.crossings import logit

ALIKE, ALIKE_APART = 3, 4 / 3  # numbers of users, so far apart, whose queues left equally many running: a cap


def seats_of(levels: Sequence[Level], *, stated: int | None) -> int | None:
    """max_num_seqs: as stated, else where a trusted level stood flat at it with a queue, or where three
    numbers of users, a third apart, left equally many running, with queues and room."""
    if stated is not None:
        return stated
    trusted = [level for level in levels if level.trusted]
    seen = [level.seats for level in trusted if level.seats is not None]
    if seen:
        return min(seen)
    alike = {level.users: level.most_running for level in trusted if level.most_running is not None}
    if len(alike) < ALIKE or max(alike) < ALIKE_APART * min(alike) or len(set(alike.values())) > 1:
        return None
    return next(iter(alike.values()))


def seats_wall(seats: int, *, active: Callable[[int], float], queue_limit: float = QUEUE_LIMIT) -> float:
    """Users at which somebody waits for a seat 10 % of the time: the seats themselves unless users think.

    With thinking users, P(Binomial(N, p) > seats), straight in the logit between whole users.
    """
    if active(seats + 1) >= 1.0:
        return float(seats)
    users = seats
    while binomial_queue(seats, users + 1, active) <= queue_limit:
        users += 1
    low, high = (logit(binomial_queue(seats, n, active)) - logit(queue_limit) for n in (users, users + 1))
    return users + low / (low - high)


def binomial_queue(seats: int, users: int, active: Callable[[int], float]) -> float:
    return float(stats.binom.sf(seats, users, active(users)))

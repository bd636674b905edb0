"""How many people a deployment serves, of whom only some are active at once."""

import math
from collections.abc import Sequence

from scipy import stats

from analysis.answers.capacity import BusiestHour, Headline, People
from analysis.levels.level import Level

BUSY_SHARE = 0.95
"""Share of the busiest hour in which no more users are there at once."""

PRODUCT_ROUNDING = 1e-9
"""What a product may exceed a whole number by rounding alone: 0.07 of 100 people are 7 users, not 8."""


def active_people(headcount: int, active: float) -> int:
    """Returns how many of these people are active at the peak, at least one. active: their share."""
    return max(math.ceil(headcount * active - PRODUCT_ROUNDING), 1)


def company_of(headline: Headline, *, headcount: int | None, active: float | None) -> People | None:
    """Returns how many people the users of an answer stand for; None if `active` is not stated.

    None also where there is no answer.
    """
    users = headline.max_users
    if active is None or users is None:
        return None
    needed = None if headcount is None else active_people(headcount, active)
    return People(
        active_fraction=active,
        holds_people=math.floor(users / active + PRODUCT_ROUNDING),
        headcount=headcount,
        users_needed=needed,
        deployments=None if needed is None or not users else math.ceil(needed / users),
    )


def busiest_hour_of(
    headline: Headline, levels: Sequence[Level], *, requests: int | None
) -> BusiestHour | None:
    """Returns how many users at once the requests of the busiest hour stand for; None without their number.

    A user of the load test, who is there all the time, sends so many requests an hour. If people come at
    random, the number who are there at once is Poisson's. None also where there is no answer, or no trusted
    level with a finished request.
    """
    known = [level for level in levels if level.trusted and level.requests.finished]
    users = headline.max_users
    if requests is None or users is None or not known:
        return None
    nearest = min(known, key=lambda level: (abs(level.users - users), level.users))
    each = 3600.0 * nearest.requests.finished / nearest.window.length_s / nearest.users
    needed = max(int(stats.poisson.ppf(BUSY_SHARE, requests / each)), 1)
    return BusiestHour(
        requests=requests,
        requests_per_user=each,
        users_mean=requests / each,
        users_needed=needed,
        deployments=math.ceil(needed / users) if users else None,
    )

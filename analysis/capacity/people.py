"""How many people a deployment serves, of whom only some are active at once."""

import math

from analysis.answers.capacity import Headline, People

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

"""Reads for how many users to buy, and which cards to compare."""

from dataclasses import dataclass

from analysis.capacity.people import active_people
from analysis.sizing.purchase.prices import card_label
from loadtest.errors import InputError
from loadtest.model.gpus import GPU_CATALOGUE


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """The number of users to hold, and from what it follows."""

    users: int
    headcount: int | None = None
    """People employed; None if the users themselves are stated."""
    active_fraction: float | None = None
    """Share of these people who use the service in the busiest hour."""


def stated_demand(*, users: int | None, headcount: int | None, active: float | None) -> Demand | None:
    """Returns the demand of the flags, None without one. Raises InputError if they contradict each other."""
    if users is not None and (headcount is not None or active is not None):
        raise InputError("Give --for-users, or --headcount and --active, not both.")
    if users is not None:
        return Demand(users=users)
    if (headcount is None) != (active is None):
        raise InputError(
            "--headcount and --active need each other: users are the people times the share of them who are "
            "active in the busiest hour."
        )
    if headcount is None or active is None:
        return None
    return Demand(users=active_people(headcount, active), headcount=headcount, active_fraction=active)


def named_cards(text: str | None) -> list[str]:
    """Returns the catalogue's names of the cards in a list such as "L40S,A100"; without one, of all cards.

    A card that is named twice counts once. Raises InputError for an empty or unknown name.
    """
    if text is None:
        return list(GPU_CATALOGUE)
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(
            f'--gpu "{text}" has an empty name: write cards with commas between, as "L40S,A100".'
        )
    try:
        return list(dict.fromkeys(map(card_label, names)))
    except ValueError as problem:
        raise InputError(str(problem)) from None

"""Tries flags from the present setting, adds the best one that surely holds more users, and tries again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.answers.tune import TriedChange, UsersInterval
from analysis.tune.flags import Climb, Limit, NotTried, Setting, flag_change, next_climbs
from analysis.tune.limits import Workbench, difference_interval, users_of, users_or_most
from analysis.twin.predictions import Advance
from analysis.virtual.processes import for_each
from loadtest.record import RunInfo

NOTICEABLE_USERS, NOTICEABLE_SHARE = 1, 0.02
"""Users, and share of them, that a change must add by the estimate to be looked at: fewer are not worth a new
start of the server, and one simulation tells."""
MAX_ROUNDS = 4
"""Most flags that are combined."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TriedSetting:
    """A setting, its limit, and the users that it holds by each refit."""

    setting: Setting
    limit: Limit | None
    added: str = ""
    """Name of the flag that it adds to the setting that it was tried from."""
    drawn: Sequence[float] = ()
    """Empty where the estimate is not higher than before, so that refits were not simulated."""

    @property
    def x(self) -> float:
        """Users as a finite number."""
        return users_or_most(self.limit)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FlagSearch:
    """The present setting, what each flag does alone, and the best combination or the present one."""

    now: TriedSetting
    best: TriedSetting
    tried: Sequence[TriedChange]


def search_flags(
    bench: Workbench, info: RunInfo, *, kept: Sequence[str], advance: Advance
) -> FlagSearch | None:
    """Searches from the present setting; None if it does not hold a single user.

    kept: names of flags that stay as they are. advance: called with 1 after each round.
    """
    limit = bench.limit({})
    if limit is None:
        return None
    (drawn,) = bench.draws([({}, limit)])
    now = best = TriedSetting(setting={}, limit=limit, drawn=drawn)
    alone: list[TriedChange] = []
    for number in range(MAX_ROUNDS):
        advance(1)
        found, not_tried = _neighbours(bench, info, best, kept=kept, most=None if number == 0 else 1)
        if number == 0:
            alone = [_tried(bench, info, one, now) for one in found]
            alone += [_not_simulated(bench, info, one) for one in not_tried]
        better = [one for one in found if one.drawn and _more(best, one)[0] > 0]
        if not better:
            break
        best = max(better, key=lambda one: _more(now, one)[0])
    return FlagSearch(now=now, best=best, tried=alone)


def _neighbours(
    bench: Workbench, info: RunInfo, base: TriedSetting, *, kept: Sequence[str], most: int | None
) -> tuple[list[TriedSetting], list[NotTried]]:
    """Tries every flag beside a setting.

    most: how many of those that gain most are simulated by all refits; None for all that gain.
    """
    assert base.limit is not None
    steps = list(next_climbs(bench.twin, info, base.setting, base.limit, kept=kept))
    climbs = [one for one in steps if isinstance(one, Climb)]
    found = list(for_each(lambda climb: _climbed(bench, base, climb), climbs))
    gains = sorted((one for one in found if one.x > base.x), key=lambda one: -one.x)[:most]
    drawn = bench.draws([(one.setting, one.limit) for one in gains if one.limit])
    closer = {id(one): replace(one, drawn=users) for one, users in zip(gains, drawn, strict=True)}
    return [closer.get(id(one), one) for one in found], [one for one in steps if isinstance(one, NotTried)]


def _climbed(bench: Workbench, base: TriedSetting, climb: Climb) -> TriedSetting:
    """Tries the values of a flag one after the other, and returns the best setting.

    It stops at the first value that does not hold noticeably more users than the one before, unless the flag
    itself still limits: slots to spare let other flags matter. The first value is returned without a limit if
    not even that one gains.
    """
    best = TriedSetting(setting={**base.setting, climb.name: climb.values[0]}, limit=None, added=climb.name)
    x = base.x
    for value in climb.values:
        setting = {**base.setting, climb.name: value}
        wanted = math.ceil(x + max(NOTICEABLE_USERS, NOTICEABLE_SHARE * x))
        if not bench.holds(setting, wanted) and not (best.limit and best.limit.wall == climb.name):
            break
        best = TriedSetting(setting=setting, limit=bench.limit(setting, start=wanted), added=climb.name)
        x = best.x
    return best


def _more(base: TriedSetting, one: TriedSetting) -> UsersInterval:
    return difference_interval(one.x - base.x, base.drawn, one.drawn)


def total_gain(found: FlagSearch) -> tuple[float, UsersInterval]:
    """Returns how many users more the best combination holds than the present setting, with its interval."""
    return found.best.x - found.now.x, _more(found.now, found.best)


def _tried(bench: Workbench, info: RunInfo, one: TriedSetting, now: TriedSetting) -> TriedChange:
    change = flag_change(one.added, one.setting[one.added], bench.twin, info)
    if not one.drawn:
        return TriedChange(change=change, verdict="no gain")
    interval = _more(now, one)
    return TriedChange(
        change=change,
        verdict="more" if interval[0] > 0 else "perhaps",
        users=users_of(one.limit, one.drawn),
        difference=one.x - now.x,
        difference_interval=interval,
    )


def _not_simulated(bench: Workbench, info: RunInfo, one: NotTried) -> TriedChange:
    change = flag_change(one.name, "", bench.twin, info)
    return TriedChange(change=change, verdict="not simulated", reason=one.reason)

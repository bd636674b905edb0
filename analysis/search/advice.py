"""Chooses the next level, a number of users to hold for a while, from a judgement of the levels so far.

Knows no clock and no server: the load test asks again after `SearchAdvice.look_s` seconds.
"""

import math
from collections.abc import Callable

from analysis.capacity.headline import CONFIDENCE, headline_of
from analysis.capacity.judgement import Judgement
from analysis.evidence.evidence import Evidence
from analysis.evidence.lengths import length_pairs_of
from analysis.levels.level import Level
from analysis.levels.trust import MIN_REQUESTS
from analysis.memory.block_distribution import Occupancy, holders_of
from analysis.memory.formula_shift import FormulaShift, kv_wall_users
from analysis.reporting.capacity_words import short_answer
from analysis.reporting.words import WALL_NAMES, sentences, words
from loadtest.record import SearchAdvice
from loadtest.run.live.level import FAR_PAST_WALL_SHARE

FIRST_USERS = 4  # users of the first level: a low load that still yields request lengths quickly
MAX_STEP = 4.0  # largest factor from the highest trusted level to the next level
MIN_STEP = 1.15  # smallest factor from the highest trusted level to the next while no wall is met
MAX_SEARCHED_USERS = 8192
LOOK_S, LOOK_DURATIONS = 5.0, 5.0  # time between two questions: the longer of seconds and request durations
MIN_LENGTHS = 10  # requests of known lengths that a first guess at the memory wall needs
SETTLED_DURATIONS = 4.0  # request durations until a level can be judged
HOLD_S, HOLD_DURATIONS = 20.0, 12.0  # time that a level is held: the longer of seconds and request durations
MAX_HOLDS = 3  # holds after which a level that is still not trusted is given up
NARROW_USERS, NARROW_SHARE = 1.0, 0.05  # width of an interval that is narrow enough: the larger of the two
MIN_PROBE_DISTANCE, MAX_PROBE_DISTANCE = 0.03, 0.2  # distance of a level from the wall, share of its users
NEAR_SHARE = 0.35  # levels at most this far from the wall, as a share of its users, count as near


def advise(judgement: Judgement, *, holding: int | None, held_s: float, left_s: float) -> SearchAdvice:
    """Returns the advice: how many users to hold next. Its field `users` is None if the search is to stop.

    - holding: users of the level in progress; None before the first level.
    - held_s: seconds since the level in progress began.
    - left_s: seconds left of the time budget.
    """
    line = answer_line(judgement)

    def to(users: int | None, why: str) -> SearchAdvice:
        return SearchAdvice(users=users, look_s=max(min(2 * LOOK_S, left_s), 0.0), why=why, line=line)

    if holding is None:
        return to(FIRST_USERS, "a low load first")
    if left_s <= 0.0:
        return to(None, "the budget is used")
    level = _under_way(judgement.evidence, holding)
    look_s = LOOK_S if level is None else max(LOOK_S, LOOK_DURATIONS * level.window.request_duration_s)
    stay = SearchAdvice(users=holding, look_s=max(min(look_s, left_s), 0.0), why="", line=line)
    if level is None or (held_s < _settled_s(level) and not _far_past_wall(level)):
        return stay
    if not level.trusted and not _far_past_wall(level):
        if level.requests.n < MIN_REQUESTS and held_s >= _hold_s(level) and not judgement.evidence.trusted:
            return to(int(MAX_STEP * holding), "too few requests a minute to judge by")
        if level.requests.n < MIN_REQUESTS or held_s < MAX_HOLDS * _hold_s(level):
            return stay
        return to(_away_from(level, judgement.evidence), "; ".join(sentences(level.why_not)))
    users, why = _next(judgement, holding, waited=held_s >= _hold_s(level))
    if users is not None and users != holding and left_s < _settled_s(level):
        return stay  # too late for another level to be judged
    return stay if users == holding else to(users, why)


def answer_line(judgement: Judgement) -> str:
    """Returns the answer so far in one line.

    An example is `plan for 18 users, limit 18.6 (90 %: 18.1 to 19.2), KV cache`.
    """
    evidence = judgement.evidence
    if not evidence.trusted:
        return "no level to judge by yet"
    if judgement.reasons:
        return f"fewer than {evidence.trusted[0]} users"
    headline = headline_of(evidence, judgement.walls, confidence=CONFIDENCE)
    if headline.estimate_x is None:
        return f"no wall met up to {evidence.trusted[-1]} users"
    return short_answer(headline, confidence=CONFIDENCE)


def _under_way(evidence: Evidence, holding: int) -> Level | None:
    level = max(evidence.levels, key=lambda level: level.window.end_unix_s, default=None)
    return level if level is not None and level.users == holding and level.requests.n else None


def _settled_s(level: Level) -> float:
    return 2 * LOOK_S + SETTLED_DURATIONS * level.window.request_duration_s


def _hold_s(level: Level) -> float:
    return max(HOLD_S, HOLD_DURATIONS * level.window.request_duration_s)


def _far_past_wall(level: Level) -> bool:
    """Whether a level is so far past a wall (a limit) that holding it longer is useless.

    This holds if more than FAR_PAST_WALL_SHARE of its requests miss one objective of latency, or fail because
    the server is overloaded.
    """
    found = level.requests
    misses = (found.ttft_miss, found.tpot_miss, found.stall_miss, found.overload)
    return found.n >= MIN_REQUESTS and any(share.fraction > FAR_PAST_WALL_SHARE for share in misses)


def _away_from(level: Level, evidence: Evidence) -> int | None:
    """Returns half the users of a level whose measurement cannot be trusted.

    None, so that the search stops, if another untrusted level had at least half as many users or if the
    level has only one user.
    """
    again = [
        other
        for other in evidence.levels
        if not other.trusted and other is not level and 2 * other.users >= level.users
    ]
    return level.users // 2 or None if not again else None


def _next(judgement: Judgement, holding: int, *, waited: bool) -> tuple[int | None, str]:
    """Returns a pair: the next number of users, or None to stop; and the reason in words."""
    evidence = judgement.evidence
    if not evidence.trusted:
        lower = holding // 2
        return (lower, "far past a wall") if lower else (None, "one user is past a wall already")
    lowest = evidence.trusted[0]
    if judgement.reasons:
        lower = min(lowest, holding) // 2
        return (lower, "past a wall already") if lower else (None, words(judgement.reasons[0]))
    headline = headline_of(evidence, judgement.walls, confidence=CONFIDENCE)
    if headline.estimate_x is None or headline.interval_x is None or headline.interval_x[1] is None:
        return _up(judgement)
    if headline.estimate_x < 1.0:
        return None, f"one user is past the {WALL_NAMES[headline.binding]} wall already"
    return _nearer(
        evidence, headline.estimate_x, headline.interval_x[1] - headline.interval_x[0], holding, waited=waited
    )


def _up(judgement: Judgement) -> tuple[int | None, str]:
    """Returns the next, higher number of users while no wall is met, and the reason.

    The next number is where the first wall is expected, but at least MIN_STEP times and at most MAX_STEP
    times the highest trusted level. It is None if the highest trusted level has MAX_SEARCHED_USERS already.
    """
    top = judgement.evidence.trusted[-1]
    if top >= MAX_SEARCHED_USERS:
        return None, f"nothing broke at {top} users"
    placed = min([stand.x for stand in judgement.walls] + _guesses(judgement.evidence), default=math.inf)
    reach = placed if placed > MIN_STEP * top else MIN_STEP * top
    users = min(max(math.ceil(min(reach, MAX_STEP * top)), top + 1), MAX_SEARCHED_USERS)
    return users, "no wall met yet"


def _guesses(evidence: Evidence) -> list[float]:
    """Returns guesses of the walls, in users, while there are too few data for the models.

    The KV-cache wall is computed from the few request lengths that are known. For TTFT, TPOT and stalls, a
    straight line through the p95 of the two highest trusted levels is extended until it meets the objective.
    """
    slo = evidence.slo
    found = []
    if evidence.pool is not None and evidence.pairs is None:
        pairs = length_pairs_of(evidence.runs, block_tokens=evidence.pool.block_tokens)
        if len(pairs) >= MIN_LENGTHS:
            holders = holders_of(
                pairs, block_tokens=evidence.pool.block_tokens, thinking=evidence.thinking_per_engine
            )
            shared = pairs.shared_prefix // evidence.pool.block_tokens
            occupancy = Occupancy(holders, evidence.pool.blocks - shared)
            found.append(evidence.pool.engines * kv_wall_users(occupancy, slo, shift=FormulaShift(), start=1))
    objectives: tuple[tuple[float | None, Callable[[Level], float | None]], ...] = (
        (slo.ttft_p95_s, lambda level: level.requests.ttft_s.p95),
        (slo.tpot_p95_s, lambda level: level.requests.tpot_s.p95),
        (slo.stall_p95_s, lambda level: level.requests.stall_s.p95),
    )
    for objective_s, p95_of in objectives:
        if objective_s is None:
            continue
        known = {level.users: p95 for level in evidence.levels if level.trusted and (p95 := p95_of(level))}
        if len(known) < 2:
            continue
        low, high = sorted(known)[-2:]
        slope = (known[high] - known[low]) / (high - low)
        if slope > 0 and known[high] < objective_s:
            found.append(high + (objective_s - known[high]) / slope)
    return found


def _nearer(
    evidence: Evidence, x: float, width: float, holding: int, *, waited: bool
) -> tuple[int | None, str]:
    """Returns the next number of users, near a wall at x users, or None to stop; and the reason in words.

    The next number lies on the side of the wall (below or above) that was measured for less time so far. It
    lies nearer to x when the confidence interval of x is narrower. width: width of this interval, in users.
    The search stops when the interval is narrow enough and both sides of the wall were measured.
    """
    around = [level for level in evidence.levels if level.trusted and abs(level.users / x - 1.0) < NEAR_SHARE]
    seconds = [
        sum(level.window.length_s for level in around if (level.users > x) == above)
        for above in (False, True)
    ]
    if width <= max(NARROW_USERS, NARROW_SHARE * x) and all(seconds):
        return None, "the interval is narrow enough"
    share = min(max(width / 2 / x, MIN_PROBE_DISTANCE), MAX_PROBE_DISTANCE)
    sides = (
        max(min(math.floor(x * (1.0 - share)), math.ceil(x) - 1), 1),
        max(math.ceil(x * (1.0 + share)), math.floor(x) + 1),
    )
    above = seconds[1] <= seconds[0]
    target = sides[above]
    here = (holding > x) == above and abs(holding - target) <= max(1.0, share * x / 2)
    near = abs(holding / x - 1.0) < NEAR_SHARE
    if here or (near and not waited):
        return holding, ""
    return target, f"{'above' if above else 'below'} the wall"

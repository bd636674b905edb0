"""Words of a report on one model: its first paragraphs, its options, and which walls it did not meet.

A wall is a limit on the number of users, such as a full KV cache or a missed objective.
"""

from collections.abc import Sequence
from pathlib import Path

from analysis.answers.capacity import (
    Headline,
    ModelAnswer,
    Option,
    WallNotMet,
    WorkloadSummary,
)
from analysis.levels.level import Level
from analysis.reporting.capacity_json import WITHOUT_MODEL
from analysis.reporting.failure_words import failure_sentences
from analysis.reporting.numbers import (
    percent,
    users_text,
)
from analysis.reporting.words import BEYOND_WALL, WALL_NAMES, of_class, sentences, wall_name, words
from analysis.statistics.crossings import MISS_LIMIT
from analysis.walls.names import WallName
from loadtest.record import Slo

MISSING: dict[WallName, str] = {"ttft": "late", "tpot": "slow", "stall": "stalled", "errors": "refused"}
WAITS: dict[WallName, str] = {
    "kv_cache": "wait for memory and are preempted",
    "prefix_cache": "compute histories again",
    "max_num_seqs": "wait for a slot",
}
FLAT = 1.2  # highest over lowest number of users, from which a curve and an interval are called wide
MIN_SHOWN_P = 0.05  # walls that come first with a lower probability are not named
AT_LEAST_NOTE = (
    "≥: at least this (95 % sure). There are fewer than the 59 independent requests that a p95 needs, or it "
    "falls on requests that ended before they had a token. Requests that share a batch or a queue count as "
    "fewer; a longer level has more."
)


def plan_title(model: ModelAnswer) -> str:
    """Says in a few words how many users to plan for."""
    if model.open_loop:
        return "open loop, no number of users"
    users = model.headline.max_users
    if users is None:
        return "no answer: the data cannot support one"
    if model.headline.at_least:
        return f"plan for at least {users_text(users)}"
    return f"plan for {users_text(users)}"


def short_answer(headline: Headline, *, confidence: float) -> str:
    """Gives the answer in brief: `plan for 18 users, limit 18.6 (90 %: 18.1 to 19.2), KV cache`."""
    assert headline.estimate_x is not None
    assert headline.interval_x is not None
    low, high = headline.interval_x
    limit = f"limit {headline.estimate_x:.1f} ({100 * confidence:.0f} %: {low:.1f} to {high:.1f})"
    return f"plan for {headline.max_users} users, {limit}, {WALL_NAMES[headline.binding]}"


def first_screen(model: ModelAnswer, *, slo: Slo, confidence: float) -> list[str]:
    """Returns the paragraphs under the title, written for a manager.

    They say what the limit and its interval are, what happens beyond the limit, which requests failed, which
    workload and objectives were used, how many levels are trusted, and whether the server was simulated.
    confidence: the confidence of the interval, such as 0.9.
    """
    parts = [_limit_text(model, confidence=confidence)]
    if not model.refused:
        parts += [f"{_beyond_text(model)} {_flat_text(model)}".strip()]
        parts += [_people_text(model), _busiest_hour_text(model)]
        parts += [_latency_alone_text(model, slo), _prefix_text(model)]
    parts += failure_sentences(model.failures, refused=model.refused)
    own = "; classes have objectives of their own" if _has_own_objectives(model, slo) else ""
    parts.append(f"{_workload_text(model.workload)}; {_objectives_text(slo)}{own}.")
    if model.levels:
        parts.append(_trusted_text(model.levels))
    if model.simulated:
        parts.append(
            f"SIMULATED: measured on Seatcount's embedded server ({model.simulated}), not on hardware."
        )
    return [part for part in parts if part]


def _has_own_objectives(model: ModelAnswer, slo: Slo) -> bool:
    those_of_run = {"ttft": slo.ttft_p95_s, "tpot": slo.tpot_p95_s, "stall": slo.stall_p95_s}
    return any(
        objective.p95_s != those_of_run.get(name)
        for found in model.classes.values()
        for name, objective in found.objectives.items()
    )


def _limit_text(model: ModelAnswer, *, confidence: float) -> str:
    head = model.headline
    if model.refused:
        return " ".join(sentences(model.reasons))
    if head.interval_x is None or head.estimate_x is None or head.interval_x[1] is None:
        return _at_least_text(model, confidence=confidence)
    low, high = head.interval_x
    interval = f"{100 * confidence:.0f} %: {low:.1f} to {high:.1f}"
    bound = next((bound for bound in model.bounds if bound.name == head.binding), None)
    wall = f"{WALL_NAMES[head.binding]}{of_class(bound.user_class if bound else None)}{_rivals(model)}"
    return (
        f"The limit is {head.estimate_x:.1f} users ({interval}): {wall}. "
        f"{head.max_users} is the lower end, rounded down."
    )


def classes_title(model: ModelAnswer) -> str:
    """Returns the title of the table of classes; empty without a workload file."""
    users = next((one.level_users for one in model.classes.values()), None)
    return "" if users is None else f"Classes of users at {users_text(users)}"


def _at_least_text(model: ModelAnswer, *, confidence: float) -> str:
    top = max(level.users for level in model.trusted)
    users = model.headline.max_users
    sure = f"{50 + 50 * confidence:.0f} % sure"
    text = f"No wall was met up to {users_text(top)}, the highest trusted level: run higher levels."
    if users is not None and users < top:
        text += (
            f" Only up to {users_text(users)} are there enough requests to be {sure} that all limits hold."
        )
    else:
        text += f" All limits hold there ({sure})."
    if model.bounds:
        nearest = model.bounds[0]
        text += f" The {WALL_NAMES[nearest.name]} wall is predicted at about {nearest.users_x:.1f} users."
    return text


def _rivals(model: ModelAnswer) -> str:
    """Says how probable it is that the named wall comes first, and which other walls may come first.

    Empty if no other wall has a probability of at least MIN_SHOWN_P.
    """
    head = model.headline
    others = [
        f"{wall_name(name)} {100 * p:.0f} %"
        for name, p in head.p_binding.items()
        if name != head.binding and p >= MIN_SHOWN_P
    ]
    if not others:
        return ""
    return f" ({100 * head.p_binding.get(head.binding, 0.0):.0f} % sure; else {', '.join(others)})"


def _beyond_text(model: ModelAnswer) -> str:
    beyond = BEYOND_WALL[model.headline.binding]
    return f"With more users, {beyond}." if beyond else ""


def _flat_text(model: ModelAnswer) -> str:
    """Says how slowly late requests become more with the users, where a latency is the limit and its interval
    is wide because of that. Empty elsewhere."""
    words_of = {"ttft": "a late first token", "tpot": "slow tokens", "stall": "a long stall"}
    late = words_of.get(model.headline.binding)
    found = next((bound for bound in model.bounds if bound.name == model.headline.binding), None)
    if late is None or found is None or found.rise_x is None:
        return ""
    if min(high / low for low, high in (found.interval_x, found.rise_x)) < FLAT:
        return ""
    half, twice = found.rise_x
    return (
        f"The curve is flat there: {50 * MISS_LIMIT:.1f} % of the requests have {late} at {half:.1f} users, "
        f"{200 * MISS_LIMIT:.0f} % at {twice:.1f}."
    )


def _people_text(model: ModelAnswer) -> str:
    """Says how many people the users stand for; empty if the share of active people is not stated."""
    found, users = model.people, model.headline.max_users
    if found is None or users is None:
        return ""
    share, least = f"{100 * found.active_fraction:g} %", "at least" if model.headline.at_least else "about"
    people = f"{least} {found.holds_people:,} people"
    text = f"That is a company of {people}, if {share} of them are active at the peak."
    if found.headcount is not None and found.users_needed is not None:
        text = (
            f"{found.headcount:,} people, {share} of them active at the peak, are {found.users_needed:,} "
            f"users: {_deployments_text(found.deployments)}."
        )
    if model.workload.settings.get("think_s") in ("0", "0.0"):
        text += " The users of this load test ask again at once; with pauses (--think-s) more people fit."
    return text


def _busiest_hour_text(model: ModelAnswer) -> str:
    """Says how many users at once the busiest hour has; empty if its requests are not stated."""
    found = model.busiest_hour
    if found is None:
        return ""
    return (
        f"{found.requests:,} requests in the busiest hour are {found.users_mean:.1f} users on average, at "
        f"{found.requests_per_user:,.0f} an hour each, and at most {users_text(found.users_needed)} at once "
        f"for 95 % of it: {_deployments_text(found.deployments)}."
    )


def _deployments_text(deployments: int | None) -> str:
    if deployments is None:
        return "this deployment is not sure to hold any"
    return "this deployment holds them" if deployments == 1 else f"{deployments:,} such deployments hold them"


def _latency_alone_text(model: ModelAnswer, slo: Slo) -> str:
    """Says how many users the objectives for latency alone would allow, where something else is the limit."""
    found, binding = model.by_latency_alone, model.headline.binding
    if found is None or binding in (*MISSING, "not_reached", "throughput"):
        return ""
    users = f"about {found.users_x:.1f} users"
    if found.at_least:
        users = f"at least {users_text(found.users)}"
    elif found.interval_x is not None and found.interval_x[1] is not None:
        users += f" ({found.interval_x[0]:.1f} to {found.interval_x[1]:.1f})"
    elif found.basis == "model":
        known = f"; measured: at least {found.interval[0]}" if found.interval else ""
        users += f" (simulated{known})"
    names = "TTFT, TPOT and errors" if slo.stall_p95_s is None else "TTFT, TPOT, stalls and errors"
    return (
        f"By the objectives for {names} alone, it would be {users}: who accepts that requests "
        f"{WAITS.get(binding, 'wait')} needs no more than that."
    )


def _prefix_text(model: ModelAnswer) -> str:
    """Says from how many users on histories are computed again, where no objective makes that a wall.

    Empty where that lies beyond the answer and beyond all trusted levels.
    """
    found = model.prefix_cache
    reach = max([level.users for level in model.trusted] + [model.headline.estimate or 0], default=0)
    if found is None or found.users_x > reach:
        return ""
    low, high = found.interval_x
    return (
        f"From about {found.users_x:.0f} users on ({low:.0f} to {high:.0f}), histories of conversations "
        "leave the prefix cache before the next turn and are computed again. The time to first token shows "
        "whether anybody suffers; --slo-prefix-hit-fraction would make it a limit."
    )


def _workload_text(workload: WorkloadSummary) -> str:
    """Describes a workload, such as `Closed loop without think time, prompts 128 and answers 32 tokens`."""
    given = workload.settings
    if "arrivals" in given or "trace" in given:
        parts = [f"Open loop, {given.get('arrivals') or given['trace']}"]
    else:
        parts = ["Closed loop" + _think_text(given.get("think_s"))]
    if "sessions" in given:
        parts.append(f"sessions of {given['sessions']}")
    if "workload" in given:
        parts.append(f"users as in {Path(given['workload']).name}")
    if workload.prompt_mean is not None and workload.output_mean is not None:
        parts.append(
            f"prompts {workload.prompt_mean:.0f} and answers {workload.output_mean:.0f} tokens (means of "
            f"{workload.requests:,} requests)"
        )
    if given.get("turns", "1") != "1":
        parts.append(f"conversations of {given['turns']} turns")
    if "thinking" in given:
        parts.append(f"thinking {given['thinking']}")
    return ", ".join(parts)


def _think_text(think_s: str | None) -> str:
    if think_s is None:
        return ""
    return " without think time" if think_s in ("0", "0.0") else f" with think time {think_s} s"


def _objectives_text(slo: Slo) -> str:
    stall = "" if slo.stall_p95_s is None else f", stall p95 at most {slo.stall_p95_s:g} s"
    return f"TTFT p95 at most {slo.ttft_p95_s:g} s, TPOT p95 at most {slo.tpot_p95_s:g} s{stall}"


def _trusted_text(levels: Sequence[Level]) -> str:
    trusted = [level for level in levels if level.trusted]
    requests = sum(level.requests.n for level in trusted)
    text = f"Trusted: {len(trusted)} of {len(levels)} levels, with {requests:,} requests in their windows"
    return f"{text}; the warnings say why not the others." if len(trusted) < len(levels) else f"{text}."


def options_title(model: ModelAnswer) -> str:
    """Returns the title of the list of options, with the present limit."""
    return f"What would raise the limit of {model.headline.estimate_x:.1f} users"


def option_text(option: Option, *, limit_x: float) -> str:
    """Describes a change to the deployment, and the limit in users that the change would lead to.

    limit_x: the present limit, users.
    """
    change = words(option.change)
    if option.users_x is None:
        return f"{change} ({WITHOUT_MODEL})."
    gain = round(option.users_x, 1) - round(limit_x, 1)  # so that the printed numbers add up
    text = f"{change}: about {option.users_x:.1f} users ({gain:+.1f})"
    if option.beyond:
        text += ", far beyond what was measured"
    if option.limited_by is not None:
        text += f", then limited by {WALL_NAMES[option.limited_by]}"
    return f"{text}."


def option_texts(model: ModelAnswer) -> list[str]:
    """Describes all changes that may raise the limit of a model; empty if no limit is known."""
    limit_x = model.headline.estimate_x
    return [] if limit_x is None else [option_text(option, limit_x=limit_x) for option in model.options]


def objectives(slo: Slo) -> list[str]:
    """Lists the objectives that a level must meet."""
    stalls = [] if slo.stall_p95_s is None else [slo.stall_p95_s]
    return [
        f"95 of 100 requests see their first token within {slo.ttft_p95_s:g} s",
        f"95 of 100 requests get a token at least every {1e3 * slo.tpot_p95_s:g} ms",
        *(f"95 of 100 answers never stand still for more than {limit_s:g} s" for limit_s in stalls),
        f"at most {percent(slo.preempted_fraction)} preemptions for each finished request",
        f"a request waits for memory at most {percent(slo.kv_blocked_fraction)} of the time",
    ]


def not_met_text(model: ModelAnswer) -> str:
    """Says which walls were not met, how far their limits are known to hold, and which walls could not have
    been seen; empty if all were met."""
    bounded = [_held_text(wall) for wall in model.not_met if wall.share_at_most is not None]
    others = [WALL_NAMES[wall.name] for wall in model.not_met if wall.share_at_most is None]
    if others:
        bounded.append(f"No wall up to {users_text(model.not_met[0].up_to_users)} from: {', '.join(others)}.")
    if model.not_observable:
        names = ", ".join(WALL_NAMES[name] for name in model.not_observable)
        bounded.append(f"Not observable here: {names}.")
    return " ".join(bounded)


def _held_text(wall: WallNotMet) -> str:
    """Says how far a limit holds: `Time to first token: at most 2.1 % late up to 24 users (5 % allowed).`"""
    name = WALL_NAMES[wall.name].capitalize() + of_class(wall.user_class)
    allowed = f"({percent(wall.limit)} allowed)"
    share = f"at most {percent(wall.share_at_most)} {MISSING[wall.name]}"
    if wall.holds_to_users is None:
        return f"{name}: too few requests at any number of users {allowed}."
    if wall.holds_to_users == wall.up_to_users:
        return f"{name}: {share} up to {users_text(wall.holds_to_users)} {allowed}."
    return f"{name}: {share} up to {users_text(wall.holds_to_users)} {allowed}, further up too few requests."

"""Words of a report on one model: its first paragraphs, and the cells of its tables.

A wall is a limit on the number of users, such as a full KV cache or a missed objective.
"""

import math
from collections.abc import Sequence

from analysis.answers.capacity import (
    Bound,
    Headline,
    ModelAnswer,
    Option,
    WallNotMet,
    WorkloadSummary,
)
from analysis.levels.level import Level
from analysis.levels.open_loop import Slice
from analysis.reporting.capacity_json import WITHOUT_MODEL
from analysis.reporting.failure_words import failure_sentences
from analysis.reporting.numbers import (
    NONE,
    fine_milliseconds,
    gib,
    milliseconds,
    milliseconds_or_more,
    percent,
    tokens_text,
    users_text,
)
from analysis.reporting.words import BASIS_WORDS, BEYOND_WALL, WALL_NAMES, sentences, wall_name, words
from analysis.statistics.crossings import MISS_LIMIT
from analysis.statistics.samples import MissShare, in_time
from analysis.walls.names import WallName
from loadtest.record import Slo

MISSING: dict[WallName, str] = {"ttft": "late", "tpot": "slow", "errors": "refused"}
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
        parts += [_latency_alone_text(model), _prefix_text(model)]
    parts += failure_sentences(model.failures, refused=model.refused)
    parts.append(f"{_workload_text(model.workload)}; {_objectives_text(slo)}.")
    if model.levels:
        parts.append(_trusted_text(model.levels))
    if model.simulated:
        parts.append(
            f"SIMULATED: measured on Seatcount's embedded server ({model.simulated}), not on hardware."
        )
    return [part for part in parts if part]


def _limit_text(model: ModelAnswer, *, confidence: float) -> str:
    head = model.headline
    if model.refused:
        return " ".join(sentences(model.reasons))
    if head.interval_x is None or head.estimate_x is None or head.interval_x[1] is None:
        return _at_least_text(model, confidence=confidence)
    low, high = head.interval_x
    interval = f"{100 * confidence:.0f} %: {low:.1f} to {high:.1f}"
    return (
        f"The limit is {head.estimate_x:.1f} users ({interval}): {WALL_NAMES[head.binding]}{_rivals(model)}. "
        f"{head.max_users} is the lower end, rounded down."
    )


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
    late = {"ttft": "a late first token", "tpot": "slow tokens"}.get(model.headline.binding)
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


def _latency_alone_text(model: ModelAnswer) -> str:
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
    return (
        f"By the objectives for TTFT, TPOT and errors alone, it would be {users}: who accepts that requests "
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
    return f"TTFT p95 at most {slo.ttft_p95_s:g} s, TPOT p95 at most {slo.tpot_p95_s:g} s"


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
    return [
        f"95 of 100 requests see their first token within {slo.ttft_p95_s:g} s",
        f"95 of 100 requests get a token at least every {1e3 * slo.tpot_p95_s:g} ms",
        f"at most {percent(slo.preempted_fraction)} preemptions for each finished request",
        f"a request waits for memory at most {percent(slo.kv_blocked_fraction)} of the time",
    ]


def workload_rows(workload: WorkloadSummary) -> list[tuple[str, str]]:
    """Returns the settings and the mean lengths of the workload, as pairs of label and value."""
    rows = list(workload.settings.items())
    if workload.prompt_mean is not None and workload.output_mean is not None:
        means = f"prompt {workload.prompt_mean:.0f}, answer {workload.output_mean:.0f} tokens"
        rows.append(("measured means", f"{means}, of {workload.requests:,} requests"))
    return rows


LEVEL_COLUMNS = (
    ("users", "users"),
    ("ended", "requests that ended in the window"),
    ("TTFT p50 ms", "sent to first token"),
    ("TTFT p95 ms", "sent to first token"),
    ("TPOT p95 ms", "time per output token after the first"),
    ("tokens/s", "output of all users"),
    ("goodput req/s", "requests a second that met every objective"),
    ("KV cache", "share of the pool in use"),
    ("preempted", "preemptions for each finished request"),
    ("blocked", "share of time in which a request waited for memory"),
    ("errors", "requests that failed"),
    ("trusted", "the answer may rest on it"),
)


def level_cells(level: Level) -> list[str]:
    """Returns the row of one level for the table of levels, in the order of LEVEL_COLUMNS."""
    requests, server = level.requests, level.server
    return [
        str(level.users),
        f"{requests.n:,}",
        milliseconds(requests.ttft_s.p50),
        milliseconds_or_more(requests.ttft_s.p95, requests.ttft_s.p95_at_least),
        milliseconds_or_more(requests.tpot_s.p95, requests.tpot_s.p95_at_least),
        f"{requests.output_tok_s:,.0f}",
        f"{requests.goodput_rps:.1f}",
        percent(server.kv_cache_usage),
        percent(level.preempted_fraction),
        percent(server.blocked.fraction if server.blocked else None),
        str(requests.errors),
        "yes" if level.trusted else "no",
    ]


IN_TIME_COLUMNS = ("users", "TTFT in time (90 % interval)", "TPOT in time (90 % interval)")


def in_time_cells(level: Level) -> list[str]:
    """Returns one table row: users, and the shares of requests within the objectives for TTFT and TPOT."""
    return [str(level.users), _in_time(level.requests.ttft_miss), _in_time(level.requests.tpot_miss)]


def _in_time(misses: MissShare) -> str:
    """Formats the share in time with its interval in per cent: `98.8 % (97.1 to 99.6)`."""
    found = in_time(misses)
    if found is None:
        return NONE
    share, low, high = (f"{100 * value:.1f}".removesuffix(".0") for value in found)
    return f"{share} % ({low} to {high})"


SLICE_COLUMNS = (
    ("seconds", "after the start of the arrivals"),
    ("due/s", "requests that were due, a second"),
    ("ended/s", "requests that ended, a second"),
    ("in flight", "mean"),
    ("tokens/s", "output of the requests that ended"),
    ("late p99 ms", "from due to sent: how late the load generator was"),
    ("TTFT p50 ms", "from sent"),
    ("TTFT p95 ms", "from sent"),
    ("from due p50 ms", "TTFT from when it was due"),
    ("from due p95 ms", "TTFT from when it was due"),
    ("errors", "requests that failed"),
    ("trusted", "the load generator's times are good"),
)


def slice_cells(one: Slice) -> list[str]:
    """Returns the table row of one time slice of an open loop, in the order of SLICE_COLUMNS.

    In an open loop, requests are sent at set times, whatever the server does.
    """
    return [
        f"{one.from_s:.0f}–{one.to_s:.0f}",
        f"{one.due_rps:.1f}",
        f"{one.ended_rps:.1f}",
        f"{one.in_flight:.1f}",
        f"{one.output_tok_s:,.0f}",
        milliseconds(one.due_to_sent_s.p99),
        milliseconds(one.ttft_s.p50),
        milliseconds(one.ttft_s.p95),
        milliseconds(one.due_ttft_s.p50),
        milliseconds(one.due_ttft_s.p95),
        str(one.errors),
        "no" if one.why_not else "yes",
    ]


def wall_cells(bound: Bound) -> list[str]:
    """Returns the row of one wall for the table of walls: name, users, interval, and basis of the value."""
    low, high = bound.interval_x
    span = f"{low:.1f} to {high:.1f}" if high - low >= 0.05 else "exact"
    return [WALL_NAMES[bound.name], f"{bound.users_x:.1f}", span, BASIS_WORDS[bound.basis]]


def memory_rows(model: ModelAnswer) -> list[tuple[str, str]]:
    """Returns the known facts about the KV cache and GPU memory, as pairs of label and value."""
    found = model.memory
    per = found.bytes_per_token
    rows = [
        ("KV pool", tokens_text(found.pool_tokens, per)),
        ("a request in flight holds (mean)", tokens_text(found.tokens_per_user, per)),
        ("its spread (standard deviation)", tokens_text(found.tokens_per_user_sd, per)),
        ("the server's gauge says", tokens_text(found.gauge_tokens_per_user, per)),
        ("gauge against requests running, R²", NONE if found.r2 is None else f"{found.r2:.3f}"),
        ("one token", NONE if per is None else f"{per / 1024:,.0f} KiB"),
        ("GPU memory beside the KV cache", gib(found.vram_base_bytes)),
    ]
    rows.append(("prompt tokens found in the prefix cache", _hit_rates(model.levels)))
    if found.own_prompts_hit_rate is not None:
        rows.append(("what the own prompts share, each sent once", percent(found.own_prompts_hit_rate)))
    if found.shared_prefix_tokens:
        rows.insert(3, ("prompt prefix that all share", tokens_text(found.shared_prefix_tokens, per)))
    return [(label, value) for label, value in rows if value != NONE]


def _hit_rates(levels: Sequence[Level]) -> str:
    """Returns the prefix-cache hit rates of the lowest and of the highest trusted level, as text.

    A dash if no trusted level has a hit rate above 0.
    """
    known = [level for level in levels if level.trusted and not math.isnan(level.server.prefix_hit_rate)]
    if not any(level.server.prefix_hit_rate for level in known):
        return NONE
    ends = known[:1] if len(known) == 1 else [known[0], known[-1]]
    return ", ".join(
        f"{percent(level.server.prefix_hit_rate)} with {users_text(level.users)}" for level in ends
    )


def latency_rows(model: ModelAnswer) -> list[tuple[str, str]]:
    """Returns the facts about the engine's step time and the timing error, as pairs of label and value."""
    found = model.latency
    rows = [
        ("a decode step takes at least", fine_milliseconds(found.step_base_s)),
        ("each sequence adds", fine_milliseconds(found.step_per_seq_s)),
        ("each prompt token adds", fine_milliseconds(found.prefill_per_token_s)),
        ("90 % of the most throughput at", _knee(model)),
        (
            "timings are good to",
            NONE if model.timing_error_s is None else f"± {1e3 * model.timing_error_s:.1f} ms at this load",
        ),
    ]
    return [(label, value) for label, value in rows if value != NONE]


def _knee(model: ModelAnswer) -> str:
    """Returns, as text, the requests in flight at which throughput reaches 90 % of its limit (the knee).

    Beyond twice the highest measured load, the text says only "more than" twice this load.
    """
    knee, loads = model.latency.knee_users, [level.in_flight for level in model.trusted]
    if knee is None or not loads:
        return NONE
    highest = max(loads)
    return (
        f"{knee:,.0f} requests in flight" if knee <= 2 * highest else f"more than {2 * highest:.0f} in flight"
    )


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
    name, allowed = WALL_NAMES[wall.name].capitalize(), f"({percent(wall.limit)} allowed)"
    share = f"at most {percent(wall.share_at_most)} {MISSING[wall.name]}"
    if wall.holds_to_users is None:
        return f"{name}: too few requests at any number of users {allowed}."
    if wall.holds_to_users == wall.up_to_users:
        return f"{name}: {share} up to {users_text(wall.holds_to_users)} {allowed}."
    return f"{name}: {share} up to {users_text(wall.holds_to_users)} {allowed}, further up too few requests."


def percentile_cells(level: Level) -> list[str]:
    """Returns one table row: users, then one cell each for TTFT, TPOT, chunk gap and request duration.

    Each of these cells holds p50 / p95 / p99 in ms.
    """
    requests = level.requests
    return [str(level.users)] + [
        " / ".join(
            milliseconds_or_more(value, at_least)
            for value, at_least in (
                (found.p50, found.p50_at_least),
                (found.p95, found.p95_at_least),
                (found.p99, found.p99_at_least),
            )
        )
        for found in (requests.ttft_s, requests.tpot_s, requests.chunk_gap_s, requests.e2e_s)
    ]

"""Tables of a report on one model: their columns, and the cells of their rows.

A wall is a limit on the number of users, such as a full KV cache or a missed objective.
"""

import math
from collections.abc import Sequence

from analysis.answers.capacity import Bound, ClassAnswer, ClassObjective, ModelAnswer, WorkloadSummary
from analysis.answers.replay import LengthsOff, ReplayAnswer
from analysis.levels.level import Level
from analysis.levels.open_loop import Slice
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
from analysis.reporting.words import BASIS_WORDS, WALL_NAMES, of_class
from analysis.statistics.samples import MissShare, Quantiles, in_time
from loadtest.record import Slo


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
    ("stall p95 ms", "longest time that an answer stood still between two events"),
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
        milliseconds_or_more(requests.stall_s.p95, requests.stall_s.p95_at_least),
        f"{requests.output_tok_s:,.0f}",
        f"{requests.goodput_rps:.1f}",
        percent(server.kv_cache_usage),
        percent(level.preempted_fraction),
        percent(server.blocked.fraction if server.blocked else None),
        str(requests.errors),
        "yes" if level.trusted else "no",
    ]


def in_time_columns(slo: Slo) -> list[str]:
    """Returns the head of the table of shares of requests within the objectives of latency."""
    names = ["TTFT", "TPOT"] if slo.stall_p95_s is None else ["TTFT", "TPOT", "stall"]
    return ["users", *(f"{name} in time (90 % interval)" for name in names)]


def in_time_cells(level: Level, slo: Slo) -> list[str]:
    """Returns one row of the table whose head is that of `in_time_columns`."""
    found = level.requests
    shares = [found.ttft_miss, found.tpot_miss, *([] if slo.stall_p95_s is None else [found.stall_miss])]
    return [str(level.users), *map(_in_time, shares)]


def _in_time(misses: MissShare) -> str:
    """Formats the share in time with its interval in per cent: `98.8 % (97.1 to 99.6)`."""
    found = in_time(misses)
    return NONE if found is None else _share_text(*found)


def _share_text(share: float, low: float, high: float) -> str:
    middle, least, most = (f"{100 * value:.1f}".removesuffix(".0") for value in (share, low, high))
    return f"{middle} % ({least} to {most})"


CLASS_COLUMNS = (
    ("class", "class of users"),
    ("users", "of this class, at the level nearest to the answer"),
    ("TTFT p95 ms", "sent to first token, and its objective"),
    ("TPOT p95 ms", "time per output token after the first, and its objective"),
    ("stall p95 ms", "longest time that an answer stood still between two events"),
    ("in time (90 % interval)", "share of requests that met every objective of latency"),
    ("KV cache", "share of the tokens that all classes hold there"),
)


def class_cells(name: str, found: ClassAnswer) -> list[str]:
    """Returns the row of one class of users for the table of classes, in the order of CLASS_COLUMNS."""
    share = NONE
    if found.in_time is not None:
        low, middle, high = found.in_time
        share = _share_text(middle, low, high)
    return [
        name,
        str(found.users),
        _with_objective(found.ttft_s, found.objectives.get("ttft")),
        _with_objective(found.tpot_s, found.objectives.get("tpot")),
        _with_objective(found.stall_s, found.objectives.get("stall")),
        share,
        percent(found.kv_share),
    ]


def _with_objective(found: Quantiles, objective: ClassObjective | None) -> str:
    """Formats a p95 with the objective that it missed: `1,240 (missed: 1,000)`."""
    text = milliseconds_or_more(found.p95, found.p95_at_least)
    if objective is None or objective.met is not False:
        return text
    return f"{text} (missed: {milliseconds(objective.p95_s)})"


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
    name = WALL_NAMES[bound.name] + of_class(bound.user_class)
    return [name, f"{bound.users_x:.1f}", span, BASIS_WORDS[bound.basis]]


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


def replay_rows(replay: ReplayAnswer | None) -> list[tuple[str, str]]:
    """Returns how faithful a replay was, as pairs of label and value; nothing without one."""
    if replay is None:
        return []
    late = f"{replay.late:,} of {replay.requests:,}"
    if replay.late_p95_s is not None:
        late += f"; p95 of their lateness {replay.late_p95_s:.2f} s"
    rows = [
        ("sessions", f"{replay.sessions:,} of {', '.join(replay.files)} ({replay.format})"),
        ("end early, longer than the context", f"{replay.too_long:,}" if replay.too_long else NONE),
        ("file begun again", f"{replay.begun_again:,} times" if replay.begun_again else NONE),
        ("turns sent late", late),
        ("answers against recorded", _off_text(replay.answers)),
        ("prompts against recorded", _off_text(replay.prompts)),
        ("prefix-cache hits of prompt tokens", _share_or_none(replay.hit_rate)),
        ("hits that what was sent allows", _share_or_none(replay.hit_rate_unbounded)),
    ]
    return [(label, value) for label, value in rows if value != NONE]


def _off_text(off: LengthsOff | None) -> str:
    """Formats how far lengths are off: `3 longer, 4 shorter of 100; 99.2 % of the tokens, p95 off 1.3 %`."""
    if off is None:
        return NONE
    return (
        f"{off.longer:,} longer, {off.shorter:,} shorter of {off.requests:,}; "
        f"{100 * off.mean_ratio:.1f} % of the tokens, p95 off {100 * off.off_p95:.1f} %"
    )


def _share_or_none(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f} %"


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


def percentile_cells(level: Level) -> list[str]:
    """Returns one table row: users, then one cell each for TTFT, TPOT, stall, chunk gap and duration.

    Each of these cells holds p50 / p95 / p99 in ms.
    """
    requests = level.requests
    columns = (requests.ttft_s, requests.tpot_s, requests.stall_s, requests.chunk_gap_s, requests.e2e_s)
    return [str(level.users)] + [
        " / ".join(
            milliseconds_or_more(value, at_least)
            for value, at_least in (
                (found.p50, found.p50_at_least),
                (found.p95, found.p95_at_least),
                (found.p99, found.p99_at_least),
            )
        )
        for found in columns
    ]

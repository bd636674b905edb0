"""What happens on the way of an answer: connections, chunks and bodies."""

import itertools
import json
from pathlib import Path

from testing.field.case import Judged, case, judged, unless
from testing.field.commands import analyse_run, user_load
from testing.field.deployment import (
    SWEEP,
    TRAFFIC,
    errors_of,
    is_memory_wall,
    memory_wall_right,
    small_server,
)
from testing.processes import gateway, simulator

_STEADY = {**TRAFFIC, "levels": "4", "level_s": "4"}


@case("a gateway cuts streams that last longer than a second")
def cut_streams(folder: Path) -> Judged:
    changes = {**SWEEP, "output_tokens": "lognormal:50,0.4", "levels": "2,4,6"}
    with simulator() as server, gateway(server, cut_after_s=1) as url:
        run = user_load(folder, url)(**changes)
    answer = analyse_run(folder)
    cut = sum(errors_of(run.rows()).values())
    model = answer.model
    binding = model.get("binding")
    return judged(
        "the cuts are named; no wall of TPOT; --max-num-seqs is not offered",
        f"{answer.brief}; {cut} cut",
        unless(cut > 10, "too few cuts to tell"),
        binding in ("tpot", "ttft") and f"a wall of {binding}",
        unless(any(map(answer.says, ("truncated", "stream_error", "cut"))), "the cuts are not named"),
        answer.says("--max-num-seqs") and "--max-num-seqs is offered",
        "errors" in answer.no_wall and "errors are said to be no wall",
    )


@case("a gateway drops streams in which nothing comes for half a second", tested=False)
def idle_streams_are_dropped(folder: Path) -> Judged:
    changes = {**TRAFFIC, "levels": "4,8,12", "level_s": "12", "prompt_tokens": "200"}
    flags = ("--max-num-seqs", "4")
    with simulator(*flags) as server, gateway(server, idle_s=0.5) as url:
        run = user_load(folder, url)(**changes)
    answer = analyse_run(folder)
    return judged(
        "errors from where requests wait for one of the four slots",
        f"{answer.brief}; {errors_of(run.rows())}",
        unless(answer.model.get("binding") in ("errors", "max_num_seqs"), "another wall"),
        unless(4 <= (answer.model.get("estimate_x") or 0) <= 8, "not 4 to 8 users"),
    )


@case("a malformed chunk in the middle of a body")
def malformed_chunks(folder: Path) -> Judged:
    with simulator() as server, gateway(server, malformed_share=0.3) as url:
        run = user_load(folder, url)(**_STEADY, request_timeout_s="20")
    broken = [row for row in run.rows() if row["outcome"] not in ("ok", "cancelled")]
    slowest = max((row["end_s"] for row in broken), default=0.0)
    return judged(
        "stream_error, at once",
        f"{errors_of(run.rows())}, after {slowest:.1f} s at most",
        unless(len(broken) > 3, "too few to tell"),
        unless(all(row["outcome"] == "stream_error" for row in broken), "another outcome"),
        unless(slowest < 3, "too late"),
    )


@case("[DONE], and the body stays open for three seconds (--request-timeout-s 2)")
def hanging_bodies(folder: Path) -> Judged:
    with simulator() as server, gateway(server, hang_s=3) as url:
        run = user_load(folder, url)(**_STEADY, request_timeout_s="2")
    rows = run.rows()
    slowest = max(row["end_s"] for row in rows)
    return judged(
        "ok, complete at [DONE]",
        f"{len(rows)} rows, {errors_of(rows) or 'all ok'}, the longest {slowest:.1f} s",
        unless(not errors_of(rows), "failures"),
        unless(slowest < 1.5, "the hanging body counts"),
    )


@case("the connection is closed right after each answer, although keep-alive was promised")
def closes_after_answer(folder: Path) -> Judged:
    with simulator() as server, gateway(server, close_after=True) as url:
        run = user_load(folder, url)(**{**_STEADY, "levels": "8"})
    rows = run.rows() if run.code == 0 else []
    replaced = sum(row.get("replaced_connections", 0) for row in rows)
    return judged(
        "no failure; replaced connections are in the rows",
        f"exit {run.code}, {len(rows)} rows, {errors_of(rows) or 'all ok'}, {replaced} replaced",
        unless(len(rows) > 20, "too few rows"),
        unless(not errors_of(rows), "failures"),
    )


@case("the server closes connections that were idle for a second, users think for a second")
def short_keep_alive(folder: Path) -> Judged:
    changes = {**_STEADY, "levels": "16", "level_s": "8", "think_s": "0.9-1.1", "output_tokens": "4"}
    with simulator() as server, gateway(server, keep_alive_s=1) as url:
        run = user_load(folder, url)(**changes)
    rows = run.rows()
    return judged(
        "no failure",
        f"{len(rows)} rows, {errors_of(rows) or 'all ok'}",
        unless(len(rows) > 60, "too few rows"),
        unless(not errors_of(rows), "failures"),
    )


@case("a gateway gathers chunks: whole answers arrive at once")
def gathered_chunks(folder: Path) -> Judged:
    with small_server() as server, gateway(server, gather_bytes=1_000_000) as url:
        user_load(folder, url)(**SWEEP)
    answer = analyse_run(folder)
    levels = answer.model.get("levels", [])
    tpot = levels[0]["tpot_s"]["p50"] if levels else None
    return judged(
        f"{memory_wall_right()}; the gathering is said; TPOT is not 0",
        f"{answer.brief}; TPOT p50 {tpot}",
        unless(answer.says("gather") or answer.says("buffer"), "the gathering is not said"),
        tpot is not None and tpot < 0.005 and "a TPOT near 0",
        unless(is_memory_wall(answer), "not the memory wall"),
        answer.says("hidden tokens") and "hidden tokens are blamed",
    )


@case("one answer in ten ends with finish_reason abort")
def aborted_answers(folder: Path) -> Judged:
    with small_server() as server, gateway(server, abort_share=0.1) as url:
        run = user_load(folder, url)(**SWEEP)
    answer = analyse_run(folder)
    aborted = sum(row["finish_reason"] == "abort" for row in run.rows())
    failed = sum(errors_of(run.rows()).values())
    return judged(
        f"failures, named; {memory_wall_right()}",
        f"{answer.brief}; {aborted} aborted, {failed} failed",
        unless(aborted > 5 and failed >= aborted, "aborted answers count as ok"),
        unless(answer.says("abort"), "not said"),
        unless(is_memory_wall(answer), "not the memory wall"),
    )


@case("a gateway that speaks HTTP/1.0 to the embedded server (nginx's default)")
def http10(folder: Path) -> Judged:
    with simulator() as server, gateway(server, http10=True) as url:
        run = user_load(folder, url)(**_STEADY)
    rows = run.rows() if run.code == 0 else []
    return judged(
        "works",
        f"exit {run.code}, {len(rows)} rows, {errors_of(rows) or 'all ok'}",
        unless(len(rows) > 10 and not errors_of(rows), "failures"),
    )


@case("a gateway that tries again when the server answers 500")
def retrying_gateway(folder: Path) -> Judged:
    with (
        small_server() as server,
        gateway(server, error_share=0.2) as shaky,
        gateway(shaky, retries=5) as url,
    ):
        run = user_load(folder, url)(**SWEEP)
    answer = analyse_run(folder)
    return judged(
        memory_wall_right(),
        f"{answer.brief}; {errors_of(run.rows()) or 'all ok'}",
        unless(is_memory_wall(answer), "not the memory wall"),
        unless(not errors_of(run.rows()), "failures"),
    )


def _turns_after_a_failed_one(run_rows: list[dict[str, object]]) -> int:
    """Counts turns that follow a failed turn of the same conversation."""
    wrong = 0
    for user in {row["user"] for row in run_rows}:
        own = sorted(
            (row for row in run_rows if row["user"] == user), key=lambda row: float(str(row["start_unix_s"]))
        )
        wrong += sum(
            before["outcome"] != "ok" and after["turn"] != 0 for before, after in itertools.pairwise(own)
        )
    return wrong


@case("conversations of five turns, of which a fifth of the turns fail")
def failed_turns(folder: Path) -> Judged:
    with simulator() as server, gateway(server, error_share=0.2) as url:
        run = user_load(folder, url)(**{**_STEADY, "level_s": "6"}, turns="5", error_pause_s="0.1")
    rows = run.rows()
    failed, wrong = errors_of(rows).get("http_error", 0), _turns_after_a_failed_one(rows)
    return judged(
        "a failed turn ends its conversation",
        f"{failed} failed turns, {wrong} conversations went on",
        unless(failed > 3, "too few to tell"),
        wrong > 0 and "conversations went on",
    )


@case("conversations, a short context, and a server that sends no usage")
def conversations_without_usage(folder: Path) -> Judged:
    with simulator("--max-model-len", "160") as server, gateway(server, no_usage=True) as url:
        run = user_load(folder, url)(**{**_STEADY, "level_s": "6"}, turns="8")
    rows = run.rows() if run.code == 0 else []
    refused = sum(row["http_status"] == 400 for row in rows)
    deepest = max((row["turn"] for row in rows), default=0)
    return judged(
        "lengths are estimated: no turn overflows the context",
        f"exit {run.code}, {len(rows)} rows up to turn {deepest}, {refused} got 400",
        unless(len(rows) > 10 and deepest >= 1, "too few turns"),
        refused > 0 and "turns overflow the context",
        unless(json.dumps(rows).count('"prompt_tokens": null') == len(rows), "lengths are invented"),
    )

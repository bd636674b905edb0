"""Servers and gateways that cannot do more: they shed user_load, limit rates, or answer too late."""

import itertools
from pathlib import Path

from testing.field.case import Judged, case, judged, unless
from testing.field.commands import Analysed, analyse_run, user_load
from testing.field.deployment import SHORT_TRAFFIC, TRAFFIC, errors_of, small_server
from testing.load_tests import Finished
from testing.processes import gateway, simulator


def _errors_wall(answer: Analysed, users: int) -> bool:
    """Whether errors are the wall, met by one of the two users after these."""
    model = answer.model
    if not model or model["refused"] or model["binding"] != "errors":
        return False
    return bool(model["max_users"] == users and users <= model["estimate_x"] <= users + 2)


def _storm(run: Finished, *, users: int) -> str:
    """Says whether failed requests were sent again at once: users who wait a second send few."""
    rows = run.rows()
    failed = [row for row in rows if row["outcome"] not in ("ok", "cancelled")]
    seconds = max(row["start_unix_s"] for row in rows) - min(row["start_unix_s"] for row in rows)
    return unless(len(failed) <= users * (seconds + 2), f"{len(failed)} failed requests in {seconds:.0f} s")


@case("a gateway answers 503 from the seventh unfinished request on")
def gateway_sheds_load(folder: Path) -> Judged:
    with small_server() as server, gateway(server, shed_from=7, words="Too many requests in line") as url:
        run = user_load(folder, url)(**SHORT_TRAFFIC, levels="3,6,8", level_s="8")
    answer = analyse_run(folder)
    return judged(
        "6 users, errors (503)",
        answer.brief,
        unless(_errors_wall(answer, 6), "not 6 by errors"),
        unless(answer.says("503", "Too many requests in line"), "status and words are not said"),
        _storm(run, users=8),
    )


@case(
    "the server itself answers 503 from the fifth unfinished request on (--max-num-queued-reqs 4)",
)
def server_sheds_load(folder: Path) -> Judged:
    with simulator("--max-num-queued-reqs", "4") as url:
        run = user_load(folder, url)(**SHORT_TRAFFIC, levels="2,4,6", level_s="9")
    answer = analyse_run(folder)
    return judged(
        "4 users, errors (503)",
        answer.brief,
        unless(_errors_wall(answer, 4), "not 4 by errors"),
        unless(answer.says("503"), "the status is not said"),
        _storm(run, users=6),
    )


@case("a gateway sheds with 429 and Retry-After: 3")
def retry_after_is_obeyed(folder: Path) -> Judged:
    with small_server() as server, gateway(server, shed_from=5, shed_status=429, retry_after=3) as url:
        run = user_load(folder, url)(**SHORT_TRAFFIC, levels="2,4,6", level_s="9")
    answer, rows = analyse_run(folder), run.rows()
    gaps = []
    for user in {row["user"] for row in rows}:
        own = sorted((row for row in rows if row["user"] == user), key=lambda row: row["start_unix_s"])
        gaps += [
            after["start_unix_s"] - before["start_unix_s"] - before["end_s"]
            for before, after in itertools.pairwise(own)
            if before["http_status"] == 429
        ]
    shortest = min(gaps, default=0.0)
    return judged(
        "4 users, errors (429); users wait 3 s",
        f"{answer.brief}; shortest wait {shortest:.1f} s",
        unless(_errors_wall(answer, 4), "not 4 by errors"),
        unless(shortest > 2.9, "Retry-After is not obeyed"),
        unless(answer.says("429"), "the status is not said"),
    )


@case("a limit of 600 requests a minute (429)")
def requests_a_minute(folder: Path) -> Judged:
    with small_server() as server, gateway(server, requests_a_minute=600) as url:
        run = user_load(folder, url)(**TRAFFIC, levels="1,2,3,4", level_s="12")
    answer = analyse_run(folder)
    model = answer.model
    right = bool(model) and not model["refused"] and model["binding"] == "errors"
    return judged(
        "a limit of 2 to 3 users, errors (429), about 10 requests a second; no second replica",
        answer.brief,
        unless(right and 2 <= model["estimate_x"] <= 3, "not 2 to 3 by errors"),
        unless(right and 1 <= model["max_users"] <= 2, "not 1 or 2 users to plan with"),
        unless(answer.says("429"), "the status is not said"),
        unless(answer.says("requests a second") or answer.says("requests/s"), "the limit's rate is not said"),
        answer.says("second replica") and "a second replica is offered",
        _storm(run, users=4),
    )


@case("a limit of tokens a minute (429)")
def tokens_a_minute(folder: Path) -> Judged:
    with small_server() as server, gateway(server, tokens_a_minute=30_000) as url:
        user_load(folder, url)(**TRAFFIC, levels="1,2,4,8", level_s="5")
    answer = analyse_run(folder)
    model = answer.model
    right = bool(model) and not model["refused"] and model["binding"] == "errors"
    return judged(
        "2 users, errors (429: tokens a minute)",
        answer.brief,
        unless(right and 1 <= model["max_users"] <= 3, "not 1 to 3 by errors"),
        unless(answer.says("429", "tokens a minute"), "status and words are not said"),
    )


@case("a key without any quota: every request 429")
def no_quota(folder: Path) -> Judged:
    with small_server() as server, gateway(server, status=429, words="You exceeded your quota") as url:
        run = user_load(folder, url)(**TRAFFIC, levels="1,2", level_s="3")
    return judged(
        "a sentence with 429 and the server's words, exit code not 0",
        f"exit {run.code}",
        unless(run.code != 0, "exit code 0"),
        unless("429" in run.said and "You exceeded your quota" in run.said, "status or words are not said"),
        "Traceback" in run.said and "a traceback",
    )


@case("a slow server: requests time out from about nine users on (--request-timeout-s 2)")
def requests_time_out(folder: Path) -> Judged:
    limits = {**TRAFFIC, "levels": "2,4,12", "level_s": "12", "slo_ttft_p95_s": "1"}
    with small_server() as server, gateway(server, delay_s=0.25, delay_slots=1) as url:
        patient = folder / "patient"
        user_load(patient, url)(**limits)
        run = user_load(folder, url)(**limits, request_timeout_s="2")
    clean, answer = analyse_run(patient), analyse_run(folder)
    timeouts = errors_of(run.rows()).get("timeout", 0)
    model = answer.model
    right = bool(model) and not model["refused"] and model["binding"] in ("ttft", "errors")
    patient_x = clean.model.get("estimate_x")
    near = right and patient_x is not None and abs(model["estimate_x"] - patient_x) < 1.5
    last = model["levels"][-1] if model and model["levels"] else {}
    return judged(
        f"as with patience: {clean.brief}; the level of 12 is trusted",
        f"{answer.brief}; {timeouts} timeouts",
        unless(near, "another answer"),
        unless(timeouts > 5, "too few timeouts to tell"),
        unless(bool(last.get("trusted")), f"12 users not trusted: {last.get('why_not')}"),
    )


@case("a slow gateway in front of an idle engine")
def slow_gateway(folder: Path) -> Judged:
    with small_server() as server, gateway(server, delay_s=0.15, delay_slots=1) as url:
        user_load(folder, url)(**TRAFFIC, levels="2,4,8,12", level_s="6", slo_ttft_p95_s="0.8")
    answer = analyse_run(folder)
    return judged(
        "TTFT, by what lies before the engine; no faster GPU, no larger pool",
        answer.brief,
        unless(bool(answer.model) and answer.model["binding"] == "ttft", "not by TTFT"),
        unless(answer.says("gateway") or answer.says("before the engine"), "the gateway is not named"),
        answer.says("faster GPU") and "a faster GPU is offered",
    )


@case("two replicas behind a router, with one metrics address and with both")
def two_replicas(folder: Path) -> Judged:
    sweep = {**TRAFFIC, "levels": "8,16,24", "level_s": "6"}
    with small_server() as first, small_server() as second, gateway(first, second) as url:
        user_load(folder / "blind", url)(**sweep)
        user_load(folder, url)(**sweep, metrics_url=f"{first}/metrics,{second}/metrics")
    blind, answer = analyse_run(folder / "blind"), analyse_run(folder)
    model = answer.model
    right = bool(model) and not model["refused"] and model["binding"] == "kv_cache"
    return judged(
        "22 users by the KV cache with both addresses; several replicas named with one",
        f"{answer.brief}; with one address: {blind.brief}",
        unless(right and 18 <= model["estimate_x"] <= 24, "not 18 to 24 by the KV cache"),
        unless(blind.says("replica") or blind.says("several"), "several replicas are not named"),
        unless(blind.says("--metrics-url"), "--metrics-url is not named"),
    )

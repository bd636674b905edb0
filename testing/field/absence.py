"""Servers that go, come back, change, or are not ready yet."""

import time
from pathlib import Path

from testing.field.case import Judged, case, judged, unless
from testing.field.commands import Analysed, analyse_run, user_load, wait_for_level
from testing.field.deployment import (
    SMALL_POOL,
    SWEEP,
    TRAFFIC,
    errors_of,
    is_memory_wall,
    killable_server,
    memory_wall_right,
    small_server,
)
from testing.load_tests import Finished
from testing.processes import change_gateway, gateway

FALSE_REASONS = ("Little's law", "tokens disagree", "clocks differ")


def _away(run: Finished, answer: Analysed, *, least: int) -> Judged:
    """Judges a sweep in which the server was away for a while."""
    rows = run.rows()
    failed = sum(errors_of(rows).values())
    seconds = max(row["start_unix_s"] for row in rows) - min(row["start_unix_s"] for row in rows)
    return judged(
        f"{memory_wall_right()}; the absence is named",
        f"{answer.brief}; {failed} failed requests; away {run.info['away']}",
        unless(is_memory_wall(answer), "not the memory wall"),
        unless(failed >= least, "too few failures to tell"),
        unless(failed <= 12 * (seconds + 2), "a storm"),
        unless(len(run.info["away"]) == 1, "the absence is not in run.json"),
        unless(answer.says("away"), "the absence is not said"),
        *(answer.says(reason) and f"'{reason}' is blamed" for reason in FALSE_REASONS),
        unless(run.code == 0, f"exit {run.code}"),
    )


@case("the gateway is away for six seconds in the second of four levels")
def away_six_seconds(folder: Path) -> Judged:
    with small_server() as server, gateway(server) as url:

        def go(run: Finished) -> None:
            wait_for_level(run, 2)
            time.sleep(2)
            change_gateway(url, away_s=6)

        run = user_load(folder, url, meanwhile=go)(**{**SWEEP, "levels": "4,8,10,12", "level_s": "8"})
    return _away(run, analyse_run(folder), least=6)


@case("the server dies and is back after two seconds, its counters at 0")
def engine_restarts(folder: Path) -> Judged:
    with killable_server(*SMALL_POOL, "--enable-prompt-tokens-details") as server:

        def go(run: Finished) -> None:
            wait_for_level(run, 2)
            time.sleep(2)
            server.kill()
            time.sleep(2)
            server.start()

        run = user_load(folder, server.url, meanwhile=go)(**SWEEP)
    return _away(run, analyse_run(folder), least=4)


@case("the search: the server dies and is back after two seconds", tested=False)
def engine_restarts_in_a_search(folder: Path) -> Judged:
    with killable_server(*SMALL_POOL, "--enable-prompt-tokens-details") as server:

        def go(run: Finished) -> None:
            wait_for_level(run, 2)
            time.sleep(2)
            server.kill()
            time.sleep(2)
            server.start()

        run = user_load(folder, server.url, meanwhile=go)(scenario="find_capacity", **TRAFFIC, budget_s="90")
    return _away(run, analyse_run(folder), least=2)


@case("the server dies in the second level and stays away")
def server_stays_away(folder: Path) -> Judged:
    died: list[float] = []
    with killable_server(*SMALL_POOL) as server:

        def go(run: Finished) -> None:
            wait_for_level(run, 2)
            time.sleep(1)
            server.kill()
            died.append(time.monotonic())

        run = user_load(folder, server.url, meanwhile=go)(**SWEEP)
        took_s = time.monotonic() - died[0]
    answer = analyse_run(folder)
    return judged(
        "ends within a minute, not with 0, in a sentence; the level before stands",
        f"exit {run.code} after {took_s:.0f} s; {answer.brief}",
        unless(took_s < 60, "too late"),
        unless(run.code not in (0, -9), "exit code"),
        unless("away" in run.said or "no longer answers" in run.said, "the load test does not say why"),
        unless(any(level["trusted"] for level in answer.model.get("levels", [])), "no level stands"),
        answer.model.get("binding") == "errors" and "errors are the wall",
    )


@case("the server comes back with another pool")
def another_pool(folder: Path) -> Judged:
    with killable_server(*SMALL_POOL) as server:

        def go(run: Finished) -> None:
            wait_for_level(run, 2)
            time.sleep(2)
            server.kill()
            server.start("--num-gpu-blocks-override", "81")

        user_load(folder, server.url, meanwhile=go)(**{**SWEEP, "levels": "4,8,10"})
    answer = analyse_run(folder)
    levels, memory = answer.model.get("levels", []), answer.model.get("memory", {})
    return judged(
        "the change is named; no mixture of both is the answer",
        answer.brief,
        unless(answer.says("another pool"), "not named"),
        unless(memory.get("pool_tokens") == 80 * 16, "not the pool that is there now"),
        unless(
            all(level["users"] > 4 for level in levels if level["trusted"]),
            "levels of both pools are taken together",
        ),
    )


@case("a model that loads at the first request, for six seconds")
def loads_on_first_use(folder: Path) -> Judged:
    with small_server() as server, gateway(server, cold_s=6, cold_after_s=1e6) as url:
        run = user_load(folder, url)(**SWEEP)
    answer = analyse_run(folder)
    slowest = max(row["chunk_s"][0] for row in run.rows() if row["chunk_s"])
    return judged(
        memory_wall_right(),
        f"{answer.brief}; longest TTFT {slowest:.1f} s",
        unless(is_memory_wall(answer), "not the memory wall"),
        unless(slowest < 3, "the loading is in the rows"),
    )


@case("a server that still loads its model: 503 for four seconds")
def still_loading(folder: Path) -> Judged:
    with small_server() as server, gateway(server, status=503, words="Loading model") as url:

        def ready(_: Finished) -> None:
            time.sleep(6)
            change_gateway(url, status=None)

        run = user_load(folder, url, meanwhile=ready)(levels="2")
    return judged(
        "waits until it is ready, or exit 2 with the server's words",
        f"exit {run.code}",
        unless(run.code == 0 or (run.code == 2 and "Loading model" in run.said), "neither"),
    )


@case("a cold start after each idle second, users who think two seconds")
def cold_starts(folder: Path) -> Judged:
    changes = {**TRAFFIC, "levels": "1,8,16", "level_s": "8", "think_s": "2", "slo_ttft_p95_s": "1"}
    with small_server() as server, gateway(server, cold_s=1.5, cold_after_s=1) as url:
        user_load(folder, url)(**changes)
    answer = analyse_run(folder)
    refused = bool(answer.model) and answer.model["refused"]
    return judged(
        "no answer that one user is past the TTFT wall: more users are served in time",
        answer.brief,
        refused and answer.says("already the lowest") and "one user is said to be too many",
    )


@case("a second replica appears in the second level")
def replica_appears(folder: Path) -> Judged:
    with killable_server(*SMALL_POOL) as first, killable_server(*SMALL_POOL) as second:
        second.kill()
        with gateway(first.url) as url:

            def go(run: Finished) -> None:
                wait_for_level(run, 2)
                time.sleep(2)
                second.start()
                change_gateway(url, upstreams=[first.url, second.url])

            both = f"{first.url}/metrics,{second.url}/metrics"
            run = user_load(folder, url, meanwhile=go)(**{**SWEEP, "levels": "4,8,16"}, metrics_url=both)
    answer = analyse_run(folder)
    return judged(
        "said: a replica appeared",
        f"exit {run.code}; {answer.brief}",
        unless(run.code == 0, (run.said.strip().splitlines() or [""])[-1]),
        unless(answer.says("replica") or answer.says("engine"), "not said"),
        answer.says("Little's law") and "Little's law is blamed",
    )

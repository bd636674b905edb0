"""`locust -f scenarios/chat.py` and the search against a server that goes away."""

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from testing.load_tests import Finished, RunLocust, locust_command, two_processes
from testing.processes import ROOT, change_gateway, clean_environment, gateway, until

IMPATIENT = """
from loadtest.run.live import absence
from scenarios.chat import Chat

absence.LOST_AFTER_S = 6.0
absence.LAST_TRY_S = 2.0
"""
"""A locustfile that waits for a server for seconds instead of a minute."""


def test_a_level_in_which_the_server_was_away_is_held_again(run_locust: RunLocust, simulated: str) -> None:
    with gateway(simulated, away_s=3, away_in_s=7) as url:
        run = run_locust(url, *two_processes(), levels="2,3,4", level_s="6", output_tokens="20")
    assert run.code == 0, run.said
    ((begin, end),) = run.info["away"]
    assert 2.5 < end - begin < 8
    whole = {
        users
        for start, stop, users in run.info["schedule"]
        if stop - start > 5.5 and not (begin < stop and start < end)
    }
    assert whole == {2, 3, 4}
    assert len(run.info["schedule"]) > 3
    later = [row for row in run.rows() if row["start_unix_s"] > end]
    assert {row["outcome"] for row in later} == {"ok"}
    assert "The server does not answer (" in run.said
    assert re.search(r"The level of [23] users is held again: the server was away\.", run.said)
    assert "The server is back; it was away for" in run.said


def test_a_server_that_turns_some_requests_away_is_not_away(run_locust: RunLocust, simulated: str) -> None:
    with gateway(simulated, shed_from=3) as url:
        run = run_locust(url, levels="4,4", level_s="3", output_tokens="60")
    assert run.code == 0, run.said
    assert {row["http_status"] for row in run.rows()} == {200, 503}
    assert run.info["away"] == []
    assert {users for _, _, users in run.info["schedule"]} == {4}


@contextlib.contextmanager
def under_load(reports: Path, host: str, *flags: str, **changes: str) -> Iterator["subprocess.Popen[str]"]:
    """A load test of which some rows are on the disk."""
    command = locust_command(reports, host, *flags, **changes)
    environment = clean_environment(PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        try:
            until(30, lambda: len(Finished(0, "", reports).rows()) > 5)
            yield process
        finally:
            process.kill()


def test_a_server_that_answers_only_429_is_not_away(simulated: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    with gateway(simulated) as url, under_load(reports, url, levels="1,2", level_s="5") as process:
        change_gateway(url, status=429)
        said = process.communicate(timeout=60)[1]
    run = Finished(process.returncode, said, reports)
    assert run.info["away"] == []
    assert "does not answer" not in said
    assert process.returncode == 0, said
    assert {row["http_status"] for row in run.rows()} == {200, 429}


def test_a_server_that_stays_away_ends_the_run_with_all_rows_and_code_1(
    simulated: str, tmp_path: Path
) -> None:
    reports, scenario = tmp_path / "reports", tmp_path / "impatient.py"
    scenario.write_text(IMPATIENT)
    flags = ["-f", str(scenario)]
    with gateway(simulated) as url, under_load(reports, url, *flags, levels="2,4", level_s="30") as process:
        until(20, lambda: len(Finished(0, "", reports).rows()) > 30)
        change_gateway(url, away_s=600)
        began = time.monotonic()
        said = process.communicate(timeout=60)[1]
        assert time.monotonic() - began < 20
    run = Finished(process.returncode, said, reports)
    assert process.returncode == 1, said
    assert re.search(r"The server stayed away: no request was answered for \d+ s \(.*connect_error", said), (
        said
    )
    assert "Traceback" not in said
    assert run.info["ended_unix_s"] is not None
    rows, ((begin, end),) = run.rows(), run.info["away"]
    assert 6 <= end - begin < 15
    assert sum(row["outcome"] == "ok" for row in rows) > 20
    assert max(row["start_unix_s"] for row in rows if row["outcome"] != "ok") > begin + 2


def test_a_run_that_ends_while_the_server_is_away_exits_1(simulated: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    with gateway(simulated) as url, under_load(reports, url, "-u", "3", "-t", "12s") as process:
        change_gateway(url, away_s=60)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1, said
    assert "The server was away when the run ended: no request was answered any more (" in said


def test_a_key_that_expires_ends_the_run_with_the_servers_words(simulated: str, tmp_path: Path) -> None:
    reports, words = tmp_path / "reports", "The key has expired."
    with (
        gateway(simulated, words=words) as url,
        under_load(reports, url, levels="2,4,6", level_s="30") as process,
    ):
        change_gateway(url, status=401)
        began = time.monotonic()
        said = process.communicate(timeout=60)[1]
        assert time.monotonic() - began < 25
    assert process.returncode == 1, said
    assert re.search(rf'The server refuses every request \(\d+ x 401\) with the words ".*{words}', said)
    assert "Traceback" not in said
    assert {row["http_status"] for row in Finished(1, said, reports).rows()} == {200, 401}


def test_a_last_level_of_refused_requests_exits_1(simulated: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    with gateway(simulated) as url, under_load(reports, url, levels="1,4", level_s="4") as process:
        change_gateway(url, status=404)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1, said
    assert re.search(r"No request of the last level succeeded: \d+ x 404\.", said)


def test_a_run_without_any_success_exits_1(run_locust: RunLocust, simulated: str) -> None:
    with gateway(simulated, empty_share=1.0) as url:
        run = run_locust(url, levels="1")
    assert run.code == 1, run.said
    assert re.search(r"No request succeeded: \d+ x empty\.", run.said)
    assert {row["outcome"] for row in run.rows()} == {"empty"}

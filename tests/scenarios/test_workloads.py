"""Workload files as a user runs them, against the embedded server."""

import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from loadtest.workload.classes import read_workload_file, users_of_classes
from testing.load_tests import RunLocust, locust_command, post, two_processes
from testing.processes import ROOT, clean_environment, free_port, listening, simulator, until

MIX = """
[[class]]
name = "chat"
weight = 2
prompt_tokens = 40
output_tokens = 8
turns = "1-3"
think_s = 0.2

[[class]]
name = "agent"
weight = 1
shared_tokens = 320
context_tokens = 60
prompt_tokens = 40
output_tokens = 5
steps = 3
tool_tokens = 25
tool_s = 0.1
think_s = 1.6
temperature = 0.7
"""
PRESETS = ROOT / "scenarios" / "workloads"
NO_LENGTHS = {"prompt_tokens": "", "output_tokens": ""}


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    path = tmp_path / "mix.toml"
    path.write_text(MIX)
    return path


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "requests-0.jsonl").read_text().splitlines()]


def _info(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def classes_at_levels(rows: list[dict[str, Any]]) -> dict[int, dict[str, int]]:
    """Users of each class that asked something in the level of so many users."""
    users: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        if row["level_users"] is not None:
            users[row["level_users"]][row["class"]].add(row["user"])
    return {level: {name: len(own) for name, own in each.items()} for level, each in users.items()}


def requests_of_users(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    by_user = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["start_unix_s"]):
        by_user[row["user"]].append(row)
    return list(by_user.values())


def test_every_level_has_the_shares_of_the_classes_up_and_down_in_two_processes(
    run_locust: RunLocust, simulated: str, mix: Path
) -> None:
    run = run_locust(
        simulated, *two_processes(), levels="2,7,4", level_s="3", workload=str(mix), **NO_LENGTHS
    )
    assert run.code == 0, run.said
    classes = read_workload_file(mix)
    assert classes_at_levels(run.rows()) == {users: users_of_classes(classes, users) for users in (2, 4, 7)}
    outcomes = [row["outcome"] for row in run.rows()]
    assert len(outcomes) - outcomes.count("ok") <= outcomes.count("cancelled") <= 3  # users who were stopped
    assert "classes  chat 67%, agent 33% of the users" in run.said
    assert [each["name"] for each in run.info["classes"]] == ["chat", "agent"]
    assert run.info["classes"][1]["temperature"] == 0.7
    assert run.info["settings"]["prompt_tokens"] is None
    assert run.info["settings"]["workload"] == str(mix)
    agents = [row for row in run.rows() if row["class"] == "agent" and row["outcome"] == "ok"]
    tokens = {step: [row["prompt_tokens"] for row in agents if row["step"] == step] for step in (0, 1, 2)}
    assert all(abs(count - 420) <= 8 for count in tokens[0]), tokens  # 320 shared, 60 of context, 40 asked
    assert all(abs(count - 450) <= 12 for count in tokens[1]), tokens  # and an answer of 5, and a tool's 25
    assert all(row["turn"] == row["step"] for row in agents)
    plain = [  # as far off: the first word of a prompt has more tokens in one process than in another
        row["prompt_tokens"]
        for row in run.rows()
        if (row["class"], row["turn"], row["outcome"]) == ("chat", 0, "ok")
    ]
    assert all(abs(count - 40) <= 8 for count in plain), plain
    samples = run.rows("server.jsonl")
    hits = samples[-1]["prefix_cache_hits_total"] - samples[0]["prefix_cache_hits_total"]
    first = [row for row in agents if row["step"] == 0 and row["outcome"] == "ok"]
    assert hits > 300 * (len(first) - 3)  # all but the first conversations find the shared text
    _check_pauses(agents)
    _check_starts([row for row in run.rows() if row["start_unix_s"] > run.info["schedule"][0][1]])


def _check_starts(rows: list[dict[str, Any]]) -> None:
    """Users who started together asked first when what remained of their own class's pause was over."""
    started = []
    for first, *_ in requests_of_users(rows):
        waits = random.Random(f"waits/0/{first['user']}")
        if first["turn"] == 0:
            wait_s = waits.random() * 1.6 if first["class"] == "agent" else waits.uniform(0, 1)
            started.append(first["start_unix_s"] - wait_s)
    together = [at for at in started if abs(at - statistics.median(started)) < 0.5]
    assert len(together) >= 5, started


def _check_pauses(agents: list[dict[str, Any]]) -> None:
    pauses: dict[bool, list[float]] = {True: [], False: []}
    for own in requests_of_users(agents):
        for before, after in itertools.pairwise(own):
            pauses[after["step"] == 0].append(
                after["start_unix_s"] - before["start_unix_s"] - before["end_s"]
            )
    assert statistics.median(pauses[False]) == pytest.approx(0.1, abs=0.06)  # a tool works
    assert statistics.median(pauses[True]) == pytest.approx(1.6, abs=0.1)  # a person thinks


def test_a_search_holds_the_shares_of_the_classes_and_other_files_run_in_scenarios_of_ones_own(
    run_locust: RunLocust, mix: Path, tmp_path: Path
) -> None:
    """The locustfile names its workload file, has pauses of its own, and searches."""
    own = tmp_path / "own.py"
    own.write_text(
        "from pathlib import Path\n"
        "from loadtest.locust_plugin.search import SearchShape\n"
        "from loadtest.user import ChatUser\n"
        "class Person(ChatUser):\n"
        "    scenario = 'own'\n"
        f"    workload = Path({str(mix)!r})\n"
        "    def wait_time(self):\n"
        "        return 0.01\n"
    )
    relative = os.path.relpath(own.with_suffix(""), ROOT / "scenarios")
    with simulator("--num-gpu-blocks-override", "81") as url:
        run = run_locust(url, scenario=relative, budget_s="5", **NO_LENGTHS)
    assert run.code == 0, run.said
    assert run.info["scenario"] == "own"
    counts = classes_at_levels(run.rows())
    classes = read_workload_file(mix)
    for users, each in counts.items():
        expected = users_of_classes(classes, users)
        assert all(each.get(name, 0) <= expected[name] for name in expected), (users, each)
    assert {row["class"] for row in run.rows()} == {"chat", "agent"}


def test_the_form_of_the_page_takes_a_workload_file_for_one_run(
    simulated: str, mix: Path, tmp_path: Path
) -> None:
    reports, port = tmp_path / "reports", free_port()
    command = locust_command(
        reports, simulated, "--web-host", "127.0.0.1", "--web-port", str(port), **NO_LENGTHS
    )
    command.remove("--headless")
    page, common = f"http://127.0.0.1:{port}", {"spawn_rate": "10", "host": simulated}

    def users_of_level(run: str) -> list[int]:
        return [users for path in reports.glob(f"{run}/run.json") for *_, users in _info(path)["schedule"]]

    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            until(60, lambda: listening(port))
            post(f"{page}/swarm", user_count="3", workload=str(mix), **common)
            until(60, lambda: users_of_level("*") == [3])
            (first,) = (path.name for path in reports.iterdir())
            post(f"{page}/swarm", user_count="5", workload=str(mix), **common)
            until(60, lambda: users_of_level(first) == [3, 5])
            time.sleep(2.5)  # an agent pauses 1.6 s
            urllib.request.urlopen(urllib.request.Request(f"{page}/stop", method="POST"), timeout=20).read()
            post(f"{page}/swarm", user_count="2", workload="", prompt_tokens="30", **common)
            until(60, lambda: len(list(reports.glob("*/requests-0.jsonl"))) == 2)
            time.sleep(1)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130  # a run was under way
    (second,) = (path for path in reports.iterdir() if path.name != first)
    counts = classes_at_levels(_rows(reports / first))
    assert counts[5] == {"chat": 3, "agent": 2}
    assert {row["class"] for row in _rows(second)} == {None}
    assert _info(second / "run.json")["classes"] is None


def test_arrivals_draw_their_class(run_locust: RunLocust, simulated: str, mix: Path) -> None:
    mix.write_text(MIX.replace('turns = "1-3"', "").replace("steps = 3\ntool_tokens = 25", ""))
    run = run_locust(
        simulated,
        arrivals="constant:40",
        level_s="2",
        environment={"LOADTEST_WORKLOAD": str(mix)},
        **NO_LENGTHS,
    )
    assert run.code == 0, run.said
    rows = run.rows()
    assert 78 <= len(rows) <= 80
    assert {row["outcome"] for row in rows} == {"ok"}
    assert 35 <= sum(row["class"] == "chat" for row in rows) <= 70


def test_every_preset_runs_in_its_own_lengths(run_locust: RunLocust, tmp_path: Path) -> None:
    """All at once, as classes of one file, each with one user. Only the pauses of people are left out."""
    files = [path for path in sorted(PRESETS.glob("*.toml")) if path.stem != "mix"]
    together = tmp_path / "all.toml"
    together.write_text(
        "\n".join(path.read_text() for path in files).replace('think_s = "lognormal:122,1"', "think_s = 0")
    )
    classes = read_workload_file(together)
    assert len(classes) == len(files) == 10
    with simulator("--preset", "llama-3.1-8b-h100") as url:
        run = run_locust(
            url,
            scenario="mix",
            levels=str(len(classes)),
            level_s="3",
            settle_s="0.1",
            workload=str(together),
            **NO_LENGTHS,
        )
    assert run.code == 0, run.said
    rows = [row for row in run.rows() if row["turn"] == 0]
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["class"] for row in rows} == {each.name for each in classes}
    tokens = {row["class"]: row["prompt_tokens"] for row in rows}
    assert tokens["long-document"] == pytest.approx(10240, rel=0.01)
    assert tokens["coding-agent-small"] == pytest.approx(5000, rel=0.01)
    assert tokens["coding-agent"] > 114_000
    assert tokens["chat-long"] > 4450


@pytest.mark.parametrize("name", ["rag", "agent", "code", "summary", "mix"])
def test_a_scenario_names_a_file_that_there_is(name: str) -> None:
    text = (ROOT / "scenarios" / f"{name}.py").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("    workload = ")]
    assert (PRESETS / line.rpartition('"workloads" / "')[2].rstrip('"')).is_file()
    assert len(text.splitlines()) <= 22


def test_a_class_that_does_not_fit_the_context_is_refused(
    run_locust: RunLocust, simulated: str, mix: Path
) -> None:
    mix.write_text(MIX.replace("shared_tokens = 320", "shared_tokens = 9000"))
    run = run_locust(simulated, workload=str(mix), levels="1", **NO_LENGTHS)
    assert run.code == 2
    assert f"{mix}: class 'agent': a first request of 9000 shared, 60 context and 40 prompt" in run.said
    assert "does not fit: the model's context is 6400 tokens." in run.said
    assert "Traceback" not in run.said

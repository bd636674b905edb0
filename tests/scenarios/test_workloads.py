"""Workload files as a user runs them, against the embedded server."""

import itertools
import os
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from loadtest.workload.classes import read_workload_file, users_of_classes
from testing.load_tests import Finished, RunLocust, two_processes
from testing.processes import ROOT, simulator

MIX = """
[[class]]
name = "chat"
weight = 2
prompt_tokens = 40
output_tokens = 8
turns = "1-3"
think_s = 0.05

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
think_s = 0.6
temperature = 0.7
"""
PRESETS = ROOT / "scenarios" / "workloads"
NO_LENGTHS = {"prompt_tokens": "", "output_tokens": ""}


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    path = tmp_path / "mix.toml"
    path.write_text(MIX)
    return path


def classes_at_levels(run: Finished) -> dict[int, dict[str, int]]:
    """Users of each class that asked something in the level of so many users."""
    users: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in run.rows():
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
        simulated, *two_processes(), levels="2,7,4", level_s="2.5", workload=str(mix), **NO_LENGTHS
    )
    assert run.code == 0, run.said
    classes = read_workload_file(mix)
    assert classes_at_levels(run) == {users: users_of_classes(classes, users) for users in (2, 4, 7)}
    assert {row["outcome"] for row in run.rows()} == {"ok"}
    assert "classes  chat 67%, agent 33% of the users" in run.said
    assert [each["name"] for each in run.info["classes"]] == ["chat", "agent"]
    assert run.info["classes"][1]["temperature"] == 0.7
    assert run.info["settings"]["prompt_tokens"] is None
    assert run.info["settings"]["workload"] == str(mix)
    agents = [row for row in run.rows() if row["class"] == "agent"]
    tokens = {step: [row["prompt_tokens"] for row in agents if row["step"] == step] for step in (0, 1, 2)}
    assert all(abs(count - 420) <= 8 for count in tokens[0]), tokens  # 320 shared, 60 of context, 40 asked
    assert all(abs(count - 450) <= 12 for count in tokens[1]), tokens  # and an answer of 5, and a tool's 25
    assert all(row["turn"] == row["step"] for row in agents)
    plain = [row["prompt_tokens"] for row in run.rows() if row["class"] == "chat" and row["turn"] == 0]
    assert all(36 <= count <= 44 for count in plain), plain
    samples = run.rows("server.jsonl")
    hits = samples[-1]["prefix_cache_hits_total"] - samples[0]["prefix_cache_hits_total"]
    first = [row for row in agents if row["step"] == 0]
    assert hits > 300 * (len(first) - 3)  # all but the first conversations find the shared text
    _check_pauses(agents)


def _check_pauses(agents: list[dict[str, Any]]) -> None:
    pauses: dict[bool, list[float]] = {True: [], False: []}
    for own in requests_of_users(agents):
        for before, after in itertools.pairwise(own):
            pauses[after["step"] == 0].append(
                after["start_unix_s"] - before["start_unix_s"] - before["end_s"]
            )
    assert statistics.median(pauses[False]) == pytest.approx(0.1, abs=0.06)  # a tool works
    assert statistics.median(pauses[True]) == pytest.approx(0.6, abs=0.1)  # a person thinks


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
        run = run_locust(url, scenario=relative, budget_s="8", **NO_LENGTHS)
    assert run.code == 0, run.said
    assert run.info["scenario"] == "own"
    counts = classes_at_levels(run)
    classes = read_workload_file(mix)
    for users, each in counts.items():
        expected = users_of_classes(classes, users)
        assert all(each.get(name, 0) <= expected[name] for name in expected), (users, each)
    assert {row["class"] for row in run.rows()} == {"chat", "agent"}


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
            url, levels=str(len(classes)), level_s="3", settle_s="0.1", workload=str(together), **NO_LENGTHS
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


def test_the_scenario_of_a_mix_runs_as_it_is(run_locust: RunLocust) -> None:
    with simulator("--preset", "llama-3.1-8b-h100") as url:
        run = run_locust(url, scenario="mix", levels="10", level_s="2", **NO_LENGTHS)
    assert run.code == 0, run.said
    assert run.info["scenario"] == "mix"
    assert run.info["settings"]["workload"].endswith("scenarios/workloads/mix.toml")
    assert classes_at_levels(run)[10] == {"chat": 6, "rag": 3, "tool-agent": 1}


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

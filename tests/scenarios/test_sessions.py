"""`locust -f scenarios/chat.py --sessions FILE`, as a user runs it."""

import itertools
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from testing.load_tests import Finished, RunLocust, two_processes
from testing.processes import ROOT, clean_environment

NO_LENGTHS = {"prompt_tokens": "", "output_tokens": ""}
Row = dict[str, Any]


def write_sessions(path: Path, *sessions: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(session) + "\n" for session in sessions))
    return str(path)


@pytest.fixture
def twelve(tmp_path: Path) -> str:
    """Twelve sessions of three turns, of which two share a beginning of 64 tokens."""
    shared = {0: [1, 2], 5: [1, 2]}
    return write_sessions(
        tmp_path / "twelve.jsonl",
        *(
            {
                "session": f"s{number}",
                "start_s": number / 4,
                "block_tokens": 32,
                "turns": [
                    {"prompt_tokens": 90 + number, "output_tokens": 6, "shared": shared.get(number, [])},
                    {"prompt_tokens": 40, "output_tokens": 9, "pause_s": 0.3, "at_s": 0.6},
                    {"prompt_tokens": 30, "output_tokens": 4, "pause_s": 0.1, "at_s": 0.61, "step": 1},
                ],
            }
            for number in range(12)
        ),
    )


def by_session(rows: list[Row]) -> dict[tuple[str, int], list[list[Row]]]:
    """The plays of each session by its name, and which worker's user played it."""
    found = defaultdict(list)
    for row in sorted(rows, key=lambda row: float(row["start_unix_s"])):
        found[row["session"], row["user"]].append(row)
    return {key: [list(play) for play in _plays(each)] for key, each in found.items()}


def _plays(rows: list[Row]) -> list[list[Row]]:
    plays: list[list[Row]] = []
    for row in rows:
        if row["turn"] == 0:
            plays.append([])
        plays[-1].append(row)
    return plays


def capacity(run: Finished) -> dict[str, Any]:
    subprocess.run(
        [sys.executable, "-m", "analysis.capacity", str(run.reports)],
        cwd=ROOT,
        env=clean_environment(),
        check=False,
        capture_output=True,
    )
    (model,) = json.loads((run.reports / "capacity.json").read_text())["models"]
    return dict(model)


def end_s(row: Row) -> float:
    return float(row["start_unix_s"] + row["end_s"])


@pytest.mark.parametrize("flags", [[], two_processes()], ids=["one process", "two processes"])
def test_users_replay_one_session_after_the_other(
    run_locust: RunLocust, simulated: str, twelve: str, flags: list[str]
) -> None:
    run = run_locust(simulated, *flags, levels="3", level_s="7", sessions=twelve, **NO_LENGTHS)
    assert run.code == 0, run.said
    rows = sorted(run.rows(), key=lambda row: float(row["start_unix_s"]))
    ok = [row for row in rows if row["outcome"] == "ok"]
    assert len(ok) > 36
    assert {row["outcome"] for row in rows} <= {"ok", "cancelled"}
    begun = [row["session"] for row in rows if row["turn"] == 0]
    assert set(begun[:12]) | {begun[12]} == {f"s{number}" for number in range(12)}  # none twice before all
    assert {row["user_class"] if "user_class" in row else row["class"] for row in rows} == {None}
    for plays in by_session(ok).values():
        for play in plays:
            assert [row["turn"] for row in play] == list(range(len(play)))
            assert [row["step"] for row in play] == [0, 0, 1][: len(play)]
            assert [row["output_tokens"] for row in play] == [6, 9, 4][: len(play)]
            for before, after in itertools.pairwise(play):
                pause_s = after["start_unix_s"] - end_s(before)
                assert (0.3, 0.1)[before["turn"]] <= pause_s + 0.002 < 0.6
                assert after["prompt_tokens"] > before["prompt_tokens"] + before["output_tokens"] + 20
    for row in ok:
        assert row["recorded"]["output_tokens"] == row["output_tokens"]
        assert row["prompt_tokens"] == pytest.approx(row["recorded"]["prompt_tokens"], abs=10)
    info = run.info
    assert info["sessions"]["file"] == "twelve.jsonl"
    assert info["settings"]["sessions"] == "twelve.jsonl"
    assert info["settings"]["prompt_tokens"] is None
    assert str(Path(twelve).parent) not in json.dumps(info["sessions"]) + json.dumps(
        info["settings"]["sessions"]
    )
    assert info["sessions"]["begun_again"] >= 1
    assert sum("used up and begun again" in warning for warning in info["warnings"]) == 1
    replay = capacity(run)["replay"]
    assert replay["files"] == ["twelve.jsonl"]
    assert (replay["answers"]["longer"], replay["answers"]["shorter"]) == (0, 0)
    assert 0.2 < replay["hit_rate"] <= replay["hit_rate_unbounded"] < 0.8


@pytest.mark.parametrize("flags", [[], two_processes()], ids=["one process", "two processes"])
def test_sessions_of_an_open_loop_begin_when_they_began(
    run_locust: RunLocust, simulated: str, tmp_path: Path, flags: list[str]
) -> None:
    """The first session's answer takes two seconds; the others begin meanwhile."""
    slow = {"turns": [{"prompt_tokens": 30, "output_tokens": 130}, {"prompt_tokens": 20, "output_tokens": 4}]}
    quick = {"turns": [{"prompt_tokens": 30, "output_tokens": 3}, {"prompt_tokens": 20, "output_tokens": 4}]}
    file = write_sessions(
        tmp_path / "f.jsonl",
        *({"session": str(at), "start_s": 100 + at, **quick} for at in (2, 1, 3)),
        {"session": "0", "start_s": 100, **slow},
    )
    run = run_locust(simulated, *flags, sessions=file, arrivals="recorded", trace_speed="4", **NO_LENGTHS)
    assert run.code == 0, run.said
    rows = run.rows()
    assert len(rows) == 8
    assert {row["outcome"] for row in rows} == {"ok"}
    start = run.info["arrivals"]["start_unix_s"]
    first = {row["session"]: row for row in rows if row["turn"] == 0}
    for name, row in first.items():
        assert row["scheduled_unix_s"] - start == pytest.approx(int(name) / 4, abs=1e-3)
        assert -0.001 <= row["start_unix_s"] - row["scheduled_unix_s"] < 0.3
    assert end_s(first["0"]) > first["3"]["start_unix_s"] + 0.5
    assert len({row["worker"] for row in rows}) == 1 + bool(flags)
    assert "plan     open loop, recorded at 4 times their speed: 4 sessions" in run.said
    model = capacity(run)
    assert model["open_loop"]
    assert model["replay"]["requests"] == 8


def test_at_recorded_times_a_turn_waits_for_its_answer_and_is_late(
    run_locust: RunLocust, simulated: str, tmp_path: Path
) -> None:
    turns = [
        {"prompt_tokens": 30, "output_tokens": 60},  # about a second
        {"prompt_tokens": 20, "output_tokens": 4, "at_s": 0.2},
        {"prompt_tokens": 20, "output_tokens": 4, "at_s": 3},
    ]
    file = write_sessions(tmp_path / "f.jsonl", {"start_s": 0, "turns": turns})
    run = run_locust(simulated, sessions=file, arrivals="recorded", session_times="recorded", **NO_LENGTHS)
    assert run.code == 0, run.said
    first, second, third = sorted(run.rows(), key=lambda row: int(row["turn"]))
    start = run.info["arrivals"]["start_unix_s"]
    assert second["start_unix_s"] == pytest.approx(end_s(first), abs=0.2)
    assert second["late_s"] == pytest.approx(second["start_unix_s"] - start - 0.2, abs=0.2)
    assert third["start_unix_s"] == pytest.approx(start + 3, abs=0.2)
    assert third["late_s"] is None
    replay = capacity(run)["replay"]
    assert (replay["late"], replay["requests"]) == (1, 3)
    assert replay["late_p95_s"] == pytest.approx(second["late_s"])


@pytest.mark.parametrize("history", ["server", "recorded"])
def test_whose_answers_are_sent_back(
    run_locust: RunLocust, simulated: str, tmp_path: Path, history: str
) -> None:
    """The recorded answer has 200 words, the server's six tokens."""
    said = [
        {"from": "human", "value": "What is the capital of France?"},
        {"from": "gpt", "value": "Paris " * 200},
        {"from": "human", "value": "And of Spain?"},
        {"from": "gpt", "value": "Madrid"},
    ]
    file = tmp_path / "share.json"
    file.write_text(json.dumps([{"id": "x", "conversations": said}]))
    run = run_locust(
        simulated,
        sessions=str(file),
        arrivals="constant:2",
        level_s="1",
        session_history=history,
        extra_body='{"max_tokens": 6}',
        **NO_LENGTHS,
    )
    assert run.code == 0, run.said
    first, second = sorted(run.rows(), key=lambda row: int(row["turn"]))
    assert first["session"] == second["session"] == "x"
    grown = second["prompt_tokens"] - first["prompt_tokens"]
    assert (grown > 150) == (history == "recorded"), grown
    found = second["recorded"]["reusable_tokens"]
    assert (found >= first["prompt_tokens"] + 5) == (history == "server")
    assert run.info["sessions"]["has_text"]
    assert run.info["sessions"]["kept_apart"]
    assert run.info["sessions"]["history"] == history


def test_levels_that_are_short_for_the_pauses_are_named(
    run_locust: RunLocust, simulated: str, tmp_path: Path
) -> None:
    turns = [
        {"prompt_tokens": 30, "output_tokens": 4},
        {"prompt_tokens": 9, "output_tokens": 4, "pause_s": 6},
    ]
    file = write_sessions(tmp_path / "f.jsonl", {"turns": turns})
    run = run_locust(simulated, sessions=file, levels="1", level_s="2", **NO_LENGTHS)
    assert run.code == 0, run.said
    assert "Levels of 2 s are short for recorded pauses of 3 s (mean)" in " ".join(run.info["warnings"])


def test_a_search_replays_sessions(run_locust: RunLocust, simulated: str, twelve: str) -> None:
    run = run_locust(simulated, scenario="find_capacity", budget_s="6", sessions=twelve, **NO_LENGTHS)
    assert run.code == 0, run.said
    assert {row["session"] for row in run.rows()} <= {f"s{number}" for number in range(12)}
    assert len(run.info["schedule"]) >= 1


def test_sessions_longer_than_the_context_are_counted(
    run_locust: RunLocust, simulated: str, tmp_path: Path
) -> None:
    turns = [{"prompt_tokens": 30, "output_tokens": 4}, {"prompt_tokens": 9000, "output_tokens": 4}]
    file = write_sessions(
        tmp_path / "f.jsonl",
        {"start_s": 0, "turns": turns},
        {"start_s": 0.2, "turns": turns[1:]},
        {"start_s": 0.4, "turns": turns[:1]},
    )
    run = run_locust(simulated, sessions=file, arrivals="recorded", **NO_LENGTHS)
    assert run.code == 0, run.said
    assert [row["session"] for row in sorted(run.rows(), key=lambda row: str(row["session"]))] == ["1", "3"]
    said = "2 of 3 sessions were longer than the model's context and end early, 1 of them before"
    assert any(warning.startswith(said) for warning in run.info["warnings"])
    assert capacity(run)["replay"]["too_long"] == 2


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        ('{"turns": 1}', {}, "file, line 1: not a session"),
        ("hello", {}, "file: the format is unknown"),
        (
            '{"turns": [{"prompt_tokens": 9000, "output_tokens": 5}]}',
            {},
            "file: no session fits into the model's context (6270 tokens can be used)",
        ),
        (
            '{"turns": [{"prompt_tokens": 9, "output_tokens": 5}]}',
            {"arrivals": "recorded"},
            "does not say when its sessions began",
        ),
        (
            '{"turns": [{"prompt_tokens": 9, "output_tokens": 5}, {"prompt_tokens": 9, "output_tokens": 5}]}',
            {"arrivals": "constant:1", "session_times": "recorded"},
            "does not say when its turns were sent",
        ),
    ],
)
def test_a_bad_file_of_sessions_is_one_sentence_and_exit_2(
    run_locust: RunLocust, simulated: str, tmp_path: Path, text: str, changes: dict[str, str], said: str
) -> None:
    (tmp_path / "file").write_text(text)
    run = run_locust(simulated, sessions=str(tmp_path / "file"), **changes, **NO_LENGTHS)
    assert run.code == 2, run.said
    assert said.replace("6270", "6,270") in run.said
    assert "Traceback" not in run.said
    assert not run.reports.exists()

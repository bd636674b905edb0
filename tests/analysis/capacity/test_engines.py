"""Several engines behind one address, as vLLM starts with `--data-parallel-size`: counts add up."""

import json
from pathlib import Path

import pytest

from analysis.answers.capacity import ModelAnswer
from analysis.reading.runs import find_runs, read_run
from testing.runs.answers import answer_for
from testing.runs.virtual import Plan, small_engine, write_run

JsonLine = dict[str, object]
USERS = (4, 8, 14, 17, 19)
"""Of one engine, which holds 17."""


def write_two_engines(folder: Path, users: int, seed: int) -> Path:
    """A run of twice so many users, half of them on each engine."""
    halves = []
    for engine in (0, 1):
        half = folder.parent / f"half-{users}-{engine}"
        plan = Plan(levels=(users,), level_s=25.0, seed=seed)
        write_run(half, small_engine(seed=engine), plan)
        halves.append(half)
    folder.mkdir()
    info = json.loads((halves[0] / "run.json").read_text())
    info["run_id"], info["settings"]["seed"] = folder.name, seed
    info["schedule"] = [[begin, end, 2 * count] for begin, end, count in info["schedule"]]
    (folder / "run.json").write_text(json.dumps(info))
    for name in ("requests-0.jsonl", "client-0.jsonl"):
        parts = [_lines(half / name) for half in halves]
        lines = [_of_engine(line, engine, users) for engine, part in enumerate(parts) for line in part]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    scrapes = _scraped_together([_lines(half / "server.jsonl") for half in halves])
    (folder / "server.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scrapes))
    for half in halves:
        for path in half.iterdir():
            path.unlink()
        half.rmdir()
    return folder


def _lines(file: Path) -> list[JsonLine]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _of_engine(line: JsonLine, engine: int, users: int) -> JsonLine:
    if "request_id" not in line:
        return line
    changes = {"request_id": f"{engine}-{line['request_id']}", "level_users": 2 * users}
    return line | changes | {"user": int(str(line["user"])) + engine * users}


def _scraped_together(parts: list[list[JsonLine]]) -> list[JsonLine]:
    """Both engines are read at the same times; the one that is idle first is read on until the other is."""
    longest = max(parts, key=len)
    last = max(float(str(part[-1]["unix_s"])) for part in parts)
    times = [line["unix_s"] for line in longest[:-1]] + [last]
    return [
        part[min(number, len(part) - 1)] | {"unix_s": at, "engine": str(engine)}
        for number, at in enumerate(times)
        for engine, part in enumerate(parts)
    ]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    for seed, users in enumerate(USERS):
        write_two_engines(folder / f"run-{users}", users, seed)
    return folder


@pytest.fixture(scope="module")
def answer(reports: Path) -> ModelAnswer:
    return answer_for(reports)


def test_gauges_and_counters_of_the_engines_are_summed_and_their_usage_is_averaged(reports: Path) -> None:
    run = read_run(find_runs(reports / "run-14")[0])
    lines = [json.loads(line) for line in (reports / "run-14" / "server.jsonl").read_text().splitlines()]
    assert run.server.engines == 2
    at = lines[5]["unix_s"]
    pair = [line for line in lines if line["unix_s"] == at]
    (index,) = (run.server.unix_s == at).nonzero()[0]
    assert len(pair) == 2
    for name in ("running", "waiting", "preemptions_total", "generation_tokens_total"):
        assert getattr(run.server, name)[index] == sum(line[name] for line in pair), name
    usage = sum(line["kv_cache_usage"] for line in pair) / 2
    assert run.server.kv_cache_usage[index] == pytest.approx(usage)
    assert usage > 0.1


def test_two_engines_hold_twice_the_users_of_one(answer: ModelAnswer) -> None:
    assert [level.users for level in answer.levels] == [2 * users for users in USERS]
    assert all(level.trusted for level in answer.levels), answer.warnings
    assert answer.headline.binding == "kv_cache"
    assert answer.headline.estimate_x == pytest.approx(34.0, abs=1.5)  # twice the 17 of one engine
    assert answer.headline.interval_x is not None
    assert answer.headline.interval_x[0] <= 34.5
    assert (answer.headline.interval_x[1] or 0.0) >= 33.0


def test_the_pool_of_the_answer_is_that_of_both_engines(answer: ModelAnswer) -> None:
    assert answer.memory.pool_tokens == 2 * 127 * 32
    assert answer.memory.tokens_per_user == pytest.approx(answer.memory.gauge_tokens_per_user, rel=0.05)

"""`python -m analysis.headroom` on pages of engines in virtual time whose walls are known by simulation."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.headroom.__main__ import main
from analysis.twin.maximum import find_maximum
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from testing.runs.metrics_pages import write_pages
from testing.runs.virtual import chat_lengths, small_engine

Capture = pytest.CaptureFixture[str]


def answered(
    folder: Path,
    engine: EngineConfig,
    users: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
    *flags: str,
) -> dict[str, Any]:
    files = write_pages(folder, engine, users)
    assert main(["--metrics", *map(str, files), "--format", "json", *flags]) == 0
    return dict(json.loads(capsys.readouterr().out))


@functools.cache
def true_users(engine: EngineConfig, slo: Slo) -> float:
    """Returns the users that an engine holds, by many requests with lengths that the pages did not see."""
    rng = np.random.default_rng(99)
    chats = [(chat_lengths(rng),) for _ in range(5000)]
    service = Service(engine=engine, chatting=ChatBehaviour(conversations=chats, pauses_s=np.array([1e-3])))
    found = find_maximum(service, slo, requests=15000)
    assert found is not None
    return found.x


def wall(answer: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in answer["walls"] if one["name"] == name)
    return dict(found)


def test_the_memory_wall_is_seen_from_half_its_load(tmp_path: Path, capsys: Capture) -> None:
    answer = answered(tmp_path, small_engine(), (2, 4, 6, 8), capsys)
    true = true_users(small_engine(), Slo())
    memory = wall(answer, "kv_cache")
    low, high = memory["interval"]
    assert 0.97 * low <= true <= 1.03 * high
    assert high - low < 0.15 * true
    least, likely, most = answer["memory"]["users_by_lengths"]
    assert least <= true <= most
    assert likely == pytest.approx(true, rel=0.06)
    assert answer["concurrency"]["busiest_replica_peak"] == 8
    assert answer["growth"][1] == pytest.approx(memory["x"] / 8)

    for name in ("ttft", "tpot"):
        found = wall(answer, name)
        assert (found["x"], found["interval"]) == (None, None)
        assert found["at_least"] == pytest.approx(8, abs=0.3)
    assert answer["target"]["basis"] == "seen"
    assert answer["target"]["in_flight_per_replica"] in (7, 8)
    assert any("Whether latency allows it is not seen" in one for one in answer["warnings"])


def test_preemptions_near_the_wall_move_it(tmp_path: Path, capsys: Capture) -> None:
    answer = answered(tmp_path, small_engine(), (8, 14, 16, 18, 20), capsys)
    memory = wall(answer, "kv_cache")
    assert "moved by preemptions" in memory["how"]
    assert memory["x"] == pytest.approx(true_users(small_engine(), Slo()), rel=0.06)
    assert answer["memory"]["preemptions"] > 100
    assert answer["growth"][1] < 1
    assert answer["target"]["basis"] == "kv_cache"
    assert answer["target"]["in_flight_per_replica"] == int(memory["interval"][0])


def test_a_latency_objective_that_is_missed_at_higher_loads_is_a_wall(
    tmp_path: Path, capsys: Capture
) -> None:
    """25 ms is a bound of the histogram. Ten users take about 25 ms a token."""
    engine = small_engine(step_base_s=0.01, step_per_seq_s=0.0015)
    answer = answered(tmp_path, engine, (4, 8, 9, 10, 12), capsys, "--slo-tpot-p95-s", "0.025")
    found = wall(answer, "tpot")
    assert answer["walls"][0] == found
    assert found["x"] == pytest.approx(true_users(engine, Slo(tpot_p95_s=0.025)), abs=1.0)
    assert answer["target"]["basis"] == "tpot"


def test_a_wall_between_two_distant_loads_may_be_anywhere_between_them(
    tmp_path: Path, capsys: Capture
) -> None:
    engine = small_engine(step_base_s=0.01, step_per_seq_s=0.0015)
    answer = answered(tmp_path, engine, (4, 8, 12), capsys, "--slo-tpot-p95-s", "0.025")
    low, high = wall(answer, "tpot")["interval"]
    assert low < 8.1
    assert high > 11.5
    assert low < true_users(engine, Slo(tpot_p95_s=0.025)) < high


def test_an_objective_that_no_bucket_tells_gives_no_target(tmp_path: Path, capsys: Capture) -> None:
    """All TPOTs lie below the histogram's first bound of 10 ms."""
    answer = answered(tmp_path, small_engine(), (4, 8), capsys, "--slo-tpot-p95-s", "0.0055")
    found = wall(answer, "tpot")
    assert (found["x"], found["at_least"]) == (None, None)
    assert "do not tell" in found["how"]
    assert (answer["target"], answer["rule"]) == (None, None)


def test_an_objective_that_is_missed_at_every_load_is_said_to_be(tmp_path: Path, capsys: Capture) -> None:
    engine = small_engine(step_base_s=0.04)
    answer = answered(tmp_path, engine, (4, 8), capsys, "--slo-tpot-p95-s", "0.025")
    found = wall(answer, "tpot")
    assert found["how"].startswith("missed at every load that was seen")
    assert found["interval"][0] == 0
    assert answer["growth"][1] < 1
    assert answer["target"] is None


def test_slots_are_suspected_until_they_are_stated(tmp_path: Path, capsys: Capture) -> None:
    files = [str(one) for one in write_pages(tmp_path, small_engine(max_num_seqs=6), (4, 9), level_s=40.0)]
    assert main(["--metrics", *files]) == 0
    assert "this looks like --max-num-seqs 6" in " ".join(capsys.readouterr().out.split())
    assert main(["--metrics", *files, "--max-num-seqs", "6"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "until the max_num_seqs wall" in said or "beyond its max_num_seqs wall" in said
    assert "this looks like" not in said
    assert main(["--metrics", *files, "--max-num-seqs", "4"]) == 2
    assert "6 requests ran at once" in capsys.readouterr().err


def test_without_a_pool_there_is_no_memory_wall(tmp_path: Path, capsys: Capture) -> None:
    files = write_pages(tmp_path, small_engine(), (4, 8))
    for path in files:
        stamp = path.stat().st_mtime
        lines = [line for line in path.read_text().splitlines() if "cache_config_info" not in line]
        path.write_text("\n".join(lines) + "\n")
        os.utime(path, (stamp, stamp))
    assert main(["--metrics", *map(str, files), "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["memory"] is None
    assert wall(answer, "kv_cache")["x"] is None
    assert "does not tell its KV pool" in wall(answer, "kv_cache")["how"]
    assert answer["growth"] is None

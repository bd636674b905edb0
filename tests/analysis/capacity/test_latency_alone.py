"""What the latency objectives alone would allow beyond the wall of memory."""

from pathlib import Path

import pytest

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.answer import recommend
from analysis.reading.runs import Run, find_runs, read_run
from analysis.reporting.capacity_words import first_screen
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run

SLO = Slo(ttft_p95_s=0.2)
"""The engine misses 3 % of it at 22 users and 6 % at 23; its memory is full at 17."""


def run_of(folder: Path, *levels: int) -> Run:
    write_run(folder, small_engine(), Plan(levels=levels, level_s=20.0, seed=1))
    return read_run(find_runs(folder)[0])


def said(answer: ModelAnswer) -> str:
    return " ".join(first_screen(answer, slo=SLO, confidence=0.9))


def test_levels_beyond_memory_say_what_latency_alone_would_allow(tmp_path: Path) -> None:
    answer = recommend([run_of(tmp_path / "r", 8, 16, 20, 24, 28, 32)], slo=SLO)
    assert answer.headline.binding == "kv_cache"
    assert answer.headline.estimate in (16, 17)
    found = answer.by_latency_alone
    assert found is not None
    assert found.interval_x is not None
    assert (found.limited_by, found.at_least) == ("ttft", False)
    assert found.users_x == pytest.approx(22.7, abs=1.0)
    assert found.interval_x[0] < 22.7 < (found.interval_x[1] or 0.0)
    assert f"it would be about {found.users_x:.1f} users" in said(answer)


def test_without_such_levels_the_engine_is_simulated(tmp_path: Path) -> None:
    answer = recommend([run_of(tmp_path / "r", 4, 8, 12, 15)], slo=SLO)
    assert answer.headline.binding == "kv_cache"
    found = answer.by_latency_alone
    assert found is not None
    assert (found.basis, found.interval, found.at_least) == ("model", None, False)
    assert found.users_x == pytest.approx(22.7, abs=2.5)
    assert "(simulated)" in said(answer)


def test_where_latency_is_the_limit_nothing_else_is_said(tmp_path: Path) -> None:
    slo = Slo(tpot_p95_s=0.0045)
    answer = recommend([run_of(tmp_path / "r", 4, 8, 12, 15)], slo=slo)
    assert answer.headline.binding == "tpot"
    assert answer.by_latency_alone is not None
    assert answer.by_latency_alone.users_x == answer.headline.estimate_x
    assert "By the objectives" not in said(answer)

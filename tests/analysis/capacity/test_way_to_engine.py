"""The client's times beside those of the engine: what a gateway on the way adds, gathers or leaves alone."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.answers.capacity import ModelAnswer
from analysis.notes import DelayOutsideEngine, GatheredChunks, GaugeDisagrees
from analysis.reporting.words import sentences, words
from testing.runs.answers import answer_for
from testing.runs.virtual import Plan, small_engine, write_run

LEVELS = (4, 12, 20)
Change = Callable[[dict[str, Any]], dict[str, Any]]


def changed(lines: list[dict[str, Any]], change: Change) -> str:
    return "".join(json.dumps(change(line)) + "\n" for line in lines)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def histograms(rows: list[dict[str, Any]]) -> Callable[[float], dict[str, float]]:
    """The engine's sums and counts up to a time, as the rows show them without anything on the way."""
    ends = np.array([row["start_unix_s"] + row["end_s"] for row in rows])
    firsts = np.array([row["start_unix_s"] + row["chunk_s"][0] for row in rows])
    ttft = np.array([row["chunk_s"][0] for row in rows])
    tpot = np.array(
        [(row["chunk_s"][-1] - row["chunk_s"][0]) / max(len(row["chunk_s"]) - 1, 1) for row in rows]
    )
    e2e = np.array([row["end_s"] for row in rows])

    def until(unix_s: float) -> dict[str, float]:
        done, begun = ends <= unix_s, firsts <= unix_s
        return {
            "ttft_sum_s": float(ttft[begun].sum()),
            "ttft_count": float(begun.sum()),
            "tpot_sum_s": float(tpot[done].sum()),
            "tpot_count": float(done.sum()),
            "e2e_sum_s": float(e2e[done].sum()),
            "e2e_count": float(done.sum()),
        }

    return until


def with_way(folder: Path, way: Change, *, metrics: bool = True) -> ModelAnswer:
    """The answer for a run whose rows something on the way changes, but not the engine's histograms."""
    write_run(folder, small_engine(), Plan(levels=LEVELS))
    rows = read(folder / "requests-0.jsonl")
    if metrics:
        until = histograms(rows)
        samples = read(folder / "server.jsonl")
        (folder / "server.jsonl").write_text(changed(samples, lambda line: line | until(line["unix_s"])))
    (folder / "requests-0.jsonl").write_text(changed(rows, way))
    return answer_for(folder.parent)


def unchanged(row: dict[str, Any]) -> dict[str, Any]:
    return row


def whole_at_once(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"chunk_s": [row["end_s"]] * len(row["chunk_s"]), "first_answer_s": row["end_s"]}


def four_at_once(row: dict[str, Any]) -> dict[str, Any]:
    times = row["chunk_s"]
    return row | {"chunk_s": [times[min(at - at % 4 + 3, len(times) - 1)] for at in range(len(times))]}


def late_by_40_ms(row: dict[str, Any]) -> dict[str, Any]:
    late = {"start_unix_s": row["start_unix_s"] - 0.04, "end_s": row["end_s"] + 0.04}
    return row | late | {"chunk_s": [at + 0.04 for at in row["chunk_s"]]}


def of_kind(answer: ModelAnswer, kind: type) -> Iterator[Any]:
    return (note for note in answer.warnings if isinstance(note, kind))


def test_nothing_on_the_way_is_nothing_to_say(tmp_path: Path) -> None:
    answer = with_way(tmp_path / "r", unchanged)
    assert not list(of_kind(answer, GatheredChunks))
    assert not list(of_kind(answer, DelayOutsideEngine))
    for level in answer.levels:
        assert level.requests.arrivals_per_chunk > 0.95
        assert level.server.ttft_mean_s == pytest.approx(level.requests.ttft_mean_s, rel=0.1)
        assert level.server.e2e_mean_s == pytest.approx(level.requests.e2e_mean_s, rel=0.05)
        assert level.server.tpot_mean_s == pytest.approx(level.requests.tpot_s.p50, rel=0.2)


@pytest.mark.parametrize("way", [whole_at_once, four_at_once])
def test_a_gateway_that_gathers_chunks_is_named_with_its_setting(tmp_path: Path, way: Change) -> None:
    answer = with_way(tmp_path / "r", way)
    (note,) = of_kind(answer, GatheredChunks)
    assert note.arrivals_per_chunk < 0.3
    assert note.engine_tpot_s is not None
    assert 0.002 < note.engine_tpot_s < 0.01
    assert not list(of_kind(answer, DelayOutsideEngine))
    assert not list(of_kind(answer, GaugeDisagrees))
    assert "proxy_buffering off" in words(note)
    assert "http-no-delay" in words(note)
    assert answer.headline.binding == "kv_cache"
    for level in answer.levels:
        assert level.requests.tpot_s.p50 is None  # not 0
        assert level.requests.tpot_miss.n == 0


def test_gathered_chunks_are_named_where_the_engine_has_no_histogram(tmp_path: Path) -> None:
    answer = with_way(tmp_path / "r", whole_at_once, metrics=False)
    (note,) = of_kind(answer, GatheredChunks)
    assert note.engine_tpot_s is None
    assert "own means" not in words(note)


def test_pairs_of_chunks_that_come_together_are_not_gathered(tmp_path: Path) -> None:
    def some_together(row: dict[str, Any]) -> dict[str, Any]:
        times = row["chunk_s"]
        return row | {"chunk_s": [times[at - (at % 4 == 3)] for at in range(len(times))]}

    answer = with_way(tmp_path / "r", some_together)
    assert not list(of_kind(answer, GatheredChunks))
    assert answer.levels[0].requests.arrivals_per_chunk == pytest.approx(0.75, abs=0.03)


def test_a_delay_outside_the_engine_is_named_with_its_size(tmp_path: Path) -> None:
    answer = with_way(tmp_path / "r", late_by_40_ms)
    (note,) = of_kind(answer, DelayOutsideEngine)
    assert note.ttft_s - note.engine_ttft_s == pytest.approx(0.04, abs=0.01)
    assert note.engine_duration_s is not None
    assert note.duration_s - note.engine_duration_s == pytest.approx(0.04, abs=0.02)
    assert any("queue before the engine" in text for text in sentences(answer.warnings))

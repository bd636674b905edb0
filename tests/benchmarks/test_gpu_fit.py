"""The fit of step times: it recovers what made the data, and leaves out by rule."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.fit import Fitted, fit_shares, step_time_of
from benchmarks.gpu.published import PublishedRow, read_conditions
from loadtest.model.step_time import fitted_efficiency


def _line(**changes: object) -> str:
    row: dict[str, object] = {
        "source": "test",
        "deployment_id": "meta-llama/Llama-3.1-8B-Instruct/H100-SXM-80GB/tp1/vllm/test",
        "engine": "vllm",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu": "H100-SXM-80GB",
        "tp": 1,
        "max_num_seqs": None,
        "max_num_batched_tokens": 2048,
        "input_mean": 500,
        "output_mean": 200,
        "output_law": "fixed",
        "concurrency": None,
        "request_rate": 5.0,
        "ttft_ms": {"mean": 30.0, "p50": None},
        "tpot_ms": {"mean": 8.0, "p50": None},
        "e2e_ms": {"mean": None, "p50": None},
        "load_kind": "steady",
        "consistent": True,
        **changes,
    }
    return json.dumps(row)


@pytest.fixture
def rows(tmp_path: Path) -> list[PublishedRow]:
    path = tmp_path / "published.jsonl"
    loads: list[dict[str, object]] = [{"request_rate": rate} for rate in (1.0, 5.0, 10.0)]
    loads += [{"request_rate": None, "concurrency": users} for users in (1, 8, 32)]
    path.write_text("\n".join(_line(**load) for load in loads))
    return read_conditions(path)[0]


def test_rows_that_cannot_tell_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    lines = [
        _line(),
        _line(engine="tgis"),
        _line(load_kind="static_batch"),
        _line(consistent=False),
        _line(request_rate=None),
        _line(model="somebody/Unknown-1B"),
        _line(gpu="TPU-v5"),
    ]
    path.write_text("\n".join(lines))
    found, left_out = read_conditions(path)
    assert len(found) == 1
    assert found[0].rate == 5.0
    assert found[0].tpot_s == pytest.approx(0.008)
    assert sum(left_out.values()) == len(lines) - 1


def test_the_fit_recovers_slower_memory_from_loads_that_were_made_with_it(rows: list[PublishedRow]) -> None:
    truth = Fitted(efficiency=replace(fitted_efficiency(), bandwidth=0.6), habits={})
    made = [
        replace(row, ttft_s=ttft_s, tpot_s=tpot_s)
        for row in rows
        for ttft_s, tpot_s in [truth.means_s(row, habits=False)]
    ]
    found = fit_shares(made, rounds=8)
    errors = [
        math.log(got / true)
        for row in made
        for got, true in [(found.means_s(row, habits=False)[1], row.tpot_s or math.nan)]
    ]
    assert max(map(abs, errors)) < 0.05
    slower = step_time_of(rows[0], found.efficiency).dense_s
    assert slower > 1.15 * step_time_of(rows[0]).dense_s

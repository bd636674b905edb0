"""A run folder as columns: what is kept, and what bad folders get."""

from pathlib import Path

import numpy as np
import pytest

from analysis.reading.pooling import group_runs
from analysis.reading.runs import find_runs, read_run
from loadtest.errors import InputError
from loadtest.record import (
    Outcome,
    ServerSample,
    WorkerInfo,
    encode_line,
)
from testing.runs.folders import make_folder, row
from testing.runs.virtual import Plan, small_engine, write_run


def read(folder: Path):
    (found,) = find_runs(folder)
    return read_run(found)


def test_rows_come_back_as_columns_in_the_order_of_their_ends(tmp_path):
    rows = [
        row(0, end_s=9.0, chunk_s=[1.0, 2.0]),
        row(1, chunk_s=[0.1, 0.3, 0.6], output_tokens=None),
        row(2, chunk_s=[], outcome=Outcome.TIMEOUT, http_status=None, sent_s=None),
    ]
    found = read(make_folder(tmp_path / "r", rows)).requests
    assert found.end_unix_s.tolist() == [101.5, 102.5, 109.0]
    assert found.ok.tolist() == [True, False, True]
    assert found.chunks.tolist() == [3, 0, 2]
    assert np.isnan(found.output_tokens[0])
    assert np.isnan(found.sent_s[1])
    assert np.isnan(found.first_chunk_s[1])
    assert found.gap_start.tolist() == [0, 2, 2, 3]
    assert found.gap_s == pytest.approx([0.2, 0.3, 1.0])


def test_gaps_stay_with_their_requests_over_many_blocks_of_rows(tmp_path):
    rows = [row(number, chunk_s=[0.0, 1.0 + number]) for number in range(5000)]
    found = read(make_folder(tmp_path / "r", rows)).requests
    assert found.gap_s.tolist() == [1.0 + number for number in range(5000)]


def test_a_torn_last_line_is_counted_and_the_rest_is_read(tmp_path):
    folder = make_folder(tmp_path / "r", [row(0), row(1)], ended_unix_s=None)
    with (folder / "requests-0.jsonl").open("ab") as out:
        out.write(encode_line(row(2))[:-40])
    run = read(folder)
    assert len(run.requests) == 2
    assert any("its last line is torn" in warning for warning in run.warnings)
    assert any("still running, or it was killed" in warning for warning in run.warnings)


@pytest.mark.parametrize(
    "line", [b'{"schema":2,"something":"else"}\n', encode_line(row(0)).replace(b'"schema":1', b'"schema":7')]
)
def test_rows_of_another_schema_are_refused_in_one_sentence(tmp_path, line):
    folder = make_folder(tmp_path / "r", [row(0)])
    (folder / "requests-1.jsonl").write_bytes(line)
    with pytest.raises(InputError, match=r"is of schema [27] and this version reads schema 1"):
        read(folder)


def test_a_row_that_breaks_the_contract_is_named(tmp_path):
    folder = make_folder(tmp_path / "r", [row(0)])
    (folder / "requests-1.jsonl").write_bytes(encode_line(row(1)).replace(b'"end_s":0.5', b'"end_s":"x"'))
    with pytest.raises(InputError, match=r"requests-1.jsonl, line 1, is not a row"):
        read(folder)


def test_run_json_of_another_schema_is_refused(tmp_path):
    folder = make_folder(tmp_path / "r", [row(0)])
    (folder / "run.json").write_bytes(b'{"schema":2}')
    with pytest.raises(InputError, match="schema 2"):
        find_runs(folder)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no run"):
        find_runs(tmp_path)


def test_a_workers_clock_is_brought_to_the_masters(tmp_path):
    workers = [WorkerInfo(name="0", clock_offset_s=2.5)]
    run = read(make_folder(tmp_path / "r", [row(0)], workers=workers))
    assert run.requests.start_unix_s.tolist() == [97.5]


def test_without_metrics_the_server_is_missing_and_said_to_be(tmp_path):
    run = read(make_folder(tmp_path / "r", [row(0)]))
    assert len(run.server) == 0
    assert any("are not in the run folder" in warning for warning in run.warnings)


def test_failed_scrapes_are_left_out_and_counted(tmp_path):
    folder = make_folder(tmp_path / "r", [row(0)])
    samples = [ServerSample(unix_s=1.0, running=3.0), ServerSample(unix_s=2.0, error="refused")]
    (folder / "server.jsonl").write_bytes(b"".join(encode_line(one) for one in samples))
    run = read(folder)
    assert run.server.running.tolist() == [3.0]
    assert np.isnan(run.server.kv_cache_usage).all()
    assert "1 of 2 scrapes of /metrics failed." in run.warnings


def test_engines_of_one_scrape_are_summed_and_their_usage_averaged(tmp_path):
    folder = make_folder(tmp_path / "r", [row(0)])
    samples = [
        ServerSample(unix_s=1.0, engine=name, running=running, kv_cache_usage=usage)
        for name, running, usage in (("0", 3.0, 0.2), ("1", 5.0, 0.4))
    ]
    (folder / "server.jsonl").write_bytes(b"".join(encode_line(one) for one in samples))
    server = read(folder).server
    assert server.engines == 2
    assert server.running.tolist() == [8.0]
    assert server.kv_cache_usage == pytest.approx([0.3])


def test_only_equal_workloads_are_pooled_and_the_newest_group_comes_first(tmp_path):
    make_folder(tmp_path / "a", [row(0)], settings={"prompt_tokens": "64", "levels": "1"})
    make_folder(tmp_path / "b", [row(0)], settings={"prompt_tokens": "64", "levels": "2"})
    make_folder(tmp_path / "c", [row(0)], settings={"prompt_tokens": "99"}, started_unix_s=900.0)
    groups = [[run.info.run_id for run in group] for group in group_runs(find_runs(tmp_path))]
    assert groups == [["c"], ["a", "b"]]


def test_a_run_of_the_engine_reads_back_whole(tmp_path):
    info = write_run(tmp_path / "r", small_engine(), Plan(levels=(1, 4), level_s=8.0))
    run = read(tmp_path / "r")
    assert run.info == info
    assert len(run.requests) > 50
    assert run.requests.ok.all()
    assert (
        run.requests.gap_start[-1] == len(run.requests.gap_s) == run.requests.chunks.sum() - len(run.requests)
    )

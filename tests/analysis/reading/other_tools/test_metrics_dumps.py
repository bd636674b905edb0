"""Dumps of a server's metrics beside the results of other tools."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from analysis.capacity.__main__ import main
from analysis.capacity.answer import recommend
from analysis.reading.other_tools.results import read_results
from analysis.reading.other_tools.server_metrics import read_metrics_dump
from analysis.reporting.words import sentences
from loadtest.record import Slo
from testing.processes import ROOT
from testing.runs import other_tools as tools
from testing.runs.own import OwnRun, refusal_of, write_guidellm_folder


def _federated(ours: OwnRun) -> str:
    """As /federate writes them: each line with its own time, in milliseconds."""
    lines = []
    for page in tools.scrape_text(ours.scrapes, ours.info).split("# 1")[1:]:
        stamp, *rest = page.splitlines()
        at = round(1e3 * float("1" + stamp))
        lines += [line if line.startswith("#") else f"{line} {at}" for line in rest]
    return "\n".join(lines)


def _iso(ours: OwnRun) -> str:
    text = tools.scrape_text(ours.scrapes, ours.info, stamp="=== {} ===")
    return "\n".join(
        f"=== {np.datetime64(round(1e3 * float(line[4:-4])), 'ms')}Z ===" if line.startswith("===") else line
        for line in text.splitlines()
    )


DUMPS: dict[str, Callable[[OwnRun], str]] = {
    "range query": lambda ours: json.dumps(tools.range_query(ours.scrapes, ours.info), indent=1),
    "a query for each metric": lambda ours: "\n".join(
        json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [one]}})
        for one in tools.range_query(ours.scrapes, ours.info)["data"]["result"]
    ),
    "scrapes": lambda ours: tools.scrape_text(ours.scrapes, ours.info),
    "scrapes after plain times": lambda ours: tools.scrape_text(ours.scrapes, ours.info, stamp="{}"),
    "scrapes after ISO times": _iso,
    "federate": _federated,
}


@pytest.mark.parametrize("kind", DUMPS)
def test_every_form_of_dump_says_the_same(ours, kind, tmp_path):
    (tmp_path / "dump").write_text(DUMPS[kind](ours))
    dump = read_metrics_dump(tmp_path / "dump")
    rows = dump.rows("tiny")
    assert [round(row.unix_s, 3) for row in rows] == [round(one.unix_s, 3) for one in ours.scrapes]
    for field in tools.GAUGES.values():
        assert [getattr(row, field) for row in rows] == [getattr(one, field) for one in ours.scrapes]
    assert dump.models() == ["tiny"]
    info = dump.info()
    assert (info.num_gpu_blocks, info.block_size, info.kv_cache_tokens) == (128, 32, 4096)


def test_aiperfs_own_scrapes_are_found_and_tell_the_pool_and_the_preemptions(ours, tmp_path):
    tools.write_aiperf(ours.rows, tmp_path / "a")
    (tmp_path / "a" / "server_metrics_export.jsonl").write_text(tools.aiperf_scrapes(ours.scrapes))
    (tmp_path / "a" / "server_metrics_export.json").write_text(json.dumps(tools.aiperf_cache(ours.info)))
    answer = recommend(read_results(tmp_path / "a"), slo=Slo())
    assert (answer.headline.max_users, answer.headline.binding) == (
        ours.answer.headline.max_users,
        "kv_cache",
    )
    assert answer.memory.preempted_fraction_shift is not None
    assert not any("scrape" in warning for warning in sentences(answer.warnings))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"status": "success", "data": {"resultType": "vector", "result": []}}', "query_range"),
        ('{"status": "error", "error": "bad"}', "is not the result of Prometheus' query_range"),
        ('{"capacity": 1}', "is not the result of Prometheus' query_range"),
        ('{"status": "success", "data": {"resultType": "ma', "is not whole JSON"),
        ('{"status": "success", "data": {"resultType": "matrix", "result": []}}', "holds no metric of vLLM"),
        ("1800000000\nup 1\n", "holds no metric of vLLM"),
        ("vllm:num_requests_running 1\n", "does not say when it was scraped"),
        ("2027-01-01 00:00:00\nvllm:num_requests_running 1\n", "has times without a zone"),
        ("1800000000\n" + 2 * "vllm:num_requests_running 1\n", "more than one scrape for the time"),
        ("1800000000\nvllm:num_requests_running{ 1\n", "is not what /metrics writes"),
    ],
)
def test_a_dump_of_another_kind_is_refused_in_a_sentence(ours, content, said, tmp_path, capsys):
    write_guidellm_folder(ours.level(4), tmp_path / "g")
    dump = tmp_path / "dump"
    dump.write_text(content)
    assert main([str(tmp_path / "g"), "--server-metrics", str(dump)]) == 2
    assert said in capsys.readouterr().err
    dump.unlink()
    assert main([str(tmp_path / "g"), "--server-metrics", str(dump)]) == 2


def test_a_dump_of_another_time_or_of_other_models_does_not_belong_to_the_results(ours, tmp_path):
    write_guidellm_folder(ours.level(4), tmp_path / "g")
    later = [msgspec.structs.replace(one, unix_s=one.unix_s + 1e5) for one in ours.scrapes]
    file = tmp_path / "dump.json"
    file.write_text(json.dumps(tools.range_query(later, ours.info)))
    assert "does not belong to sweep.json (concurrent@4)" in refusal_of(tmp_path / "g", server_metrics=file)
    named = [tools.range_query(ours.scrapes, ours.info, model_name=name) for name in ("a", "b")]
    file.write_text("\n".join(map(json.dumps, named)))
    assert "is of the models a, b, the results are of tiny" in refusal_of(tmp_path / "g", server_metrics=file)
    file.write_text(json.dumps(named[0]))
    (run,) = read_results(tmp_path / "g", server_metrics=file)
    assert any("The server metrics are of a" in warning for warning in run.warnings)


def test_replicas_are_added_up_on_one_grid_and_refused_on_two(ours, tmp_path):
    write_guidellm_folder(ours.level(4), tmp_path / "g")
    file = tmp_path / "dump.json"
    two = [tools.range_query(ours.scrapes, ours.info, instance=name) for name in ("a:8000", "b:8000")]
    file.write_text("\n".join(map(json.dumps, two)))
    (run,) = read_results(tmp_path / "g", server_metrics=file)
    (one,) = read_results(tmp_path / "g", server_metrics=_dump(ours, tmp_path))
    assert (run.server.engines, one.server.engines) == (2, 1)
    assert run.server.running.tolist() == (2 * one.server.running).tolist()
    assert run.server.kv_cache_usage.tolist() == one.server.kv_cache_usage.tolist()
    apart = [msgspec.structs.replace(one, unix_s=one.unix_s + 0.3) for one in ours.scrapes]
    two[1] = tools.range_query(apart, ours.info, instance="b:8000")
    file.write_text("\n".join(map(json.dumps, two)))
    assert "cannot be added up" in refusal_of(tmp_path / "g", server_metrics=file)


def _dump(ours: OwnRun, folder: Path, *, every: int = 1) -> Path:
    file = folder / "one.json"
    file.write_text(json.dumps(tools.range_query(ours.scrapes, ours.info, every=every)))
    return file


def test_counts_of_tokens_are_compared_only_where_scrapes_lie_close_to_the_ends(ours, tmp_path):
    """Prometheus' usual 15 seconds and more: the counter also holds what other levels made."""
    write_guidellm_folder(ours.level(4), tmp_path / "g")
    (close,) = read_results(tmp_path / "g", server_metrics=_dump(ours, tmp_path))
    (rare,) = read_results(tmp_path / "g", server_metrics=_dump(ours, tmp_path, every=15))
    assert not np.isnan(close.server.generation_tokens_total).any()
    assert np.isnan(rare.server.generation_tokens_total).all()
    assert any("No scrape lies shortly before and after" in warning for warning in rare.warnings)
    assert recommend([rare], slo=Slo()).levels[0].trusted


def test_foreign_tokens_on_the_server_make_a_level_untrusted(ours, tmp_path):
    write_guidellm_folder([row for number, row in enumerate(ours.level(4)) if number % 10], tmp_path / "g")
    (run,) = read_results(tmp_path / "g", server_metrics=_dump(ours, tmp_path))
    (level,) = recommend([run], slo=Slo()).levels
    assert any("tokens disagree" in why for why in sentences(level.why_not))


def test_metrics_of_another_tool_do_not_go_with_runs_of_ours(ours, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(ROOT / "docs" / "example-run", run)
    assert main([str(run), "--server-metrics", str(_dump(ours, tmp_path))]) == 2
    assert "--server-metrics goes with the results of other tools" in capsys.readouterr().err

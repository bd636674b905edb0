"""The results of other tools give the answer that our own rows of the same run give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from analysis.capacity.__main__ import main
from analysis.capacity.answer import recommend
from analysis.notes import NoLevels
from analysis.reading.other_tools.results import read_results
from analysis.reporting.words import sentences
from loadtest.record import Outcome, RequestRecord, Slo
from testing.processes import ROOT
from testing.runs import other_tools as tools
from testing.runs.own import OWN_LEVELS, OwnRun, refusal_of, write_guidellm_folder
from testing.runs.virtual import Plan, read_json, small_engine, write_run

DATA = ROOT / "tests" / "data"


Writer = Callable[[list[RequestRecord], Path], None]


TOOLS: dict[str, Writer] = {
    "guidellm": write_guidellm_folder,
    "aiperf": tools.write_aiperf,
    "vllm bench serve": tools.write_vllm_bench,
}


@pytest.mark.parametrize(
    ("tool", "flag"),
    [
        ("guidellm", "--max-seconds"),
        ("aiperf", "--benchmark-duration"),
        ("vllm bench serve", "--num-prompts"),
    ],
)
def test_advice_on_another_tools_results_names_that_tools_flags(ours, tool, flag, tmp_path, capsys):
    (said,) = sentences([NoLevels(scenario=tool)])
    assert flag in said
    assert "--level-s" not in said
    few = [row for users in (4, 8) for row in ours.level(users)[:users]]
    TOOLS[tool](few, tmp_path / "results")
    assert all(run.info.scenario == tool for run in read_results(tmp_path / "results"))
    assert main([str(tmp_path / "results")]) == 3
    assert "--level-s" not in capsys.readouterr().out


@pytest.mark.parametrize("tool", TOOLS)
def test_a_sweep_of_another_tool_gives_the_answer_of_our_own_rows(ours, tool, tmp_path):
    TOOLS[tool](ours.rows, tmp_path / "results")
    ours.write_metrics(tmp_path / "results")
    answer = recommend(read_results(tmp_path / "results"), slo=Slo())
    assert not answer.refused
    assert (
        (answer.headline.max_users, answer.headline.estimate)
        == (ours.answer.headline.max_users, ours.answer.headline.estimate)
        == (16, 17)
    )
    assert answer.headline.binding == ours.answer.headline.binding == "kv_cache"
    assert answer.headline.interval_x == pytest.approx(ours.answer.headline.interval_x, abs=0.1)
    assert answer.memory.pool_tokens == ours.answer.memory.pool_tokens
    assert answer.memory.gauge_tokens_per_user == pytest.approx(answer.memory.tokens_per_user, rel=0.02)
    assert [level.users for level in answer.levels] == list(OWN_LEVELS)
    for level, own in zip(answer.levels, ours.answer.levels, strict=True):
        assert level.trusted, level.why_not
        assert level.requests.ttft_s.p50 == pytest.approx(own.requests.ttft_s.p50, rel=0.03)
        assert level.requests.tpot_s.p50 == pytest.approx(own.requests.tpot_s.p50, rel=0.02)
        assert level.requests.output_tok_s == pytest.approx(own.requests.output_tok_s, rel=0.01)
        assert level.server.kv_cache_usage == pytest.approx(own.server.kv_cache_usage, abs=0.01)
        assert (level.requests.chunk_gap_s.p95 is None) == (tool == "guidellm")
    assert any("how late it was itself" in warning for warning in sentences(answer.warnings))


@pytest.mark.parametrize("tool", TOOLS)
def test_what_only_the_server_can_tell_is_missing_without_its_metrics_and_never_0(ours, tool, tmp_path):
    TOOLS[tool](ours.rows, tmp_path / "results")
    assert main([str(tmp_path / "results")]) == 0
    (model,) = _answer(tmp_path / "results").models
    assert model.at_least
    assert model.max_users == 20
    assert model.memory.pool_tokens is None
    for level in model.levels:
        assert level.trusted
        assert level.kv_cache_usage is level.preempted_fraction is level.kv_blocked_fraction is None
    said = " ".join(model.warnings)
    assert "Without server metrics there is no KV usage" in said
    assert "The memory wall is missing" in said


def _answer(folder: Path) -> Any:
    return read_json((folder / "capacity.json").read_bytes())


def test_a_pool_that_the_user_states_places_the_memory_wall_by_the_formula_alone(ours, tmp_path):
    tools.write_vllm_bench(ours.rows, tmp_path / "v")
    pool = ["--kv-cache-tokens", "4096", "--block-size", "32"]
    assert main([str(tmp_path / "v"), *pool]) == 0
    (model,) = _answer(tmp_path / "v").models
    assert model.binding == "kv_cache"
    assert model.estimate_x == pytest.approx(ours.answer.headline.estimate_x, abs=1.0)
    assert model.bounds[0].basis == "model"
    assert any("rests on the formula alone" in warning for warning in model.warnings)


def test_a_real_file_of_vllm_bench_serve_is_read_without_its_role_chunk():
    (run,) = read_results(DATA / "vllm_bench.json")
    rows = run.requests
    assert (run.info.run_id, run.info.model) == ("vllm_bench.json:concurrency@8", "Qwen3-1.7B")
    assert rows.chunks.tolist() == rows.output_tokens.tolist() == [40, 40, 47, 59]
    assert rows.prompt_tokens.tolist() == [198, 70, 108, 106]
    assert rows.first_chunk_s[0] == pytest.approx(0.052776, abs=1e-6)
    assert rows.last_chunk_s[0] == rows.end_s[0] == pytest.approx(0.722203, abs=1e-5)
    assert len(rows.gap_s) == sum(tokens - 1 for tokens in (40, 40, 47, 59))
    assert np.isnan(rows.first_answer_s).all()


def test_a_real_file_of_guidellm_is_read_with_what_was_cut_off_as_cancelled():
    (run,) = read_results(DATA / "guidellm.json")
    rows = run.requests
    assert run.info.schedule[0][2] == 4
    assert rows.outcome.tolist().count(tuple(Outcome).index(Outcome.CANCELLED)) == 1
    assert rows.output_tokens[rows.ok].tolist() == rows.chunks[rows.ok].tolist() == [70, 50, 46]
    assert np.isnan(rows.output_tokens[~rows.ok]).all()
    assert rows.first_chunk_s[0] == pytest.approx(0.030606, abs=1e-6)
    assert len(rows.gap_s) == 0
    assert any("chunk gaps (ITL) are missing" in warning for warning in run.warnings)


def test_real_files_of_aiperf_are_read_with_the_metrics_that_lie_beside_them():
    (run,) = read_results(DATA / "aiperf")
    rows = run.requests
    assert (run.info.schedule[0][2], run.info.host) == (4, "http://127.0.0.1:18731")
    assert sorted(rows.prompt_tokens) == [54, 64, 65]
    assert rows.sent_s[0] == pytest.approx(0.009229, abs=1e-6)  # the connection was made first
    assert rows.first_chunk_s[0] == pytest.approx(0.037495, abs=1e-6)
    assert (run.info.server.num_gpu_blocks, run.info.server.block_size) == (128, 32)
    assert run.server.running.tolist() == [0, 1, 4]


def test_the_clock_of_vllm_bench_serve_is_set_by_the_requests_on_the_server(ours, tmp_path):
    """Its file holds a date of whole seconds; here it was written up to two seconds after the end."""
    tools.write_vllm_bench(ours.level(8), tmp_path / "v")
    truth = min(row.start_unix_s for row in ours.level(8))
    (alone,) = read_results(tmp_path / "v")
    assert 0.7 <= alone.requests.start_unix_s.min() - truth <= 1.7
    ours.write_metrics(tmp_path / "v")
    (aligned,) = read_results(tmp_path / "v")
    assert aligned.requests.start_unix_s.min() == pytest.approx(truth, abs=0.6)
    assert np.isnan(aligned.server.generation_tokens_total).all()
    assert any("tell the time to about a second" in warning for warning in aligned.warnings)


def test_start_times_that_an_old_vllm_did_not_keep_are_rebuilt_from_the_queue(ours, tmp_path):
    """Users begin within a tenth of a second and pause a millisecond; the queue knows neither."""
    write_run(tmp_path / "run", small_engine(), Plan(levels=(8,), level_s=15.0, settle_s=0.0))
    rows = tools.rows_of(tmp_path / "run")
    tools.write_vllm_bench(rows, tmp_path / "new")
    tools.write_vllm_bench(rows, tmp_path / "old", start_times=None, queue_times=None)
    (new,), (old,) = read_results(tmp_path / "new"), read_results(tmp_path / "old")
    assert len(old.requests) == len(new.requests) == len(rows) > 200
    apart = np.sort(old.requests.start_unix_s) - np.sort(new.requests.start_unix_s)
    assert np.ptp(apart) < 0.25
    assert any("kept no start times" in warning for warning in old.warnings)
    assert "does not say when its requests began" in refusal_of(_with(tmp_path, ours, request_rate="5.0"))


def _with(folder: Path, ours: OwnRun, **changes: object) -> Path:
    tools.write_vllm_bench(ours.level(4), folder / "changed", start_times=None, **changes)
    return folder / "changed"


def test_the_completions_endpoint_has_no_role_chunk(ours, tmp_path):
    tools.write_vllm_bench(ours.level(4), tmp_path / "chat")
    result = json.loads((tmp_path / "chat" / "c4.json").read_text())
    result |= {"endpoint_type": "openai", "backend": "openai", "itls": [gaps[1:] for gaps in result["itls"]]}
    (tmp_path / "c4.json").write_text(json.dumps(result))
    (chat,), (plain,) = read_results(tmp_path / "chat"), read_results(tmp_path / "c4.json")
    assert plain.requests.first_chunk_s.tolist() == chat.requests.first_chunk_s.tolist()
    assert plain.requests.chunks.tolist() == chat.requests.chunks.tolist()
    assert plain.requests.gap_s.tolist() == chat.requests.gap_s.tolist()


@pytest.mark.parametrize("tool", TOOLS)
def test_failures_and_what_was_cut_off_keep_their_meaning(ours, tool, tmp_path):
    rows = ours.level(4)
    middle = len(rows) // 2
    for number in range(middle, middle + 5):
        rows[number] = _failed(rows[number], Outcome.HTTP_ERROR, 503)
    if tool != "vllm bench serve":  # it waits for every request
        rows[-1] = _failed(rows[-1], Outcome.CANCELLED, None)
    TOOLS[tool](rows, tmp_path / "results")
    (run,) = read_results(tmp_path / "results")
    assert run.requests.with_outcome(Outcome.HTTP_ERROR).sum() == 5
    assert (run.requests.http_status == 503).sum() == 5
    assert run.requests.with_outcome(Outcome.CANCELLED).sum() == (tool != "vllm bench serve")
    assert np.isnan(run.requests.first_chunk_s[~run.requests.ok]).all()
    assert np.isnan(run.requests.output_tokens[~run.requests.ok]).all()
    answer = recommend([run], slo=Slo())
    assert answer.levels[0].requests.errors == 5


def _failed(row: RequestRecord, outcome: Outcome, status: int | None) -> RequestRecord:
    return msgspec.structs.replace(
        row, outcome=outcome, http_status=status, chunk_s=[], first_answer_s=None, output_tokens=None
    )


def test_token_counts_of_aiperfs_own_tokenizer_are_named(ours, tmp_path):
    tools.write_aiperf(ours.level(4), tmp_path / "a")
    (file,) = tmp_path.glob("a/*/profile_export.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        for name in ("usage_prompt_tokens", "usage_completion_tokens"):
            del record["metrics"][name]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    (run,) = read_results(tmp_path / "a")
    assert run.requests.output_tokens.tolist() == [1.0] * len(records)
    assert any("--use-server-token-count" in warning for warning in run.warnings)


def test_credentials_of_a_target_are_not_repeated(ours, tmp_path):
    write_guidellm_folder(ours.level(4), tmp_path / "g")
    assert main([str(tmp_path / "g" / "sweep.json")]) == 0
    assert _answer(tmp_path / "g").models[0].host == "http://host:8000"
    for name in ("capacity.json", "report.html", "report.md"):
        assert "secret" not in (tmp_path / "g" / name).read_text()


def test_two_models_in_one_folder_are_two_answers(ours, tmp_path, capsys):
    tools.write_vllm_bench(ours.level(4), tmp_path / "v")
    tools.write_vllm_bench(ours.level(8), tmp_path / "v", model_id="other")
    assert main([str(tmp_path / "v")]) == 0
    assert [model.model for model in _answer(tmp_path / "v").models] == ["other", "tiny"]
    capsys.readouterr()
    assert main([str(tmp_path / "v"), "--run", "c4.json:concurrency@4"]) == 0
    assert [model.model for model in _answer(tmp_path / "v").models] == ["tiny"]


def test_two_workloads_in_one_folder_are_refused(ours, tmp_path):
    tools.write_vllm_bench(ours.level(4), tmp_path / "v")
    long = [msgspec.structs.replace(row, prompt_tokens=1000) for row in ours.level(8)]
    tools.write_vllm_bench(long, tmp_path / "v")
    assert "c8.json (concurrency@8) 1000: these are two workloads" in refusal_of(tmp_path / "v")


def test_results_that_were_appended_to_one_file_are_levels_of_it(ours, tmp_path):
    tools.write_vllm_bench(ours.level(4) + ours.level(8), tmp_path / "v")
    both = "\n".join((tmp_path / "v" / f"c{users}.json").read_text() for users in (4, 8))
    (tmp_path / "both.json").write_text(both)
    runs = read_results(tmp_path / "both.json")
    assert [run.info.schedule[0][2] for run in runs] == [4, 8]


def test_open_loops_are_shown_and_refused_and_left_out_beside_levels(ours, tmp_path, capsys):
    folder = tmp_path / "g"
    folder.mkdir()
    rate = tools.guidellm_benchmark(8, ours.level(8), type_="constant", rate=5.0)
    report = {"metadata": {"version": 2}, "benchmarks": [rate]}
    (folder / "sweep.json").write_text(json.dumps(report))
    assert main([str(folder)]) == 3
    assert "This is an open loop" in capsys.readouterr().out
    assert _answer(folder).models[0].open_loop
    report["benchmarks"] = [rate, tools.guidellm_benchmark(4, ours.level(4))]
    (folder / "sweep.json").write_text(json.dumps(report))
    assert main([str(folder)]) == 0
    (model,) = _answer(folder).models
    assert [level.users for level in model.levels] == [4]
    assert any("Left out" in one and "sweep.json (constant@5)" in one for one in model.warnings)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_that_was_cut_off_is_named(ours, tool, tmp_path, capsys):
    TOOLS[tool](ours.level(4), tmp_path / "r")
    (file,) = (path for path in tmp_path.glob("r/**/*.json*") if path.stat().st_size > 10_000)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert main([str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert f"{file} is not whole JSON" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not whole JSON"),
        ("[1, 2]", "is not a result that can be read"),
        ('{"hello": 1}', "is not a result that can be read"),
        ('{"metadata": {}, "benchmarks": []}', "holds no benchmark"),
        (
            '{"metadata": {}, "benchmarks": [{"args": {}}]}',
            "does not have the form of the supported versions",
        ),
        ('{"aiperf_version": "0.13.0", "input_config": {}}', "name the profile_export.jsonl beside it"),
        (
            '{"model_id": "m", "duration": 1, "completed": 1, "date": "d", "request_rate": 1}',
            "--save-detailed",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_in_a_sentence(content, said, tmp_path, capsys):
    file = tmp_path / "result.json"
    file.write_text(content)
    assert main([str(file)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "capacity.json").exists()


def test_benchmarks_without_a_request_are_refused(tmp_path, ours):
    report = {"metadata": {}, "benchmarks": [tools.guidellm_benchmark(4, [])]}
    (tmp_path / "g.json").write_text(json.dumps(report))
    assert refusal_of(tmp_path / "g.json") == "No request was made in g.json (concurrent@4)."
    nothing = {"ttfts": [], "itls": [], "input_lens": [], "output_lens": [], "errors": []}
    nothing |= {"start_times": [], "queue_times": []}
    tools.write_vllm_bench(ours.level(4), tmp_path / "v", **nothing)
    assert refusal_of(tmp_path / "v" / "c4.json").endswith("holds no request.")


def test_lists_of_several_lengths_are_refused(ours, tmp_path):
    tools.write_vllm_bench(ours.level(4), tmp_path / "v", errors=[""])
    assert "its lists are of several lengths" in refusal_of(tmp_path / "v")


def test_the_older_form_of_aiperfs_summary_is_read(ours, tmp_path):
    tools.write_aiperf(ours.level(4), tmp_path / "a")
    (file,) = tmp_path.glob("a/*/profile_export_aiperf.json")
    config = {"endpoint": {"model_names": ["tiny"], "url": "host:8000"}, "loadgen": {"concurrency": 4}}
    file.write_text(json.dumps({"input_config": config}))
    (run,) = read_results(tmp_path / "a")
    assert (run.info.model, run.info.host, run.info.schedule[0][2]) == ("tiny", "host:8000", 4)


def test_a_sample_of_the_requests_is_refused(ours, tmp_path):
    benchmark = tools.guidellm_benchmark(4, ours.level(4))
    del benchmark["requests"]["successful"][10:]
    (tmp_path / "g.json").write_text(json.dumps({"metadata": {}, "benchmarks": [benchmark]}))
    assert "keeps 10 of" in refusal_of(tmp_path / "g.json")


def test_records_of_aiperf_without_their_summary_are_refused(ours, tmp_path):
    tools.write_aiperf(ours.level(4), tmp_path / "a")
    (file,) = tmp_path.glob("a/*/profile_export.jsonl")
    file.with_name("profile_export_aiperf.json").unlink()
    assert "profile_export_aiperf.json must lie beside it" in refusal_of(file)


def test_a_folder_of_other_things_holds_no_run(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    assert "holds no run" in refusal_of(tmp_path)


def test_all_requests_failed_is_a_refusal_of_the_data(ours, tmp_path, capsys):
    tools.write_vllm_bench([_failed(row, Outcome.HTTP_ERROR, 503) for row in ours.level(4)], tmp_path / "v")
    assert main([str(tmp_path / "v")]) == 3
    assert "No request succeeded" in capsys.readouterr().out

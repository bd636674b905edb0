"""The answer, end to end, against deployments of the engine whose limits are known."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.__main__ import main
from analysis.capacity.answer import recommend
from analysis.reading.runs import find_runs, read_run
from analysis.reporting.words import sentences, words
from loadtest.record import GpuInfo, ServerInfo, Slo
from testing.processes import ROOT
from testing.virtual_runs import Plan, chat_lengths, read_json, small_engine, write_run

SWEEP = (1, 2, 4, 8, 16, 20)


def answer_for(folder: Path, *, slo: Slo | None = None) -> ModelAnswer:
    return recommend([read_run(found) for found in find_runs(folder)], slo=slo or Slo())


@pytest.fixture(scope="module")
def memory_run(tmp_path_factory) -> Path:
    """128 blocks of 32 under prompts near 124 and outputs near 96: preempts one in a hundred at 17 users."""
    folder = tmp_path_factory.mktemp("reports") / "memory"
    write_run(folder, small_engine(), Plan(levels=SWEEP))
    return folder


@pytest.fixture(scope="module")
def memory_answer(memory_run) -> ModelAnswer:
    return answer_for(memory_run)


def test_the_kv_cache_binds_where_the_engine_starts_to_preempt(memory_answer):
    assert memory_answer.headline.binding == "kv_cache"
    assert memory_answer.headline.estimate in (16, 17)
    assert memory_answer.headline.interval is not None
    low, high = memory_answer.headline.interval
    assert high is not None
    assert high - low <= 4
    assert memory_answer.headline.interval_x is not None
    assert memory_answer.headline.estimate_x is not None
    assert memory_answer.headline.max_users == low == math.floor(memory_answer.headline.interval_x[0])
    assert memory_answer.headline.estimate == math.floor(memory_answer.headline.estimate_x)
    assert memory_answer.headline.p_binding == {"kv_cache": 1.0}
    assert memory_answer.max_in_flight == memory_answer.headline.max_users


def test_memory_is_counted_in_tokens_and_bytes(memory_answer):
    found = memory_answer.memory
    assert found.pool_tokens == 127 * 32
    assert found.tokens_per_user == pytest.approx(found.gauge_tokens_per_user, rel=0.05)
    assert found.bytes_per_token == 2048
    assert found.vram_bytes_per_user == pytest.approx(2048 * found.tokens_per_user, rel=0.001)
    assert found.r2 is not None
    assert found.r2 > 0.9


def test_what_would_raise_it_is_ordered_by_what_the_model_says(memory_answer):
    gains = {words(option.change).split()[0]: option.gain_users for option in memory_answer.options}
    assert gains["A"] >= 1
    assert gains["--kv-cache-dtype"] >= memory_answer.headline.estimate


def test_the_same_rows_give_the_same_answer(memory_run, memory_answer):
    again = answer_for(memory_run)
    assert msgspec.json.encode(again) == msgspec.json.encode(memory_answer)


def test_slots_bind_and_memory_is_left_to_the_formula(tmp_path):
    write_run(tmp_path / "r", small_engine(max_num_seqs=8), Plan(levels=SWEEP))
    found = answer_for(tmp_path / "r")
    assert found.headline.binding == "max_num_seqs"
    assert (found.headline.max_users, found.headline.estimate, found.headline.interval) == (8, 8, (8, 8))
    (memory,) = (bound for bound in found.bounds if bound.name == "kv_cache")
    assert memory.basis == "model"
    assert memory.users in (16, 17)
    assert found.levels[-1].server.blocked.fraction == 0.0


def test_slow_tokens_bind_where_the_engine_gets_slow(tmp_path):
    plan = Plan(levels=(8, 16, 24, 32, 40), level_s=20.0)
    write_run(tmp_path / "r", small_engine(num_gpu_blocks=2000), plan)
    found = answer_for(tmp_path / "r", slo=Slo(tpot_p95_s=0.008))
    assert found.headline.binding == "tpot"  # the engine misses 4 % at 33 users and 38 % at 34
    assert found.headline.max_users in (31, 32, 33)
    assert found.headline.interval_x is not None
    assert found.headline.interval_x[0] <= 33.0 <= (found.headline.interval_x[1] or 0)


def test_without_metrics_memory_is_missing_and_latency_still_answers(tmp_path):
    plan = Plan(levels=(8, 16, 20, 24, 28, 32), level_s=20.0, metrics=False)
    write_run(tmp_path / "r", small_engine(), plan)
    found = answer_for(tmp_path / "r", slo=Slo(ttft_p95_s=0.2))
    assert found.headline.binding == "ttft"  # the engine misses 3 % at 22 users and 6 % at 23
    assert found.headline.estimate in range(20, 26)
    assert found.memory.pool_tokens is None
    assert math.isnan(found.levels[0].server.kv_cache_usage)
    assert math.isnan(found.levels[0].preempted_fraction)
    assert any(warning.startswith("The memory wall is missing") for warning in sentences(found.warnings))


def test_a_stated_pool_keeps_the_block_size_of_the_server(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(2, 4), level_s=12.0))
    assert main([str(tmp_path), "--kv-cache-tokens", "3200"]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["memory"]["pool_tokens"] == 3200 - 32  # the null block, of 32 tokens


def test_where_nothing_broke_the_answer_is_at_least_the_highest_level(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(1, 2, 4), level_s=20.0))
    found = answer_for(tmp_path / "r")
    assert found.headline.at_least
    assert found.headline.max_users == 4
    assert found.headline.estimate is None
    assert found.headline.interval == (4, None)
    assert found.headline.binding == "not_reached"
    assert [(bound.name, bound.basis) for bound in found.bounds] == [("kv_cache", "extrapolated")]


def test_a_wall_just_beyond_the_levels_is_flagged_and_not_recommended(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(4, 8, 14, 16), level_s=20.0, seed=1))
    found = answer_for(tmp_path / "r")
    assert found.headline.max_users is not None
    assert found.headline.max_users <= 16
    if found.headline.estimate_x is not None and found.headline.estimate_x > 16:
        assert any(warning.startswith("Extrapolated") for warning in sentences(found.warnings))


def test_thinking_users_outnumber_requests_in_flight(tmp_path):
    plan = Plan(levels=(8, 16, 32, 48), think_s=1.0, level_s=30.0)
    write_run(tmp_path / "r", small_engine(), plan)
    found = answer_for(tmp_path / "r")
    assert found.headline.binding == "kv_cache"
    assert found.headline.max_users is not None
    assert found.max_in_flight is not None
    assert found.max_in_flight < 0.5 * found.headline.max_users
    at_48 = found.levels[-1]
    assert at_48.preempted_fraction is not None
    assert at_48.preempted_fraction > 0.01
    assert 32 <= found.headline.max_users < 48


def test_a_late_load_generator_is_refused(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(4, 8), level_s=12.0, lag_s=0.05))
    found = answer_for(tmp_path / "r")
    assert found.refused
    assert found.headline.max_users is None
    assert found.bounds == []
    assert "event-loop lag 50 ms, limit 5 ms" in words(found.reasons[0])


def test_a_level_that_still_drifts_at_its_end_is_refused(tmp_path):
    drawn = itertools.count()

    def growing(rng):
        prompt, output = chat_lengths(rng)
        return prompt + 2 * next(drawn), output

    engine = small_engine(num_gpu_blocks=2048, max_model_len=8192)
    write_run(tmp_path / "r", engine, Plan(levels=(4,), level_s=60.0, lengths=growing))
    found = answer_for(tmp_path / "r")
    assert found.refused
    assert "not steady" in words(found.reasons[0])


def test_equal_lengths_are_flagged_as_lockstep(tmp_path):
    plan = Plan(levels=(4, 8), level_s=12.0, lengths=lambda _: (124, 96))
    write_run(tmp_path / "r", small_engine(), plan)
    assert any(warning.startswith("Lockstep") for warning in sentences(answer_for(tmp_path / "r").warnings))


def test_foreign_load_on_the_server_is_not_trusted(tmp_path):
    folder = tmp_path / "r"
    write_run(folder, small_engine(), Plan(levels=(4, 8), level_s=12.0))
    lines = [json.loads(line) for line in (folder / "server.jsonl").read_text().splitlines()]
    busy = [line | {"running": line["running"] + 5} for line in lines]
    (folder / "server.jsonl").write_text("".join(json.dumps(line) + "\n" for line in busy))
    found = answer_for(folder)
    assert found.refused
    assert "foreign load" in words(found.reasons[0])


# The command.


def test_the_command_answers_and_writes_what_the_contract_names(memory_run, capsys):
    assert main([str(memory_run)]) == 0
    first = capsys.readouterr().out.strip().splitlines()[0]
    assert first.startswith("tiny: plan for 1")
    assert first.endswith(" users")
    written = json.loads((memory_run / "capacity.json").read_text())
    assert set(written) == {"schema", "generated_unix_s", "confidence", "slo", "models"}
    assert written["slo"] == {
        "ttft_p95_s": 2.0,
        "tpot_p95_s": 0.1,
        "preempted_fraction": 0.01,
        "kv_blocked_fraction": 0.1,
    }
    (model,) = written["models"]
    contract = """model runs max_users estimate interval estimate_x interval_x max_in_flight at_least binding
        p_binding bounds memory latency levels refused reasons warnings"""
    assert set(contract.split()) <= set(model)
    level = """users in_flight n window_s ttft_s tpot_s decode_tok_s output_tok_s goodput_rps kv_cache_usage
        preempted_fraction kv_blocked_fraction errors cancelled trusted why_not"""
    assert set(level.split()) <= set(model["levels"][0])
    assert set(model["levels"][0]["ttft_s"]) == {"p50", "p95", "p99", "p95_interval"}
    assert set(model["bounds"][0]) >= {"name", "users", "interval", "basis"}
    for name in ("report.html", "report.md", "memory.svg", "walls.svg"):
        assert (memory_run / name).stat().st_size > 1000
    assert not list(memory_run.glob("tmp*"))


def test_capacity_json_has_the_numbers_of_the_answer(memory_run, memory_answer):
    assert main([str(memory_run)]) == 0
    (found,) = read_json((memory_run / "capacity.json").read_bytes()).models
    head = memory_answer.headline
    assert (found.max_users, found.estimate_x, found.binding) == (
        head.max_users,
        head.estimate_x,
        head.binding,
    )
    assert found.interval_x == list(head.interval_x)
    assert found.warnings == sentences(memory_answer.warnings)
    for level, own in zip(found.levels, memory_answer.levels, strict=True):
        assert (level.users, level.n, level.window_s) == (own.users, own.requests.n, own.window.length_s)
        assert level.tpot_s.p50 == own.requests.tpot_s.p50
        assert level.kv_cache_usage == own.server.kv_cache_usage
        assert level.preempted_fraction == own.preempted_fraction


def test_bad_folders_exit_2_with_one_sentence(tmp_path, capsys):
    for folder, said in ((tmp_path / "nowhere", "is not a folder"), (tmp_path, "holds no run")):
        assert main([str(folder)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert err.count("\n") == 1


def test_a_run_that_cannot_carry_an_answer_exits_3(tmp_path, capsys):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(1,), level_s=6.0, settle_s=5.8))
    assert main([str(tmp_path)]) == 3
    assert "no answer" in capsys.readouterr().out
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["refused"]
    assert model["reasons"]
    assert model["max_users"] is None


def test_a_run_killed_halfway_still_answers(tmp_path, capsys):
    folder = tmp_path / "r"
    write_run(folder, small_engine(), Plan(levels=(1, 2, 4), level_s=12.0), info={"ended_unix_s": None})
    rows = (folder / "requests-0.jsonl").read_bytes()
    (folder / "requests-0.jsonl").write_bytes(rows[:-30])
    assert main([str(folder)]) == 0
    assert "its last line is torn" in capsys.readouterr().out


def test_other_workloads_are_not_pooled_and_run_picks(tmp_path, capsys):
    for name, seed, lengths in (("old", 0, "lognormal:96,0.6"), ("new", 1, "lognormal:64,0.6")):
        settings = {"settle_s": 2.0, "seed": seed, "output_tokens": lengths}
        plan = Plan(levels=(1, 2), level_s=12.0, settle_s=2.0, seed=seed)
        write_run(tmp_path / name, small_engine(), plan, info={"settings": settings})
    assert main([str(tmp_path)]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["runs"] == ["new"]
    assert any("Not pooled" in warning and "old" in warning for warning in model["warnings"])
    assert main([str(tmp_path), "--run", "old"]) == 0
    assert json.loads((tmp_path / "capacity.json").read_text())["models"][0]["runs"] == ["old"]
    capsys.readouterr()
    assert main([str(tmp_path), "--run", "old", "--run", "new"]) == 2
    assert "must not be pooled" in capsys.readouterr().err
    assert main([str(tmp_path), "--run", "other"]) == 2
    assert "choose from old, new" in capsys.readouterr().err


def test_equal_runs_are_pooled(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / name, small_engine(), Plan(levels=(1, 2), level_s=12.0, seed=seed))
    assert main([str(tmp_path)]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["runs"] == ["a", "b"]
    assert [level["users"] for level in model["levels"]] == [1, 1, 2, 2]


def test_objectives_come_from_the_flag_then_the_run_then_the_default(tmp_path):
    settings = {"settle_s": 2.0, "slo_ttft_p95_s": 0.5, "slo_tpot_p95_s": 0.05}
    write_run(tmp_path / "r", small_engine(), Plan(levels=(2,), level_s=12.0), info={"settings": settings})
    assert main([str(tmp_path), "--slo-tpot-p95-s", "0.04"]) == 0
    slo = json.loads((tmp_path / "capacity.json").read_text())["slo"]
    assert slo == {
        "ttft_p95_s": 0.5,
        "tpot_p95_s": 0.04,
        "preempted_fraction": 0.01,
        "kv_blocked_fraction": 0.1,
    }


def test_a_config_json_turns_tokens_into_bytes(tmp_path, capsys):
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    server = ServerInfo(block_size=32, num_gpu_blocks=128, gpu_memory_utilization=0.5)
    gpu = GpuInfo(name="T4", count=1, vram_bytes=15 * 2**30)
    write_run(
        tmp_path / "r", small_engine(), Plan(levels=(2, 4), level_s=12.0), info={"server": server, "gpu": gpu}
    )
    assert main([str(tmp_path), "--config", str(tmp_path / "config.json")]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["memory"]["bytes_per_token"] == 112 * 1024
    capsys.readouterr()
    assert main([str(tmp_path), "--config", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.startswith("--config ")


def test_the_module_runs_as_a_command_and_its_help_teaches():
    done = subprocess.run(
        [sys.executable, "-m", "analysis.capacity", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "How many users can this deployment hold?" in done.stdout
    assert "--slo-kv-blocked-fraction" in done.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "analysis.capacity"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_lengths_are_what_the_fixture_says():
    import numpy as np

    lengths = np.array([chat_lengths(np.random.default_rng(k)) for k in range(2000)])
    assert lengths.mean(axis=0) == pytest.approx([124, 96], rel=0.05)


def test_tokens_that_the_server_counted_and_we_did_not_make_levels_untrusted(tmp_path):
    """Somebody else's requests, or rows that are missing: here every twentieth."""
    write_run(tmp_path / "run", small_engine(), Plan(levels=(4,)))
    rows = tmp_path / "run" / "requests-0.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(line for number, line in enumerate(lines) if number % 20))
    answer = answer_for(tmp_path / "run")
    assert re.search("the server counted [4-7] % more than our rows", words(answer.levels[0].why_not[0]))


def test_the_example_in_docs_still_gives_the_answer_that_stands_there(tmp_path, capsys):
    example = ROOT / "docs" / "example-run"
    folder = tmp_path / "run"
    shutil.copytree(example, folder)
    assert main([str(folder)]) == 0
    made, stands = (read_json((path / "capacity.json").read_bytes()) for path in (folder, example))
    (now,), (then,) = made.models, stands.models
    assert (now.max_users, now.estimate, now.binding, now.reasons) == (
        18,
        18,
        "kv_cache",
        [],
    )
    assert now.interval_x == pytest.approx(then.interval_x, rel=1e-6)
    assert [level.n for level in now.levels] == [level.n for level in then.levels]
    assert now.warnings == then.warnings
    assert "18 users" in capsys.readouterr().out

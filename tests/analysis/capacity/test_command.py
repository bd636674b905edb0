"""`python -m analysis.capacity`: what it reads, writes and refuses."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.capacity.__main__ import main
from analysis.reporting.words import sentences
from loadtest.record import GpuInfo, ServerInfo
from testing.inputs.model_configs import QWEN3_1_7B
from testing.processes import ROOT
from testing.runs.virtual import Plan, read_json, small_engine, write_run


def test_a_stated_pool_keeps_the_block_size_of_the_server(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(2, 4), level_s=30.0))
    assert main([str(tmp_path), "--kv-cache-tokens", "3200"]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["memory"]["pool_tokens"] == 3200 - 32  # the null block, of 32 tokens


def test_an_answer_from_a_run_that_lost_rows_does_not_end_with_0(tmp_path, capsys):
    lost = "17 rows could not be written and are lost."
    for shortfall, code in ((None, 0), (lost, 3)):
        write_run(
            tmp_path / "r", small_engine(), Plan(levels=(2, 4), level_s=20.0), info={"shortfall": shortfall}
        )
        assert main([str(tmp_path)]) == code
        assert (lost in " ".join(capsys.readouterr().out.split())) == (code == 3)
        (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
        assert model["max_users"] is not None


def test_slots_are_suspected_until_the_person_states_them(tmp_path):
    write_run(tmp_path / "r", small_engine(max_num_seqs=8), Plan(levels=(4, 12), level_s=30.0))
    said = {}
    for flags in ((), ("--max-num-seqs", "8"), ("--max-num-seqs", "20")):
        assert main([str(tmp_path), *flags]) == 0
        (said[flags],) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    suspected, stated, other = said.values()
    assert (suspected["binding"], suspected["max_users"]) == ("max_num_seqs", 8)
    assert (stated["binding"], stated["max_users"]) == ("max_num_seqs", 8)
    assert [any("Suspected" in text for text in one["warnings"]) for one in (suspected, stated)] == [
        True,
        False,
    ]
    assert next(bound["users_x"] for bound in other["bounds"] if bound["name"] == "max_num_seqs") == 20.0


def test_the_command_answers_and_writes_what_the_contract_names(memory_run, capsys):
    assert main([str(memory_run)]) == 0
    first = capsys.readouterr().out.strip().splitlines()[0]
    written = json.loads((memory_run / "capacity.json").read_text())
    assert set(written) == {"schema", "generated_unix_s", "confidence", "slo", "models"}
    assert written["slo"] == {
        "ttft_p95_s": 2.0,
        "tpot_p95_s": 0.1,
        "preempted_fraction": 0.01,
        "kv_blocked_fraction": 0.1,
        "prefix_hit_fraction": None,
        "stall_p95_s": None,
    }
    (model,) = written["models"]
    assert model["max_users"] == math.floor(model["interval_x"][0]) > 0
    assert first == f"tiny: plan for {model['max_users']} users"
    contract = """model runs max_users estimate interval estimate_x interval_x max_in_flight at_least binding
        p_binding bounds memory latency levels refused reasons warnings"""
    assert set(contract.split()) <= set(model)
    level = """users in_flight n window_s ttft_s tpot_s decode_tok_s output_tok_s goodput_rps kv_cache_usage
        preempted_fraction kv_blocked_fraction errors cancelled trusted why_not"""
    assert set(level.split()) <= set(model["levels"][0])
    assert {"p50", "p95", "p99", "p95_interval", "p95_at_least"} <= set(model["levels"][0]["ttft_s"])
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


def test_a_lower_confidence_narrows_the_interval_and_is_shown(memory_run, memory_answer, tmp_path, capsys):
    shutil.copytree(memory_run, tmp_path / "run")
    assert main([str(tmp_path), "--confidence", "0.5"]) == 0
    written = json.loads((tmp_path / "capacity.json").read_text())
    (model,) = written["models"]
    assert written["confidence"] == 0.5
    assert model["estimate_x"] == memory_answer.headline.estimate_x
    low, high = memory_answer.headline.interval_x
    assert low < model["interval_x"][0] < model["estimate_x"] < model["interval_x"][1] < high
    assert model["interval_x"][1] - model["interval_x"][0] < 0.6 * (high - low)
    first = "\n".join(capsys.readouterr().out.strip().splitlines()[:3])
    assert "50 %" in first
    assert "90 %" not in first


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
    write_run(folder, small_engine(), Plan(levels=(1, 2, 4), level_s=30.0), info={"ended_unix_s": None})
    rows = (folder / "requests-0.jsonl").read_bytes()
    (folder / "requests-0.jsonl").write_bytes(rows[:-30])
    assert main([str(folder)]) == 0
    assert "its last line is torn" in capsys.readouterr().out


def test_other_workloads_are_not_pooled_and_run_picks(tmp_path, capsys):
    for name, seed, lengths in (("old", 0, "lognormal:96,0.6"), ("new", 1, "lognormal:64,0.6")):
        settings = {"settle_s": 2.0, "seed": seed, "output_tokens": lengths}
        plan = Plan(levels=(1, 2), level_s=30.0, settle_s=2.0, seed=seed)
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
        write_run(tmp_path / name, small_engine(), Plan(levels=(1, 2), level_s=30.0, seed=seed))
    assert main([str(tmp_path)]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["runs"] == ["a", "b"]
    assert [level["users"] for level in model["levels"]] == [1, 1, 2, 2]


def test_a_copy_of_a_run_is_counted_once(tmp_path):
    write_run(tmp_path / "a", small_engine(), Plan(levels=(1, 2), level_s=30.0))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    told = json.loads((tmp_path / "b" / "run.json").read_text())
    (tmp_path / "b" / "run.json").write_text(json.dumps(told | {"run_id": "b"}))
    assert main([str(tmp_path)]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["runs"] == ["a"]
    assert "b holds the same requests as a: they are counted once." in model["warnings"]


def test_objectives_come_from_the_flag_then_the_run_then_the_default(tmp_path):
    settings = {"settle_s": 2.0, "slo_ttft_p95_s": 0.5, "slo_tpot_p95_s": 0.05}
    write_run(tmp_path / "r", small_engine(), Plan(levels=(2,), level_s=30.0), info={"settings": settings})
    assert main([str(tmp_path), "--slo-tpot-p95-s", "0.04"]) == 0
    slo = json.loads((tmp_path / "capacity.json").read_text())["slo"]
    assert slo == {
        "ttft_p95_s": 0.5,
        "tpot_p95_s": 0.04,
        "preempted_fraction": 0.01,
        "kv_blocked_fraction": 0.1,
        "prefix_hit_fraction": None,
        "stall_p95_s": None,
    }


def test_who_accepts_any_preemption_and_wait_has_no_memory_wall(tmp_path, capsys):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(8, 16, 24, 32), level_s=30.0))
    strict = ["--slo-ttft-p95-s", "1e3", "--slo-tpot-p95-s", "1e3"]
    assert main([str(tmp_path), *strict]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["binding"] == "kv_cache"
    tolerant = ["--slo-preempted-fraction", "1", "--slo-kv-blocked-fraction", "1"]
    assert main([str(tmp_path), *strict, *tolerant]) == 0
    (model,) = json.loads((tmp_path / "capacity.json").read_text())["models"]
    assert model["binding"] != "kv_cache"
    for wrong in ("0", "1.01", "nan"):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path), "--slo-preempted-fraction", wrong])
        assert f"{wrong} is not above 0 and at most 1" in capsys.readouterr().err


def test_a_config_json_turns_tokens_into_bytes(tmp_path, capsys):
    config = QWEN3_1_7B | {"torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    server = ServerInfo(block_size=32, num_gpu_blocks=128, gpu_memory_utilization=0.5)
    gpu = GpuInfo(name="T4", count=1, vram_bytes=15 * 2**30)
    write_run(
        tmp_path / "r", small_engine(), Plan(levels=(2, 4), level_s=30.0), info={"server": server, "gpu": gpu}
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


def test_the_example_in_docs_still_gives_the_answer_that_stands_there(tmp_path, capsys):
    example = ROOT / "docs" / "example-run"
    folder = tmp_path / "run"
    shutil.copytree(example, folder)
    assert main([str(folder)]) == 0
    made, stands = (read_json((path / "capacity.json").read_bytes()) for path in (folder, example))
    (now,), (then,) = made.models, stands.models
    assert (now.max_users, now.estimate, now.binding, now.reasons) == (18, 18, "kv_cache", [])
    assert now.interval_x == pytest.approx(then.interval_x, rel=1e-6)
    assert [level.n for level in now.levels] == [level.n for level in then.levels]
    assert now.warnings == then.warnings
    made_words, words = (_undated_words(path / "report.md") for path in (folder, example))
    assert made_words == words
    assert "plan for 18 users" in capsys.readouterr().out


def _undated_words(report: Path) -> list[str]:
    return [line for line in report.read_text().splitlines() if not line.startswith("Made ")]


def test_users_are_told_as_people_of_whom_some_are_active_at_the_peak(memory_run, tmp_path, capsys):
    folder = shutil.copytree(memory_run, tmp_path / "r")
    assert main([str(folder), "--active", "0.2", "--headcount", "500"]) == 0
    (model,) = json.loads((folder / "capacity.json").read_text())["models"]
    users, people = model["max_users"], model["people"]
    assert people["users_needed"] == 100
    assert (people["deployments"] - 1) * users < 100 <= people["deployments"] * users
    assert people["holds_people"] == 5 * users
    said = " ".join(capsys.readouterr().out.split())
    assert f"are 100 users: {people['deployments']} such deployments hold them" in said
    assert "with pauses (--think-s) more people fit" in said
    assert main([str(folder), "--active", "0.2"]) == 0
    assert f"a company of about {5 * users} people" in " ".join(capsys.readouterr().out.split())
    assert main([str(folder), "--headcount", "500"]) == 2
    assert "--headcount needs --active" in capsys.readouterr().err


def test_the_requests_of_the_busiest_hour_are_told_as_users_at_once(memory_run, tmp_path, capsys):
    folder = shutil.copytree(memory_run, tmp_path / "r")
    assert main([str(folder), "--busiest-hour", "1000000"]) == 0
    (model,) = json.loads((folder / "capacity.json").read_text())["models"]
    found, users = model["busiest_hour"], model["max_users"]
    (level,) = (level for level in model["levels"] if level["users"] == 16)
    each = 3600 * level["n"] / level["window_s"] / 16
    assert found["requests_per_user"] == pytest.approx(each, rel=0.01)
    assert found["users_mean"] == pytest.approx(1e6 / each, rel=0.01)
    assert found["users_mean"] < found["users_needed"] < 1.6 * found["users_mean"]
    assert (found["deployments"] - 1) * users < found["users_needed"] <= found["deployments"] * users
    said = " ".join(capsys.readouterr().out.split())
    assert f"at most {found['users_needed']} users at once for 95 % of it" in said
    assert main([str(folder)]) == 0
    assert json.loads((folder / "capacity.json").read_text())["models"][0]["busiest_hour"] is None

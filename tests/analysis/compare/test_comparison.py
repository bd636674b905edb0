"""Two runs side by side, of deployments of the engine whose difference is known."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.compare.__main__ import main
from analysis.compare.differences import mismatches
from loadtest.record import ArrivalsInfo, GpuInfo, RunInfo, ServerInfo
from testing.runs.answers import comparison_row
from testing.runs.virtual import Plan, read_json, small_engine, write_run, write_short_run


def run_json(*arguments: str | Path, capsys) -> Any:
    assert main([*map(str, arguments), "--format", "json"]) in (0, 3, 4)
    return read_json(capsys.readouterr().out)


def highest(found: Any) -> int:
    """The highest level in the table: 12 or 16, as the walls fall."""
    return max(one.users for one in found.rows if one.users is not None)


def test_a_smaller_pool_holds_fewer_users_and_is_as_fast_alone(baseline, smaller, capsys):
    found = run_json(baseline, smaller, capsys=capsys)
    users = comparison_row(found, "max_users")
    assert users.different == "yes"
    assert users.ratio is not None
    assert 0.6 < users.ratio < 0.75
    assert users.ratio_interval is not None
    assert users.ratio_interval[0] < users.ratio < users.ratio_interval[1] < 0.85
    assert comparison_row(found, "memory_users").different == "yes"
    assert comparison_row(found, "kv_pool_tokens").ratio == pytest.approx(89 / 127)
    assert comparison_row(found, "kv_pool_tokens").a.interval is None
    for figure in ("ttft_p50_s", "decode_tok_s", "output_tok_s"):
        assert comparison_row(found, figure, 1).different in ("not_seen", "perhaps")
    assert comparison_row(found, "kv_tokens_per_user").different == "not_seen"
    assert comparison_row(found, "kv_bytes_per_token").different == "equal"
    assert found.common_levels == [1, 8, 12, 16, 20]
    assert {one.users for one in found.rows} == {None, 1, 8}
    assert [one.name for one in found.differs] == ["server kv_cache_tokens", "server num_gpu_blocks", "seed"]
    assert found.names == ["before", "smaller"]


def test_equal_deployments_do_not_differ(baseline, again, capsys):
    found = run_json(baseline, again, capsys=capsys)
    assert not [one for one in found.rows if one.different == "yes"]
    assert sum(one.different == "not_seen" for one in found.rows) >= 6
    assert sum(one.different == "perhaps" for one in found.rows) <= 3


def test_a_slower_server_is_seen_at_every_level_and_versions_name_the_sides(baseline, tmp_path, capsys):
    info = json.loads((baseline / "run.json").read_text())["server"] | {"version": "0.33.0"}
    slow = write_short_run(
        tmp_path / "slow",
        seed=3,
        info={"server": msgspec.convert(info, ServerInfo)},
        step_base_s=0.0032,
        step_per_seq_s=0.0002,
    )
    found = run_json(baseline, slow, capsys=capsys)
    assert found.names == ["vllm 0.32.0", "vllm 0.33.0"]
    assert comparison_row(found, "tpot_p95_s", highest(found)).different == "yes"
    for users in (1, highest(found)):
        assert comparison_row(found, "decode_tok_s", users).ratio == pytest.approx(1 / 1.3, rel=0.03)
        assert comparison_row(found, "output_tok_s", users).different == "yes"


def test_a_deployment_whose_runs_differ_is_not_known_better_by_pooling_them(baseline, tmp_path, capsys):
    slow = {"step_base_s": 0.0032, "step_per_seq_s": 0.0002}
    shutil.copytree(baseline, tmp_path / "both" / "fast")
    write_short_run(tmp_path / "both" / "slow", seed=3, **slow)
    alone = write_short_run(tmp_path / "alone", seed=5, **slow)
    found = run_json(alone, tmp_path / "both", capsys=capsys)
    for figure in ("output_tok_s", "decode_tok_s"):
        row = comparison_row(found, figure, highest(found))
        assert row.a.interval[1] < row.a.value * 1.02
        assert row.b.interval[0] is None or row.b.interval[0] < row.a.value
        assert row.different == "not_seen"


def test_stalls_have_a_row_where_they_have_an_objective(memory_run, baseline, capsys):
    found = run_json(memory_run, baseline, "--slo-stall-p95-s", "0.5", capsys=capsys)
    row = comparison_row(found, "stall_p95_s", 1)
    assert row.a.value == pytest.approx(0.0036, rel=0.1)  # one step, with its jitter
    assert row.a.interval is not None
    assert row.b.value is None  # too few requests for its p95
    without = run_json(memory_run, baseline, capsys=capsys)
    assert "stall_p95_s" not in {one.figure for one in without.rows}


def test_without_a_common_level_capacity_is_compared_alone_and_it_says_so(baseline, tmp_path, capsys):
    other = write_short_run(tmp_path / "other", seed=4, levels=(2, 6, 14, 18), num_gpu_blocks=90)
    found = run_json(baseline, other, capsys=capsys)
    assert found.common_levels == []
    assert comparison_row(found, "max_users").different == "yes"
    assert not [one for one in found.rows if one.users is not None]
    assert "No level is trusted in both runs (users: 1, 8, 12, 16, 20 and 2, 6, 14, 18)" in found.warnings[0]


def test_what_the_server_does_not_say_stays_missing(baseline, tmp_path, capsys):
    plan = Plan(levels=(1, 8), seed=5, level_s=20.0, metrics=False)
    write_run(tmp_path / "dark", small_engine(), plan)
    found = run_json(baseline, tmp_path / "dark", capsys=capsys)
    held = comparison_row(found, "kv_tokens_per_user")
    assert held.a.value is not None
    assert held.b.value is None
    assert held.different is None
    assert not [one for one in found.rows if one.figure.startswith("vram")]
    capsys.readouterr()
    assert main([str(baseline), str(tmp_path / "dark")]) == 0
    line = next(
        one for one in capsys.readouterr().out.splitlines() if one.strip().startswith("KV cache a token")
    )
    assert line.split()[-3:] == ["–", "–", "–"]


def test_vram_is_measured_where_the_driver_says_it(baseline, tmp_path, capsys):
    folder = tmp_path / "seen"
    shutil.copytree(baseline, folder)
    rows = [json.loads(line) for line in (folder / "server.jsonl").read_text().splitlines()]
    vram = 3 * 2**30 + 127 * 32 * 2048
    (folder / "server.jsonl").write_text(
        "".join(json.dumps(line | {"vram_used_bytes": vram}) + "\n" for line in rows)
    )
    found = run_json(folder, write_short_run(tmp_path / "other", seed=6), capsys=capsys)
    held, base, peak = (
        comparison_row(found, f"vram_{name}_bytes").a.value for name in ("held", "no_load", "at_peak")
    )
    assert held == vram
    assert base == vram - 128 * 32 * 2048
    assert base < peak <= held
    assert not comparison_row(found, "vram_held_bytes").a.predicted
    assert comparison_row(found, "vram_held_bytes").b.value is None


def test_vram_of_a_simulated_server_is_predicted_and_marked(tmp_path, capsys):
    for name, preset, seed in (("a", "qwen3-1.7b-t4", 0), ("b", "qwen1.5-1.8b-t4", 1)):
        server = ServerInfo(
            engine="seatcount-simulator",
            block_size=32,
            num_gpu_blocks=128,
            gpu_memory_utilization=0.92,
            simulated=preset,
        )
        write_short_run(
            tmp_path / name, seed=seed, levels=(1, 8), info={"server": server, "model": name, "gpu": None}
        )
    found = run_json(tmp_path / "a", tmp_path / "b", capsys=capsys)
    base = comparison_row(found, "vram_no_load_bytes")
    assert base.a.predicted
    assert base.a.value is not None
    assert base.a.value / 2**30 == pytest.approx(3.215 + 0.560 + 0.371 + 0.250, abs=0.01)
    assert comparison_row(found, "kv_bytes_per_token").a.value == 112 * 1024
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "4.40 GiB*" in said
    assert "because no GPU was measured" in said


def info_with(baseline: Path, **changes: object) -> RunInfo:
    info = msgspec.json.decode((baseline / "run.json").read_bytes(), type=RunInfo)
    settings = changes.pop("settings", {})
    for name, value in changes.items():
        setattr(info, name, value)
    info.settings |= settings
    return info


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": {"output_tokens": "lognormal:96,0.6"}}, "output_tokens"),
        ({"settings": {"think_s": "exp:20"}}, "think_s"),
        ({"settings": {"turns": 5}}, "turns"),
        ({"settings": {"thinking": "on"}}, "thinking"),
        ({"settings": {"ignore_eos": False}}, "ignore_eos"),
        ({"settings": {"temperature": 0.7}}, "temperature"),
        ({"scenario": "rag"}, "scenario"),
        ({"gpu": GpuInfo(name="Tesla T4", count=1, vram_bytes=None)}, "GPU (1 x CPU against 1 x Tesla T4)"),
        ({"arrivals": ArrivalsInfo(law="poisson:4", start_unix_s=0.0, end_unix_s=1.0)}, "open loop"),
    ],
)
def test_other_workloads_and_gpus_are_not_compared(baseline, changes, named):
    (why,) = mismatches(info_with(baseline), info_with(baseline, **changes))
    assert named in why


def test_models_versions_and_flags_may_differ(baseline):
    server = ServerInfo(engine="vllm", version="0.33.0", max_num_seqs=8)
    assert mismatches(info_with(baseline), info_with(baseline, model="other", server=server, host="h")) == []


def test_presets_of_other_gpus_are_not_compared(baseline):
    t4, l4 = (
        info_with(baseline, server=ServerInfo(simulated=f"qwen3-1.7b-{gpu}"), gpu=None)
        for gpu in ("t4", "l4")
    )
    assert mismatches(t4, l4) == ["GPU (simulated Tesla T4 against simulated NVIDIA L4)"]


def test_a_refusal_is_one_sentence_and_exit_3(baseline, tmp_path, capsys):
    info = info_with(baseline, settings={"output_tokens": "64"})
    folder = shutil.copytree(baseline, tmp_path / "other")
    (folder / "run.json").write_bytes(msgspec.json.encode(info))
    (folder / "requests-0.jsonl").write_bytes((folder / "requests-0.jsonl").read_bytes() + b"\n")
    assert main([str(baseline), str(folder), "--output", str(tmp_path / "out")]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert 'differ in output_tokens (null against "64")' in err
    assert not (tmp_path / "out").exists()


def test_the_same_run_twice_and_what_is_no_run_exit_2(baseline, tmp_path, capsys):
    assert main([str(baseline), str(baseline)]) == 2
    assert "Both are the same run" in capsys.readouterr().err
    assert main([str(baseline), str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_folder_of_one_models_runs_is_pooled_and_of_two_models_is_not(baseline, again, tmp_path, capsys):
    shutil.copytree(baseline, tmp_path / "pool" / "before")
    shutil.copytree(again, tmp_path / "pool" / "after")
    other = write_short_run(tmp_path / "third", seed=8)
    found = run_json(tmp_path / "pool", other, capsys=capsys)
    assert found.answers[0].runs == ["before", "after"]
    alone = run_json(baseline, other, capsys=capsys)
    pooled, single = (comparison_row(one, "output_tok_s", 1).a.interval for one in (found, alone))
    assert pooled is not None
    assert single is not None
    assert pooled[1] - pooled[0] < single[1] - single[0]
    write_short_run(tmp_path / "pool" / "another", levels=(1,), info={"model": "another"})
    assert main([str(tmp_path / "pool"), str(other)]) == 2
    assert "runs of several models" in capsys.readouterr().err


def test_other_objectives_need_a_flag(baseline, tmp_path, capsys):
    settings = {"settle_s": 5.0, "level_s": 20.0, "think_s": 0.0, "seed": 9, "slo_ttft_p95_s": 0.5}
    other = write_short_run(tmp_path / "strict", seed=9, info={"settings": settings})
    assert main([str(baseline), str(other)]) == 3
    assert "--slo-ttft-p95-s" in capsys.readouterr().err
    assert main([str(baseline), str(other), "--slo-ttft-p95-s", "1"]) == 0

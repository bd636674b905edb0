"""Two runs side by side, against deployments of the engine whose difference is known; and the gate."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest

from analysis.answers.compare import Comparison, ComparisonRow
from analysis.compare.__main__ import main
from analysis.compare.differences import mismatches
from analysis.compare.gate import gate_of
from analysis.compare.sides import MeasuredDeployment, deployment_of, held_tokens
from analysis.evidence.lengths import Pairs
from analysis.reading.runs import find_runs, read_run
from analysis.statistics.ratios import (
    Quantity,
    Sample,
    Series,
    estimate,
    fact,
    quantile_ratio_bounds,
    ratio_bounds,
)
from analysis.statistics.samples import Window
from analysis.walls.block_law import block_law
from loadtest.record import ArrivalsInfo, GpuInfo, RunInfo, ServerInfo, Slo
from scenarios import reference_pair
from testing.processes import ROOT, clean_environment
from testing.truth.gate_pairs import CHANGES, pair_of
from testing.virtual_runs import Plan, small_engine, write_run

LEVELS = (1, 8, 12, 16, 20)
SMALLER = {"num_gpu_blocks": 90}


def write(
    folder: Path, *, seed: int = 0, levels: tuple[int, ...] = LEVELS, info=None, **engine: object
) -> Path:
    plan = Plan(levels=levels, seed=seed, level_s=20.0)
    write_run(folder, small_engine(seed=seed, **engine), plan, info=info)
    return folder


@pytest.fixture(scope="module")
def baseline(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("a") / "before")


@pytest.fixture(scope="module")
def again(tmp_path_factory) -> Path:
    """The same deployment, measured once more."""
    return write(tmp_path_factory.mktemp("b") / "after", seed=1)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory) -> Path:
    """A pool of 89 blocks instead of 127."""
    return write(tmp_path_factory.mktemp("c") / "smaller", seed=2, **SMALLER)


def run_json(*arguments: str | Path, capsys) -> Comparison:
    assert main([*map(str, arguments), "--format", "json"]) in (0, 3, 4)
    return msgspec.json.decode(capsys.readouterr().out, type=Comparison)


def row(found: Comparison, figure: str, users: int | None = None) -> ComparisonRow:
    (only,) = (one for one in found.rows if (one.figure, one.users) == (figure, users))
    return only


def highest(found: Comparison) -> int:
    """The highest level in the table: 12 or 16, as the walls fall."""
    return max(one.users for one in found.rows if one.users is not None)


def deployed(folder: Path) -> MeasuredDeployment:
    return deployment_of([read_run(found) for found in find_runs(folder)], name="run", slo=Slo())


# Ratios.


def test_the_ratio_of_facts_is_exact_and_of_estimates_as_wide_as_both():
    assert ratio_bounds(fact(2.0), fact(3.0))(0.05) == pytest.approx((1.5, 1.5))
    one = estimate(100.0, se=1.0, freedom=1e6)
    low, high = ratio_bounds(one, one)(0.05)
    assert math.log(high) == pytest.approx(1.645 * math.sqrt(2) / 100, rel=0.02)
    assert low == pytest.approx(1 / high, rel=0.001)


def test_open_ends_stay_open():
    at_least = Quantity(value=20.0, bounds=lambda _: (20.0, math.inf))
    known = estimate(10.0, se=0.5, freedom=1e6)
    low, high = ratio_bounds(known, at_least)(0.05)
    assert 1.8 < low < 2.0
    assert high == math.inf
    low, high = ratio_bounds(at_least, known)(0.05)
    assert low == 0.0
    assert 0.5 < high < 0.6


def sample(values: np.ndarray) -> Sample:
    window = Window(begin_unix_s=0.0, end_unix_s=100.0, request_duration_s=1.0)
    at = np.linspace(0, 99.9, len(values))
    return Sample(series=[Series(values=values, at_unix_s=at, window=window)])


def test_bounds_on_a_ratio_of_p95s_cover_as_often_as_they_claim():
    rng = np.random.default_rng(5)
    missed = [0, 0]
    for _ in range(400):
        a, b = rng.lognormal(0, 0.5, 300), 1.5 * rng.lognormal(0, 0.5, 400)
        low, high = quantile_ratio_bounds(sample(a), sample(b), 0.95)(0.05)
        missed[0] += low > 1.5
        missed[1] += high < 1.5
    assert all(4 <= count <= 28 for count in missed)  # 20 are expected, fewer where a bound is cautious


def test_a_tenfold_p95_is_seen_in_a_hundred_requests():
    rng = np.random.default_rng(6)
    a, b = rng.lognormal(0, 0.3, 100), 10 * rng.lognormal(0, 0.3, 100)
    low, high = quantile_ratio_bounds(sample(a), sample(b), 0.95)(0.001)
    assert 4 < low < 10
    assert high > 10
    turned = quantile_ratio_bounds(sample(b), sample(a), 0.95)(0.001)
    assert turned == pytest.approx((1 / high, 1 / low))


def test_tokens_held_are_those_of_the_block_law():
    rng = np.random.default_rng(7)
    pairs = Pairs(
        prompt=rng.integers(1, 300, 200),
        output=rng.integers(1, 200, 200),
        conversation=np.arange(200),
        shared_prefix=40,
    )
    held, steps = held_tokens(pairs, block_tokens=16)
    assert held.sum() / steps.sum() == pytest.approx(16 * block_law(pairs, block_tokens=16).mean)


# The table.


def test_a_smaller_pool_holds_fewer_users_and_is_as_fast_alone(baseline, smaller, capsys):
    found = run_json(baseline, smaller, capsys=capsys)
    users = row(found, "max_users")
    assert users.different == "yes"
    assert users.ratio is not None
    assert 0.6 < users.ratio < 0.75
    assert users.ratio_interval is not None
    assert users.ratio_interval[0] < users.ratio < users.ratio_interval[1] < 0.85
    assert row(found, "memory_users").different == "yes"
    assert row(found, "kv_pool_tokens").ratio == pytest.approx(89 / 127)
    assert row(found, "kv_pool_tokens").a.interval is None
    for figure in ("ttft_p50_s", "decode_tok_s", "output_tok_s"):
        assert row(found, figure, 1).different in ("not_seen", "perhaps")
    assert row(found, "kv_tokens_per_user").different == "not_seen"
    assert row(found, "kv_bytes_per_token").different == "equal"
    assert found.common_levels == [1, 8, 12, 16, 20]
    assert {one.users for one in found.rows} == {None, 1, 8}
    assert [one.name for one in found.differs] == ["server kv_cache_tokens", "server num_gpu_blocks", "seed"]
    assert found.names == ("before", "smaller")


def test_equal_deployments_do_not_differ(baseline, again, capsys):
    found = run_json(baseline, again, capsys=capsys)
    assert not [one for one in found.rows if one.different == "yes"]
    assert sum(one.different == "not_seen" for one in found.rows) >= 6
    assert sum(one.different == "perhaps" for one in found.rows) <= 3


def test_a_slower_server_is_seen_at_every_level_and_versions_name_the_sides(baseline, tmp_path, capsys):
    info = json.loads((baseline / "run.json").read_text())["server"] | {"version": "0.33.0"}
    slow = write(
        tmp_path / "slow",
        seed=3,
        info={"server": msgspec.convert(info, ServerInfo)},
        step_base_s=0.0032,
        step_per_seq_s=0.0002,
    )
    found = run_json(baseline, slow, capsys=capsys)
    assert found.names == ("vllm 0.32.0", "vllm 0.33.0")
    assert row(found, "tpot_p95_s", highest(found)).different == "yes"
    for users in (1, highest(found)):
        assert row(found, "decode_tok_s", users).ratio == pytest.approx(1 / 1.3, rel=0.03)
        assert row(found, "output_tok_s", users).different == "yes"


def test_without_a_common_level_capacity_is_compared_alone_and_it_says_so(baseline, tmp_path, capsys):
    other = write(tmp_path / "other", seed=4, levels=(2, 6, 14, 18), **SMALLER)
    found = run_json(baseline, other, capsys=capsys)
    assert found.common_levels == []
    assert row(found, "max_users").different == "yes"
    assert not [one for one in found.rows if one.users is not None]
    assert "No level is trusted in both runs (users: 1, 8, 12, 16, 20 and 2, 6, 14, 18)" in found.warnings[0]


def test_what_the_server_does_not_say_stays_missing(baseline, tmp_path, capsys):
    plan = Plan(levels=(1, 8), seed=5, level_s=20.0, metrics=False)
    write_run(tmp_path / "dark", small_engine(), plan)
    found = run_json(baseline, tmp_path / "dark", capsys=capsys)
    held = row(found, "kv_tokens_per_user")
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
    found = run_json(folder, write(tmp_path / "other", seed=6), capsys=capsys)
    held, base, peak = (row(found, f"vram_{name}_bytes").a.value for name in ("held", "no_load", "at_peak"))
    assert held == vram
    assert base == vram - 128 * 32 * 2048
    assert base < peak <= held
    assert not row(found, "vram_held_bytes").a.predicted
    assert row(found, "vram_held_bytes").b.value is None


def test_vram_of_a_simulated_server_is_predicted_and_marked(tmp_path, capsys):
    for name, preset, seed in (("a", "qwen3-1.7b-t4", 0), ("b", "qwen1.5-1.8b-t4", 1)):
        server = ServerInfo(
            engine="seatcount-simulator",
            block_size=32,
            num_gpu_blocks=128,
            gpu_memory_utilization=0.92,
            simulated=preset,
        )
        write(tmp_path / name, seed=seed, levels=(1, 8), info={"server": server, "model": name, "gpu": None})
    found = run_json(tmp_path / "a", tmp_path / "b", capsys=capsys)
    base = row(found, "vram_no_load_bytes")
    assert base.a.predicted
    assert base.a.value is not None
    assert base.a.value / 2**30 == pytest.approx(3.215 + 0.560 + 0.371 + 0.250, abs=0.01)
    assert row(found, "kv_bytes_per_token").a.value == 112 * 1024
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "4.40 GiB*" in said
    assert "because no GPU was measured" in said


# What must not be compared.


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
    other = write(tmp_path / "third", seed=8)
    found = run_json(tmp_path / "pool", other, capsys=capsys)
    assert found.answers[0].runs == ["before", "after"]
    alone = run_json(baseline, other, capsys=capsys)
    pooled, single = (row(one, "output_tok_s", 1).a.interval for one in (found, alone))
    assert pooled is not None
    assert single is not None
    assert pooled[1] - pooled[0] < single[1] - single[0]
    write(tmp_path / "pool" / "another", levels=(1,), info={"model": "another"})
    assert main([str(tmp_path / "pool"), str(other)]) == 2
    assert "runs of several models" in capsys.readouterr().err


def test_other_objectives_need_a_flag(baseline, tmp_path, capsys):
    settings = {"settle_s": 5.0, "level_s": 20.0, "think_s": 0.0, "seed": 9, "slo_ttft_p95_s": 0.5}
    other = write(tmp_path / "strict", seed=9, info={"settings": settings})
    assert main([str(baseline), str(other)]) == 3
    assert "--slo-ttft-p95-s" in capsys.readouterr().err
    assert main([str(baseline), str(other), "--slo-ttft-p95-s", "1"]) == 0


# Forms.


def test_the_forms_say_the_same_and_only_output_writes(baseline, smaller, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(baseline), str(smaller)]) == 0
    text = capsys.readouterr().out
    assert text.strip().splitlines()[0].startswith("before: 1")
    assert re.search(r"before holds more users: 1\.\d+ to 1\.\d+ times as many", text)
    assert re.search(r"^ *maximum users .* yes *$", text, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
    assert main([str(baseline), str(smaller), "--format", "markdown", "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert said == (tmp_path / "out" / "compare.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.html", "compare.json", "compare.md",
    ]  # fmt: skip
    found = msgspec.json.decode((tmp_path / "out" / "compare.json").read_bytes(), type=Comparison)
    assert row(found, "max_users").different == "yes"


def test_the_page_is_self_contained_and_escapes_names(baseline, tmp_path):
    evil = write(tmp_path / "evil", seed=3, info={"model": "<script>alert(1)</script>"})
    assert main([str(baseline), str(evil), "--output", str(tmp_path)]) == 0
    page = (tmp_path / "compare.html").read_text()
    assert "<script>" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 5
    assert "None" not in page


# The gate.


def test_an_equal_run_passes_one_line_for_each_criterion(baseline, again, capsys):
    assert main(["--gate", str(baseline), str(again)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["ok"] * 4
    assert lines[4].startswith("Not worse than its baseline. Worse: surely by more than 5 %.")
    assert len(lines) == 5


def test_a_smaller_pool_fails_the_gate_and_says_by_how_much(baseline, smaller, tmp_path, capsys):
    assert main(["--gate", str(baseline), str(smaller), "--output", str(tmp_path)]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"worse +maximum users: 1\d\.\d, baseline 1\d\.\d, at least \d\d % less\.", lines[0])
    gate = json.loads((tmp_path / "compare.json").read_text())["gate"]
    assert gate["verdict"] == "worse"
    assert [one["figure"] for one in gate["criteria"]] == [
        "max_users",
        "ttft_p95_s",
        "tpot_p95_s",
        "output_tok_s",
    ]
    assert "Worse than its baseline" in (tmp_path / "compare.html").read_text()


def test_a_better_run_passes(baseline, smaller):
    assert main(["--gate", str(smaller), str(baseline)]) == 0


def test_the_tolerance_lets_pass_what_the_person_says(baseline, smaller):
    sides = deployed(baseline), deployed(smaller)
    verdicts = [gate_of(*sides, tolerance=tolerance).criteria[0].verdict for tolerance in (0.05, 0.8)]
    assert verdicts == ["worse", "unclear"]  # 50 % more is let pass, and is not well either


def test_a_run_too_short_for_a_verdict_exits_3(baseline, tmp_path, capsys):
    plan = Plan(levels=(1, 8), seed=5, level_s=5.5, settle_s=1.0)
    write_run(tmp_path / "short", small_engine(), plan)
    assert main(["--gate", str(baseline), str(tmp_path / "short")]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("unclear maximum users: The run met no wall: measure it at more users.")
    assert lines[4].startswith("No verdict")


def test_a_baseline_without_a_wall_asks_only_for_what_it_has_shown(tmp_path):
    calm, wide = (
        deployed(write(tmp_path / name, seed=seed, levels=(1, 8), num_gpu_blocks=blocks))
        for name, seed, blocks in (("calm", 0, 128), ("wide", 1, 200))
    )
    assert calm.answer.at_least
    assert gate_of(calm, wide).criteria[0].verdict == "ok"
    narrow = deployed(
        write(tmp_path / "narrow", seed=2, levels=(1, 4, 6, 8), num_gpu_blocks=40, max_model_len=1024)
    )
    assert gate_of(calm, narrow).criteria[0].verdict == "worse"


def test_equal_deployments_seldom_alarm_and_a_fifth_less_pool_does():
    """A small version of `python -m benchmarks gate`."""
    equal = [gate_of(*pair_of(pair, {}, level_s=15.0)).verdict for pair in range(3)]
    assert equal == ["ok"] * 3
    change = CHANGES["pool 20 % smaller"]
    assert gate_of(*pair_of(0, change, level_s=15.0)).verdict == "worse"


# `make compare`.


def test_the_claims_stand_beside_what_was_measured_and_physics_answers(tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path / name, seed=seed, info={"model": name})
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path)])
    found = json.loads((tmp_path / "compare.json").read_text())
    import tomllib

    claims = tomllib.loads(reference_pair.CLAIMS.read_text())
    text = reference_pair.beside_claims(found, claims)
    assert re.search(r"first-token latency, ms +260 ± 30 +\d+ +320 ± 40 +\d+\n", text)
    assert re.search(r"decode, tokens/s +57\.8 +\d+\.\d +44\.2 +\d+\.\d\n", text)
    assert re.search(r"peak GPU memory in use, GB +3\.2 +– +3\.6 +–\n", text)
    presets = [reference_pair.find_preset(claim["preset"]) for claim in claims["models"]]
    said = reference_pair.physics(presets, claims["models"])
    for words in (
        "3.205 and 3.421 GiB",
        "112 and 192 KiB",
        "at most 93 and 105 tokens/s",
        "2.6 and 1.5 of 32,768",
    ):
        assert words in said


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_make_compare_leaves_nothing_behind(sent, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "scenarios.reference_pair"],
        cwd=ROOT,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert re.search(r"about \d minutes", process.stderr.readline())
        port = urlsplit(process.stderr.readline().rpartition(" on ")[2].strip()).port
        assert port is not None
        os.kill(process.pid, sent)
        assert "nothing is left running" in process.stderr.read()
    assert process.returncode == 130
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
        pytest.fail("the server still listens")

"""The gate: what passes, what fails, and what is too short for a verdict."""

import json
import re
from pathlib import Path

from analysis.compare.__main__ import main
from analysis.compare.gate import gate_of
from analysis.compare.sides import MeasuredDeployment, deployment_of
from analysis.reading.runs import find_runs, read_run
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run, write_short_run
from testing.truth.gate_pairs import CHANGES, pair_of


def deployed(folder: Path) -> MeasuredDeployment:
    return deployment_of([read_run(found) for found in find_runs(folder)], name="run", slo=Slo())


def test_an_equal_run_passes_one_line_for_each_criterion(baseline, again, capsys):
    assert main(["--gate", str(baseline), str(again)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["ok"] * 4
    assert lines[4].startswith(
        "Not worse than its baseline. A figure counts as worse when it is surely more than 5 %"
    )
    assert len(lines) == 5


def test_a_smaller_pool_fails_the_gate_and_says_by_how_much(baseline, smaller, tmp_path, capsys):
    assert main(["--gate", str(baseline), str(smaller), "--output", str(tmp_path)]) == 4
    lines = capsys.readouterr().out.splitlines()
    said = re.match(r"worse +maximum users: ([\d.]+), baseline ([\d.]+), at least (\d+) % less\.", lines[0])
    assert said is not None
    now, before, less = map(float, said.groups())
    gate = json.loads((tmp_path / "compare.json").read_text())["gate"]
    sides = deployed(smaller), deployed(baseline)
    assert [now, before] == [round(side.answer.headline.estimate_x, 1) for side in sides]
    assert 5 < less < 100 * (1 - now / before)  # surely less, so not all of it
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
        deployed(write_short_run(tmp_path / name, seed=seed, levels=(1, 8), num_gpu_blocks=blocks))
        for name, seed, blocks in (("calm", 0, 128), ("wide", 1, 200))
    )
    assert calm.answer.headline.at_least
    assert gate_of(calm, wide).criteria[0].verdict == "ok"
    narrow = deployed(
        write_short_run(
            tmp_path / "narrow", seed=2, levels=(1, 4, 6, 8), num_gpu_blocks=40, max_model_len=1024
        )
    )
    assert gate_of(calm, narrow).criteria[0].verdict == "worse"


def test_equal_deployments_seldom_alarm_and_a_fifth_less_pool_does():
    """A small version of `python -m benchmarks gate`."""
    equal = [gate_of(*pair_of(pair, {}, level_s=15.0)).verdict for pair in range(3)]
    assert equal == ["ok"] * 3
    change = CHANGES["pool 20 % smaller"]
    assert gate_of(*pair_of(0, change, level_s=15.0)).verdict == "worse"

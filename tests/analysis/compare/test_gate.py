"""The gate: what passes, what fails, and what is too short for a verdict."""

import json
import re
from pathlib import Path

import pytest

from analysis.compare.__main__ import main
from analysis.compare.gate import gate_of
from analysis.compare.sides import MeasuredDeployment, deployment_of
from analysis.reading.runs import find_runs, read_run
from analysis.reporting.compare import criterion_line
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run, write_short_run
from testing.truth.gate_pairs import CHANGES, pair_of


def deployed(folder: Path) -> MeasuredDeployment:
    return deployment_of([read_run(found) for found in find_runs(folder)], name="run", slo=Slo())


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> list[Path]:
    """Two runs of one deployment, with levels that are long enough for a verdict."""
    folders = [tmp_path_factory.mktemp("long") / name for name in ("before", "after")]
    for seed, folder in enumerate(folders):
        write_run(folder, small_engine(seed=seed), Plan(levels=(4, 8, 12, 16, 20), level_s=45.0, seed=seed))
    return folders


def test_an_equal_run_passes_one_line_for_each_criterion(long, capsys):
    assert main(["--gate", *map(str, long)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["ok"] * 4
    assert lines[0].startswith("ok      maximum users: not worse than 10 %: shown; ")
    assert re.search("tok/s; mean over 4, 8, 12, 16 users: at most", lines[3])
    assert lines[4].startswith("Not worse than its baseline by 10 % or more: shown. Of 100 pairs")
    assert len(lines) == 5


def test_a_margin_that_the_data_cannot_show_is_not_passed(long, capsys):
    """Failing to show harm is no proof of its absence."""
    assert main(["--gate", "--tolerance", "0.001", "--margin", "0.001", *map(str, long)]) == 3
    said = capsys.readouterr().out
    assert re.search(r"^unclear maximum users: not worse than 0.1 %: not shown; .* at most \d", said)
    assert "nor that it is not worse by 0.1 %. Hold levels for longer, or raise --margin." in said


def test_levels_with_too_few_requests_are_not_outvoted_by_one_that_has_enough(baseline, again):
    """Levels of 20 s: the p95 of TPOT is known at 16 users only."""
    criterion = gate_of(deployed(baseline), deployed(again)).criteria[2]
    assert criterion.figure == "tpot_p95_s"
    assert [check.verdict for check in criterion.checks] == ["ok"]
    assert criterion.mean is not None
    assert criterion.mean.left_out == [1, 8, 12]
    assert criterion.verdict == "unclear"
    assert criterion_line(criterion).endswith(" Too few requests to tell at 1, 8, 12.")


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


def test_a_better_run_passes(smaller, baseline):
    assert gate_of(deployed(smaller), deployed(baseline)).criteria[0].verdict == "ok"


def test_the_tolerance_and_the_margin_let_pass_what_the_person_says(baseline, smaller):
    sides = deployed(baseline), deployed(smaller)
    verdicts = [
        gate_of(*sides, tolerance=tolerance, margin=margin).criteria[0].verdict
        for tolerance, margin in ((0.05, 0.1), (0.5, 0.5), (0.8, 0.8))
    ]
    assert verdicts == ["worse", "unclear", "ok"]  # it holds a third less, 1.5 times worse


def test_a_run_too_short_for_a_verdict_exits_3(baseline, tmp_path, capsys):
    plan = Plan(levels=(1, 8), seed=5, level_s=5.5, settle_s=1.0)
    write_run(tmp_path / "short", small_engine(), plan)
    assert main(["--gate", str(baseline), str(tmp_path / "short")]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "not shown; the run has no answer. Not enough data at 8 users: late first tokens" in lines[0]
    assert lines[4].startswith("No verdict")


def test_a_baseline_without_a_wall_shows_harm_and_nothing_else(tmp_path, capsys):
    calm, wide = (
        deployed(write_short_run(tmp_path / name, seed=seed, levels=(1, 8), num_gpu_blocks=blocks))
        for name, seed, blocks in (("calm", 0, 128), ("wide", 1, 200))
    )
    assert calm.answer.headline.at_least
    assert gate_of(calm, wide).criteria[0].verdict == "unclear"
    assert main(["--gate", str(tmp_path / "calm"), str(tmp_path / "wide")]) == 3
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "unclear maximum users: not worse than 10 %: not shown; the baseline met no wall, so it shows only "
        "that it holds 8: run it at more users."
    )
    narrow = deployed(
        write_short_run(
            tmp_path / "narrow", seed=2, levels=(1, 4, 6, 8), num_gpu_blocks=40, max_model_len=1024
        )
    )
    assert gate_of(calm, narrow).criteria[0].verdict == "worse"


def test_equal_deployments_seldom_alarm_and_a_fifth_less_pool_does():
    """A small version of `python -m benchmarks gate`."""
    equal = [gate_of(*pair_of(pair, {})).verdict for pair in range(2)]
    assert equal == ["ok"] * 2
    change = CHANGES["pool 20 % smaller"]
    assert gate_of(*pair_of(0, change, level_s=15.0)).verdict == "worse"

"""`--calibrate` takes over how long requests take: runs of an engine that is slower than predicted."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.sizing.engine import size_engine
from analysis.sizing.step_times import measured_times
from loadtest.record import GpuInfo, Slo
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B
from testing.inputs.planned import config_file, planned_deployment, planned_workload, sized
from testing.runs.virtual import Plan, lognormal, write_run

SLOWER = 1.3
FLAGS = ["--gpu", "L4", "--max-model-len", "8192", "--format", "json"]
WORKLOAD = ["--prompt-tokens", "lognormal:512,0.6", "--output-tokens", "lognormal:256,0.8"]
DEPLOYMENT = planned_deployment(QWEN3_1_7B, gpu="L4")


def lengths(rng: np.random.Generator) -> tuple[int, int]:
    return min(lognormal(512, 0.6, rng), 4000), min(lognormal(256, 0.8, rng), 2000)


def write_slow_run(folder: Path, *, levels: tuple[int, ...] = (4, 12, 24), slower: float = SLOWER) -> Path:
    """Writes a run of an engine as it is predicted, but for its times."""
    engine = size_engine(DEPLOYMENT, planned_workload(), latency=False).service.engine
    assert engine.step_time is not None
    slow = replace(engine, step_time=engine.step_time.times(slower), enable_prefix_caching=False)
    plan = Plan(levels=levels, level_s=60.0, lengths=lengths)
    card = GpuInfo(name="NVIDIA L4", count=1, vram_bytes=None)
    write_run(folder, slow, plan, info={"gpu": card})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slow_run(tmp_path_factory.mktemp("calibrating") / "run")


@pytest.mark.parametrize("slower", [0.8, 1.0, SLOWER])
def test_the_factor_is_found(tmp_path: Path, slower: float) -> None:
    found = measured_times(write_slow_run(tmp_path / "run", slower=slower), DEPLOYMENT, Slo())
    assert found.factor == pytest.approx(slower, rel=0.05)
    assert found.users == [4, 12, 24]


def test_levels_in_which_requests_queue_do_not_tell(tmp_path: Path) -> None:
    slots = replace(DEPLOYMENT, max_num_seqs=8)
    engine = size_engine(slots, planned_workload(), latency=False).service.engine
    write_run(tmp_path / "run", engine, Plan(levels=(24, 32), level_s=60.0, lengths=lengths))
    found = measured_times(tmp_path / "run", slots, Slo())
    assert (found.factor, found.users) == (None, ())
    assert "queued" in found.why_not


def test_a_calibrated_answer_has_the_runs_times_and_narrower_bands(run: Path, tmp_path: Path) -> None:
    config = ["--config", config_file(tmp_path, QWEN3_1_7B)]
    asked = [*config, *FLAGS, *WORKLOAD, "--at-users", "12"]
    plain = json.loads(sized(*asked).stdout)
    found = json.loads(sized(*asked, "--calibrate", str(run)).stdout)
    assert plain["times_factor"] is None
    assert found["times_factor"] == pytest.approx(SLOWER, rel=0.05)
    before, after = (one["at"]["tpot_s"]["p50"] for one in (plain, found))
    assert after[1] / before[1] == pytest.approx(SLOWER, rel=0.06)
    assert math.log(after[2] / after[0]) < math.log(before[2] / before[0])
    assert any("as requests took in run" in text for text in found["assumptions"])


def test_another_models_run_gives_its_pool_and_says_why_not_its_times(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    flags = ["--config", config_file(other, LLAMA31_8B), *FLAGS, "--calibrate", str(run)]
    found = json.loads(
        sized(
            *flags, "--slo-tpot-p95-s", "0.3", "--calibrate-config", config_file(tmp_path, QWEN3_1_7B)
        ).stdout
    )
    assert (found["calibrated_by"], found["times_factor"]) == ("run", None)
    assert any("kernels differ" in text for text in found["warnings"])

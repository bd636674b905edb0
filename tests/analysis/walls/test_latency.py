"""The latency walls, where a server is measured more than once."""

from pathlib import Path

from analysis.capacity.answer import recommend
from analysis.reading.runs import Run, find_runs, read_run
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run

SPEEDS = (1.0, 1.05, 0.94, 1.08)
"""Times a step of the engine takes, after each of four starts of one server, relative to the first."""
OBJECTIVE = Slo(tpot_p95_s=0.008)


def run_at(folder: Path, speed: float, seed: int) -> Run:
    engine = small_engine(
        num_gpu_blocks=2000, step_base_s=0.0025 * speed, step_per_seq_s=0.00015 * speed, seed=seed
    )
    write_run(folder, engine, Plan(levels=(22, 26, 30, 34, 38), level_s=20.0, seed=seed))
    return read_run(find_runs(folder)[0])


def test_three_runs_of_a_server_give_an_interval_that_holds_the_fourth(tmp_path: Path) -> None:
    runs = [run_at(tmp_path / str(seed), speed, seed) for seed, speed in enumerate(SPEEDS)]
    alone = [recommend([run], slo=OBJECTIVE).headline for run in runs]
    assert {one.binding for one in alone} == {"tpot"}
    pooled = recommend(runs[:3], slo=OBJECTIVE).headline
    assert pooled.interval_x is not None
    low, high = pooled.interval_x
    assert high is not None
    fourth = alone[3].estimate_x
    assert fourth is not None
    assert low <= fourth <= high
    first = alone[0].interval_x
    assert first is not None
    assert not first[0] <= fourth  # one run knows nothing of the next start

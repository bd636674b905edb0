"""Errors of the twin's model: levels that are left out, and the intervals that hold their errors."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.answers.twin import Prediction
from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.reading.runs import Run, find_runs, read_run
from analysis.twin import source
from analysis.twin.calibration import CalibrationError, ServerFlags, ServiceFit, calibrate
from analysis.twin.chatting import chatting_of
from analysis.twin.fleet import size_fleet
from analysis.twin.model_error import (
    USUAL_ERRORS,
    ModelErrors,
    factor_interval,
    limit_interval,
    variants_of,
)
from analysis.twin.predictions import Scenario, check_left_out, predict_levels
from analysis.twin.source import FittedTwin, levels_left_out
from analysis.twin.what_if import MemoryFacts
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run

SLO = Slo()
FLAGS = ServerFlags(max_num_seqs=64, async_scheduling=False)
NO_ERRORS = ModelErrors(held_out={})


def read(folder: Path, plan: Plan) -> Run:
    write_run(folder, small_engine(num_gpu_blocks=300), plan)
    (found,) = find_runs(folder)
    return read_run(found)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    path = tmp_path_factory.mktemp("left_out")
    return [read(path / f"run{seed}", Plan(levels=(2, 4, 8, 12), level_s=20.0, seed=seed)) for seed in (1, 2)]


def other_lengths(run: Run, users: int) -> Run:
    """Gives the requests that were sent in the level with `users` users three times their lengths."""
    rows = run.requests
    (begin, end), *_ = [span[:2] for span in run.info.schedule if span[2] == users]
    times = np.where((begin <= rows.start_unix_s) & (rows.start_unix_s < end), 3.0, 1.0)
    assert times.max() == 3.0
    changed = replace(
        rows, prompt_tokens=rows.prompt_tokens * times, output_tokens=rows.output_tokens * times
    )
    return replace(run, requests=changed)


def without(evidence: Evidence, users: int) -> ServiceFit:
    return calibrate(evidence, [level for level in evidence.levels if level.users != users], FLAGS)


@pytest.mark.parametrize("users", [4, 12])
def test_the_lengths_of_a_level_left_out_are_not_seen(runs: list[Run], users: int) -> None:
    known = gather_evidence(runs, slo=SLO)
    told = replace(known, runs=[other_lengths(run, users) for run in runs])
    left_out = [level for level in known.levels if level.users == users]
    kept = [level for level in known.levels if level.users != users]
    first, second = (chatting_of(one, kept, left_out=left_out).conversations for one in (known, told))
    assert list(first) == list(second)
    assert list(first) != list(chatting_of(told, kept).conversations)


def test_a_conversation_is_cut_off_where_the_level_left_out_begins(runs: list[Run]) -> None:
    """And its later turns, which would look like a conversation of their own, are left out too."""
    (run, _) = runs
    rows = run.requests
    in_order = np.lexsort((rows.start_unix_s, rows.user))
    turn = np.zeros(len(rows), dtype=np.int64)
    begins = np.append(True, np.diff(rows.user[in_order]) != 0)
    turn[in_order] = np.arange(len(rows)) - np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))
    talks = gather_evidence([replace(run, requests=replace(rows, turn=turn))], slo=SLO)
    left_out = [level for level in talks.levels if level.users == 4]
    (begin, _), *_ = [span[:2] for span in run.info.schedule if span[2] == 4]
    chats = chatting_of(talks, talks.levels, left_out=left_out).conversations
    assert max(map(len, chats)) == max(
        np.bincount(rows.user[rows.start_unix_s < begin]).max(), *np.bincount(rows.user)[4:]
    )


def test_the_seats_of_a_level_left_out_are_not_seen(runs: list[Run]) -> None:
    known = gather_evidence(runs[:1], slo=SLO)
    seats = [
        replace(level, server=replace(level.server, max_num_seqs=12 if level.users == 12 else None))
        for level in known.levels
    ]
    told = replace(known, levels=seats)
    flags = ServerFlags(async_scheduling=False)
    assert calibrate(told, seats, flags).service.engine.max_num_seqs == 12
    assert calibrate(told, seats[:3], flags).service.engine.max_num_seqs == 256


def test_levels_with_the_same_users_are_left_out_together(runs: list[Run]) -> None:
    """An equal level of a second run would tell what is to be predicted."""
    evidence = gather_evidence(runs, slo=SLO)
    seen: list[set[int]] = []

    def fit(levels: Sequence[object]) -> ServiceFit:
        seen.append({level.users for level in levels})  # type: ignore[attr-defined]
        if seen[-1] == {2, 4, 12}:
            raise CalibrationError("none without eight")
        return ServiceFit(service=people(), draws=[], fitted_users=[])

    found = levels_left_out(evidence, fit)
    assert seen == [{4, 8, 12}, {2, 8, 12}, {2, 4, 12}, {2, 4, 8}]
    assert [one.level.users for one in found] == [2, 4, 12]


def people(**engine: object) -> Service:
    return Service(
        engine=small_engine(**engine),
        chatting=ChatBehaviour(conversations=[((124, 96),), ((140, 40),)], pauses_s=np.array([1e-3])),
    )


def test_intervals_hold_what_the_model_does_not_know(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First tokens come later with the square of the users; refits alone do not hold the level above."""
    monkeypatch.setattr(source, "MAX_LEFT_OUT", 3)
    (run, _) = runs
    late = crowded(run)
    seen = gather_evidence([late], slo=SLO)
    (top,) = [level for level in seen.levels if level.users == 12]
    known = replace(seen, levels=[level for level in seen.levels if level.users != 12])
    fit = calibrate(seen, known.levels, FLAGS)
    left_out = levels_left_out(known, lambda levels: calibrate(seen, levels, FLAGS))
    twin = FittedTwin(
        source="", fit=fit, slo=SLO, memory=MemoryFacts(), levels=known.levels, left_out=left_out
    )
    checks = check_left_out(twin, "least-loaded", advance=lambda _: None)
    reaches = []
    for errors in (NO_ERRORS, ModelErrors.of(checks)):
        scenario = Scenario(
            service=fit.service,
            draws=twin.draws[:3],
            replicas=1,
            router="least-loaded",
            errors=errors,
            most_users=12,
        )
        (one,) = predict_levels(scenario, [12], SLO, advance=lambda _: None)
        reaches.append(one.intervals["ttft_p50_s"])
    true = top.requests.ttft_s.p50
    assert true is not None
    assert reaches[0][1] < true
    assert reaches[1][0] < true < reaches[1][1]


def crowded(run: Run) -> Run:
    rows = run.requests
    users = np.zeros(len(rows))
    for begin, end, count in run.info.schedule:
        users[(begin <= rows.start_unix_s) & (rows.start_unix_s < end)] = count
    late_s = 0.0003 * users**2
    return replace(
        run,
        requests=replace(
            rows,
            first_chunk_s=rows.first_chunk_s + late_s,
            last_chunk_s=rows.last_chunk_s + late_s,
            end_s=rows.end_s + late_s,
        ),
    )


def predicted(**values: tuple[float, float]) -> Prediction:
    return Prediction(
        users=10,
        values={name: ours for name, (ours, _) in values.items()},
        intervals={},
        measured={name: theirs for name, (_, theirs) in values.items()},
    )


def test_errors_are_factors_for_times_and_differences_for_shares() -> None:
    errors = ModelErrors.of([predicted(ttft_p95_s=(0.5, 1.0), kv_usage=(0.5, 0.6), waiting=(3.0, 2.0))])
    assert errors.held_out["ttft_p95_s"] == [pytest.approx(-math.log(2.0))]
    assert errors.held_out["kv_usage"] == [pytest.approx(-0.1)]
    assert errors.held_out["waiting"] == [pytest.approx(0.1)]
    assert errors.held_out["tpot_p95_s"] == []


def test_where_no_level_was_off_the_errors_on_a_real_server_remain() -> None:
    """Simulated runs have no model error, and a run with three lucky levels does not prove that."""
    lucky = ModelErrors.of([predicted(ttft_p95_s=(1.0, 1.0))] * 3)
    for changed, usual in ((False, 0.19), (True, 0.78)):
        low, high = lucky.interval("ttft_p95_s", [1.0, 1.0], users=10, changed=changed)
        assert high == pytest.approx(math.exp(1.645 * usual))
        assert low == pytest.approx(1.0 / high)
    # Both predictions that were off by -57 and -65 % (docs/twin.md) lie in such an interval.
    assert low < 0.35


def test_three_levels_widen_an_interval_by_students_t() -> None:
    off = ModelErrors.of([predicted(tpot_p50_s=(1.0, factor)) for factor in (1.5, 1.5, 1 / 1.5)])
    _, high = off.interval("tpot_p50_s", [2.0, 2.0], users=10, changed=False)
    assert high == pytest.approx(2.0 * math.exp(2.353 * math.log(1.5)), rel=1e-3)


def test_intervals_cover_nine_in_ten_where_levels_err_alike() -> None:
    """Errors of four levels and of the predicted one are drawn from one distribution, wider than usual."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        *seen, new = np.exp(rng.normal(0.0, 0.5, 5))
        errors = ModelErrors.of([predicted(ttft_p95_s=(1.0, factor)) for factor in seen])
        low, high = errors.interval("ttft_p95_s", [1.0, 1.0], users=10, changed=False)
        held += low <= new <= high
    assert held == pytest.approx(900, abs=30)


def test_shares_stay_between_0_and_1_and_zero_times_have_an_interval() -> None:
    assert NO_ERRORS.interval("kv_usage", [0.99, 0.99], users=10, changed=True)[1] == 1.0
    assert NO_ERRORS.interval("preempted_fraction", [0.0, 0.0], users=10, changed=True)[0] == 0.0
    assert NO_ERRORS.interval("ttft_p50_s", [0.0, 1.0], users=10, changed=True) == (0.0, 1.0)


def test_variants_err_in_all_directions_by_what_the_twin_may_err() -> None:
    service = people()
    found = variants_of([service] * 8, SLO, NO_ERRORS, changed=True)
    ttft = np.log([SLO.ttft_p95_s / one.slo.ttft_p95_s for one in found])
    assert np.std(ttft) == pytest.approx(USUAL_ERRORS["ttft_p95_s"].changed, rel=1e-6)
    assert np.mean(ttft) == pytest.approx(0.0, abs=1e-9)
    blocks = [one.service.engine.num_gpu_blocks for one in found]
    assert min(blocks) < service.engine.num_gpu_blocks < max(blocks)


def test_the_interval_of_a_limit_holds_its_estimate_and_knows_no_end_where_there_is_none() -> None:
    low, high = limit_interval(20.0, [18.0, 22.0, 19.0, 21.0], largest=1000)
    assert low < 18.0 < 22.0 < high
    assert limit_interval(20.0, [], largest=1000) == (20.0, 20.0)
    assert limit_interval(5.0, [0.0, 0.0, 0.0], largest=1000)[0] == 0.0
    low, high = limit_interval(math.inf, [math.inf, 500.0], largest=1000)
    assert low < 500.0
    assert high == math.inf
    assert factor_interval([2.0, 2.0]) == (pytest.approx(2.0), pytest.approx(2.0))


def test_a_fleet_is_sized_for_the_least_that_a_replica_may_hold() -> None:
    service = people(num_gpu_blocks=160)
    variants = variants_of([service] * 4, SLO, NO_ERRORS, changed=True)
    found = size_fleet(service, variants, 1000, SLO, router="least-loaded", spare=1)
    assert found is not None
    low, high = found.per_replica_interval
    assert low < found.per_replica_x < high
    assert found.replicas == math.ceil(1000 / low) + 1

"""The twin: fitted to virtual runs whose truth is known, asked what was never run, and its command."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.reading.runs import find_runs, read_run
from analysis.twin import __main__ as twin
from analysis.twin import maximum, source
from analysis.twin.calibration import CalibrationError, ServerFlags, ServiceFit, calibrate
from analysis.twin.chatting import chatting_of
from analysis.twin.fleet import size_fleet
from analysis.twin.maximum import find_maximum
from analysis.twin.step_fit import STEP_TERMS
from analysis.virtual.crowd import DueRequest
from analysis.virtual.run import simulate_arrivals, simulate_users
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run

SLO = Slo()
TRUTH = small_engine(step_per_kv_token_s=2e-7, num_gpu_blocks=160)
FLAGS = ServerFlags(max_num_seqs=64, async_scheduling=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("twin") / "run"
    write_run(path, TRUTH, Plan(levels=(1, 2, 4, 8, 12, 16), level_s=25.0))
    return path


@pytest.fixture(scope="module")
def evidence(folder: Path) -> Evidence:
    (found,) = find_runs(folder)
    return gather_evidence([read_run(found)], slo=SLO)


@pytest.fixture(scope="module")
def calibration(evidence: Evidence) -> ServiceFit:
    return calibrate(evidence, [level for level in evidence.levels if level.users < 16], FLAGS)


def people_of(folder: Path, level_s: float) -> ChatBehaviour:
    """A hundred people who think for ten seconds in the mean, in conversations of eight turns in the mean."""
    write_run(folder, TRUTH, Plan(levels=(100,), level_s=level_s, think_s=10.0))
    (found,) = find_runs(folder)
    run = read_run(found)
    rng, turn = np.random.default_rng(0), np.zeros(len(run.requests), dtype=np.int64)
    for user in range(100):
        (of_user,) = np.nonzero(run.requests.user == user)
        in_order = of_user[np.argsort(run.requests.start_unix_s[of_user])]
        for before, now in pairwise(in_order):
            turn[now] = 0 if rng.random() < 1 / 8 else turn[before] + 1
    told = gather_evidence([replace(run, requests=replace(run.requests, turn=turn))], slo=SLO)
    return chatting_of(told, told.levels)


def test_a_run_cut_short_has_the_pauses_and_conversations_of_a_long_one(tmp_path: Path) -> None:
    """Its end cuts off the long ones; without their weight both would come out too short."""
    long = people_of(tmp_path / "long", 400.0)
    short = people_of(tmp_path / "short", 30.0)
    for most_s in (5.0, 10.0, 25.0):  # nothing is known of pauses longer than the short run's window
        known = (float(np.minimum(chatting.pauses_s, most_s).mean()) for chatting in (short, long))
        assert next(known) == pytest.approx(next(known), rel=0.1)
    turns = (np.minimum([len(one) for one in chatting.conversations], 4).mean() for chatting in (short, long))
    assert next(turns) == pytest.approx(next(turns), rel=0.1)


def people(prompt: int = 124, outputs: tuple[int, ...] = (40, 60, 90, 140, 200)) -> ChatBehaviour:
    return ChatBehaviour(
        conversations=[((prompt + 7 * place, output),) for place, output in enumerate(outputs)],
        pauses_s=np.array([1e-3]),
    )


def test_step_times_are_recovered_and_the_intervals_hold_them(calibration: ServiceFit) -> None:
    fitted = calibration.service.engine
    for name in STEP_TERMS:
        true = getattr(TRUTH, name)
        assert getattr(fitted, name) == pytest.approx(true, rel=0.15), name
        draws = [getattr(draw.engine, name) for draw in calibration.draws]
        spread = max(draws) - min(draws)
        assert min(draws) - spread / 2 <= true <= max(draws) + spread / 2, name
    assert fitted.jitter_cv == pytest.approx(TRUTH.jitter_cv, rel=0.2)
    assert calibration.service.overhead_s < 2e-4  # there is nothing between engine and client


def test_a_level_that_was_held_out_is_predicted(calibration: ServiceFit, evidence: Evidence) -> None:
    (level,) = (level for level in evidence.levels if level.users == 16)
    seen = simulate_users(calibration.service, 16, requests=3000).figures(SLO)
    assert seen.ttft_p50_s == pytest.approx(level.requests.ttft_s.p50, rel=0.1)
    assert seen.ttft_p95_s == pytest.approx(level.requests.ttft_s.p95, rel=0.15)
    assert seen.tpot_p50_s == pytest.approx(level.requests.tpot_s.p50, rel=0.05)
    assert seen.itl_p95_s == pytest.approx(level.requests.chunk_gap_s.p95, rel=0.05)
    assert seen.kv_usage == pytest.approx(level.server.kv_cache_usage, abs=0.03)  # of lengths not seen either
    assert seen.output_tok_s == pytest.approx(level.requests.output_tok_s, rel=0.03)


def test_an_overhead_between_engine_and_client_is_found(evidence: Evidence) -> None:
    """Twenty milliseconds on every stamp: TTFT has them, gaps do not."""
    (run,) = evidence.runs
    rows = run.requests
    late = replace(
        rows,
        first_chunk_s=rows.first_chunk_s + 0.02,
        last_chunk_s=rows.last_chunk_s + 0.02,
        end_s=rows.end_s + 0.02,
    )
    moved = gather_evidence([replace(run, requests=late)], slo=SLO)
    found = calibrate(moved, moved.levels, FLAGS).service
    assert found.overhead_at(8) == pytest.approx(0.02, rel=0.1)
    assert found.engine.step_base_s == pytest.approx(TRUTH.step_base_s, rel=0.05)


def test_two_replicas_behind_a_router_are_calibrated_as_one_of_them(
    evidence: Evidence, tmp_path: Path
) -> None:
    """Two equal runs laid over each other are what a router over two replicas shows."""
    (run,) = evidence.runs
    rows = run.requests
    twice = replace(
        rows,
        **{
            name: np.repeat(getattr(rows, name), 2)
            for name in rows.__dataclass_fields__
            if name not in ("gap_s", "gap_start")
        },
        gap_s=np.concatenate(
            [
                part
                for row in range(len(rows))
                for part in [rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]]] * 2
            ]
        ),
        gap_start=np.concatenate([[0], np.cumsum(np.repeat(np.diff(rows.gap_start), 2))]),
    )
    levels = [replace(level, users=2 * level.users) for level in evidence.levels]
    both = replace(evidence, runs=[replace(run, requests=twice)], levels=levels)
    found = calibrate(both, levels, FLAGS, replicas=2).service.engine
    assert found.step_base_s == pytest.approx(TRUTH.step_base_s, rel=0.15)
    assert found.step_per_seq_s == pytest.approx(TRUTH.step_per_seq_s, rel=0.3)


def test_a_run_without_the_servers_block_counts_has_no_twin(tmp_path: Path) -> None:
    write_run(tmp_path / "run", TRUTH, Plan(levels=(1, 2), level_s=12.0, metrics=False))
    (found,) = find_runs(tmp_path)
    blind = gather_evidence([read_run(found)], slo=SLO)
    with pytest.raises(CalibrationError, match="how many KV blocks"):
        calibrate(blind, blind.levels, FLAGS)


def test_the_same_people_see_the_same_twice_and_others_see_other_things() -> None:
    service = Service(engine=TRUTH, chatting=people())
    first, again, other = (simulate_users(service, 12, seed=seed).figures(SLO) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_conversations_find_their_history_and_think() -> None:
    turns = ((64, 64), (192, 64), (320, 64))
    chatting = ChatBehaviour(conversations=[turns], pauses_s=np.array([0.5]))
    engine = replace(TRUTH, enable_prefix_caching=True, num_gpu_blocks=400)
    seen = simulate_users(Service(engine=engine, chatting=chatting), 8, requests=600).figures(SLO)
    # Of 576 prompt tokens each conversation finds the whole blocks of 64 + 64 - 1 and 192 + 64 - 1 again.
    assert seen.prefix_hit_rate == pytest.approx((96 + 224) / 576, abs=0.02)
    forgetful = replace(chatting, answers_cached=False)
    less = simulate_users(Service(engine=engine, chatting=forgetful), 8, requests=600).figures(SLO)
    assert less.prefix_hit_rate == pytest.approx((64 + 192) / 576, abs=0.02)
    assert seen.in_flight < 4  # half a second of thinking between answers of a third


def test_an_open_loop_shares_the_blocks_that_its_trace_names() -> None:
    due = [
        DueRequest(at_s=float(number), prompt_tokens=600, output_tokens=8, prefix_blocks=(7, 100 + number))
        for number in range(10)
    ]
    engine = replace(TRUTH, enable_prefix_caching=True)
    seen = simulate_arrivals(Service(engine=engine, chatting=people()), due).figures(SLO)
    # The first found nothing, and the last ends after the window.
    assert seen.prefix_hit_rate == pytest.approx(8 * 512 / 5400, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "slo", "wall"),
    [
        ({}, SLO, "kv_cache"),
        ({"max_num_seqs": 6}, SLO, "max_num_seqs"),
        ({}, Slo(tpot_p95_s=0.0035), "tpot"),
        ({}, Slo(ttft_p95_s=0.012), "ttft"),
    ],
)
def test_the_first_wall_is_found_and_named(changes: dict[str, float], slo: Slo, wall: str) -> None:
    service = Service(engine=replace(TRUTH, **changes), chatting=people())  # type: ignore[arg-type]
    found = find_maximum(service, slo)
    assert found is not None
    assert found.wall == wall
    if wall == "max_num_seqs":
        assert found.users == 6


def test_where_nothing_breaks_the_maximum_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maximum, "MAX_VIRTUAL_USERS", 12)
    found = find_maximum(Service(engine=TRUTH, chatting=people()), SLO)
    assert found is not None
    assert (found.x, found.wall) == (math.inf, "not_reached")


def test_where_one_user_breaks_an_objective_there_is_no_maximum() -> None:
    slow = Service(engine=replace(TRUTH, step_base_s=3.0), chatting=people())
    assert find_maximum(slow, SLO) is None


def test_a_fleet_has_replicas_for_its_users_and_its_spare() -> None:
    service = Service(engine=TRUTH, chatting=people())
    alone = find_maximum(service, SLO)
    assert alone is not None
    found = size_fleet(service, [], 10_000, SLO, router="least-loaded", spare=1)
    assert found is not None
    assert found.per_replica_x == pytest.approx(alone.x, rel=0.15)
    assert found.replicas == math.ceil(10_000 / found.per_replica_x) + 1
    assert found.after_loss.kv_usage >= found.usual.kv_usage


# The command.


def ask(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = twin.main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_fits_checks_and_predicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = ask(
        str(folder),
        "--no-async-scheduling",
        "--measured-max-num-seqs",
        "64",
        "--users",
        "4,16",
        capsys=capsys,
    )
    assert code == 0
    answer = json.loads((folder / "twin.json").read_text())
    assert answer["check"]["users"] == 16
    assert answer["check"]["held_out"]
    ttft, seen = (answer["check"][key]["ttft_p95_s"] for key in ("values", "measured"))
    assert ttft == pytest.approx(seen, rel=0.15)
    assert [one["users"] for one in answer["predictions"]] == [4, 16]
    low, high = answer["limit"]["interval"]
    assert low <= answer["limit"]["x"] <= high
    assert answer["limit"]["wall"] == "kv_cache"
    assert [one["users"] for one in answer["left_out"]] == [1, 2, 4, 8, 12, 16]
    assert answer["fitted_users"] == [1, 2, 4, 8, 12, 16]
    assert "Its error at 16 users, from a fit to the other levels" in said
    assert (folder / "twin.svg").read_text().startswith("<svg")


def test_what_if_moves_the_limit(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SIMULATED_DRAWS", 2)
    monkeypatch.setattr(source, "MAX_LEFT_OUT", 2)
    found = {}
    for name, flags in {
        "as it is": [],
        "twice the pool": ["--num-gpu-blocks", "319"],
        "fp8": ["--kv-cache-dtype", "fp8"],
        "six slots": ["--max-num-seqs", "6"],
        "half the lengths": ["--prompt-tokens", "lognormal:62,0.1", "--output-tokens", "lognormal:48,0.6"],
    }.items():
        words = [str(folder), "--no-async-scheduling", "--users", "2", "--format", "json", *flags]
        code, said, err = ask(*words, capsys=capsys)
        assert code == 0, err
        found[name] = json.loads(said)["limit"]["x"]
    assert found["six slots"] == pytest.approx(6, abs=0.99)
    assert found["twice the pool"] > 1.9 * found["as it is"]
    assert found["fp8"] > 1.9 * found["as it is"]
    assert found["half the lengths"] > 1.6 * found["as it is"]


def test_a_preset_answers_without_a_run_and_a_fleet_has_a_price(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SIMULATED_DRAWS", 2)
    code, said, err = ask(
        *("--preset", "qwen3-1.7b-t4", "--prompt-tokens", "lognormal:400,0.6", "--output-tokens", "20-60"),
        *("--max-num-seqs", "16", "--users", "8", "--fleet-users", "5000", "--price-per-gpu-hour", "1.5"),
        *("--format", "json"),
        capsys=capsys,
    )
    assert code == 0, err
    fleets = json.loads(said)["fleet"]
    assert [one["users"] for one in fleets] == [5000, 10_000, 100_000, 1_000_000]
    first = fleets[0]
    assert first["replicas"] == math.ceil(5000 / first["per_replica"]) + 1
    assert first["price_per_hour"] == pytest.approx(1.5 * first["replicas"])
    assert first["per_replica"] < first["per_replica_estimate"]
    assert first["replicas"] > first["replicas_by_estimate"]


def test_stalls_are_predicted_where_they_have_an_objective_and_their_doubts_are_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SIMULATED_DRAWS", 2)
    monkeypatch.setattr(source, "MAX_LEFT_OUT", 2)
    words = [str(folder), "--no-async-scheduling", "--users", "8", "--format", "json"]
    found = json.loads(ask(*words, "--slo-stall-p95-s", "0.007", capsys=capsys)[1])
    (level,) = found["predictions"]
    assert level["values"]["stall_p95_s"] == pytest.approx(level["measured"]["stall_p95_s"], rel=0.15)
    assert "stall_p95_s" not in level["intervals"]  # no error of it is known
    assert found["limit"]["wall"] == "stall"
    assert found["limit"]["x"] == pytest.approx(7.1, rel=0.2)  # that of the engine which made the run
    (doubt,) = (warning for warning in found["warnings"] if "stalls" in warning)
    assert "never compared with a real server" in doubt
    assert "--measured-max-num-batched-tokens" in doubt


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name a run folder"),
        (["--preset", "t1000"], "There is no preset 't1000'"),
        (["/no/such/folder"], "is not a folder"),
        (["--preset", "qwen3-1.7b-t4", "--prompt-tokens", "many"], "is not a distribution"),
        (
            ["--preset", "qwen3-1.7b-t4", "--num-gpu-blocks", "4096", "--kv-cache-memory-gib", "4"],
            "Choose one",
        ),
        (["--preset", "qwen3-1.7b-t4", "--max-num-batched-tokens", "8"], "must be at least max_num_seqs"),
        (["--preset", "qwen3-1.7b-t4", "--arrivals", "often"], "is not an arrival process"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ask(*words, capsys=capsys)
    assert code == 2
    assert said in " ".join(err.split())
    assert "Traceback" not in err

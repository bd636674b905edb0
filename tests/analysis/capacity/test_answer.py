"""The answer, end to end, against deployments of the engine whose limits are known."""

import itertools
import json
import math
import re

import msgspec
import pytest

from analysis.reporting.words import sentences, words
from loadtest.record import Slo
from testing.runs.answers import answer_for
from testing.runs.virtual import Plan, chat_lengths, small_engine, write_run

SWEEP = (1, 2, 4, 8, 16, 20)


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


def test_options_say_how_many_users_they_gain(memory_answer):
    gains = {type(option.change).__name__: option.gain_users for option in memory_answer.options}
    assert set(gains) == {"LargerPool", "Fp8Cache", "ShorterContext", "SecondReplica"}
    estimate = memory_answer.headline.estimate
    assert 1 <= gains["LargerPool"] <= 3  # a tenth more blocks
    assert 1 <= gains["ShorterContext"] < estimate
    assert gains["Fp8Cache"] >= estimate  # twice the tokens, and a smaller spread
    assert gains["SecondReplica"] == pytest.approx(estimate, abs=1)


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
    assert any(said.startswith("Suspected: max_num_seqs is 8.") for said in sentences(found.warnings))


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


def test_where_nothing_broke_the_answer_is_at_least_the_highest_level(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(1, 2, 4), level_s=40.0))
    found = answer_for(tmp_path / "r")
    assert found.headline.at_least
    assert found.headline.max_users == 4
    assert found.headline.estimate is None
    assert found.headline.interval == (4, None)
    assert found.headline.binding == "not_reached"
    assert [(bound.name, bound.basis) for bound in found.bounds] == [("kv_cache", "extrapolated")]


def test_a_wall_just_beyond_the_levels_is_flagged_and_not_recommended(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(4, 8, 12, 15), level_s=20.0, seed=1))
    found = answer_for(tmp_path / "r")
    assert not found.headline.at_least
    assert found.headline.estimate_x is not None
    assert 15.0 < found.headline.estimate_x < 1.25 * 15
    assert found.headline.max_users is not None
    assert found.headline.max_users <= 15
    (memory,) = (bound for bound in found.bounds if bound.name == "kv_cache")
    assert memory.basis == "extrapolated"
    assert sum(warning.startswith("Extrapolated") for warning in sentences(found.warnings)) == 1


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
    assert "event-loop lag 50.0 ms, limit 5.0 ms" in words(found.reasons[0])


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


def test_tokens_that_the_server_counted_and_we_did_not_make_levels_untrusted(tmp_path):
    """Somebody else's requests, or rows that are missing: here every twentieth."""
    write_run(tmp_path / "run", small_engine(), Plan(levels=(4,)))
    rows = tmp_path / "run" / "requests-0.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(line for number, line in enumerate(lines) if number % 20))
    answer = answer_for(tmp_path / "run")
    assert re.search("the server counted [4-7] % more than our rows", words(answer.levels[0].why_not[0]))


@pytest.mark.parametrize(
    ("slo", "first"),
    [
        (Slo(), "kv_cache"),
        (Slo(ttft_p95_s=0.01), "ttft"),
        (Slo(tpot_p95_s=0.004), "tpot"),
        (Slo(ttft_p95_s=1e-4), "ttft"),  # missed by the lowest level too
    ],
)
def test_each_wall_has_one_account(memory_run, slo, first):
    answer = answer_for(memory_run, slo=slo)
    assert answer.headline.binding == first
    accounts = [bound.name for bound in answer.bounds]
    accounts += [wall.name for wall in answer.not_met] + list(answer.not_observable)
    assert sorted(accounts) == sorted(["kv_cache", "ttft", "tpot", "errors", "throughput", "max_num_seqs"])

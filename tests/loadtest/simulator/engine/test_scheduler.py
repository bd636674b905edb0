"""The engine against schedules computed by hand."""

import pytest

from loadtest.simulator.engine.requests import RequestState
from loadtest.simulator.engine.scheduler import Engine
from loadtest.simulator.virtual import closed_loop
from testing.inputs.engines import engine_config, engine_request, engine_run


def test_one_request_gets_a_token_a_step() -> None:
    only = engine_request(5, 3)
    trace = engine_run(engine_config(), (0.5, only))
    assert list(trace.token_times_s(only)) == [1.5, 2.5, 3.5]
    assert (only.arrival_s, only.admitted_s, only.first_token_s, only.end_s) == (0.5, 0.5, 1.5, 3.5)
    # Gauges come after endings are freed: 5 tokens in 2 blocks, 6 in 2, and nothing.
    assert list(trace.used_blocks) == [2, 2, 0]
    assert list(trace.running) == [1, 1, 0]


def test_a_long_prompt_is_cut_by_the_token_budget_and_decodes_go_first() -> None:
    first, long = engine_request(4, 10), engine_request(20, 2)
    trace = engine_run(engine_config(max_num_batched_tokens=8, max_model_len=24), (0.0, first), (0.0, long))
    # Chunks of 4, 7, 7 and 2 beside the other's prompt and then its single tokens.
    assert long.first_token_s == 4.0
    assert list(trace.token_times_s(first)) == [float(n) for n in range(1, 11)]


def test_the_last_admitted_is_preempted_recomputed_and_keeps_its_place_before_newcomers() -> None:
    older, victim, newcomer = engine_request(8, 8), engine_request(8, 8), engine_request(4, 1)
    chosen = engine_config(num_gpu_blocks=6)
    trace = engine_run(chosen, (0.0, older), (0.0, victim), (0.5, newcomer))
    # Step 2 stores a ninth token for both: the older takes the fifth block, the victim finds none.
    assert (older.preemptions, victim.preemptions) == (0, 1)
    assert older.end_s == 8.0
    # Its 8 + 1 tokens need three blocks, free at 8 s only; the newcomer would have fitted, and waits.
    assert list(trace.token_times_s(victim)) == [1.0, *(float(n) for n in range(9, 16))]
    assert newcomer.first_token_s == 9.0
    assert trace.counters.preemptions == 1


def test_a_preemption_is_counted_with_the_victims_next_token() -> None:
    engine = Engine(engine_config(num_gpu_blocks=6))
    older, victim = engine_request(8, 8), engine_request(8, 8)
    for one in (older, victim):
        engine.submit(one, 0.0)
    counted = []
    now_s: float | None = 0.0
    while (now_s := engine.begin(now_s or 0.0)) is not None:
        engine.end()
        counted.append((now_s, engine.counters.preemptions))
    assert victim.preemptions == 1
    assert counted[1] == (2.0, 0)
    assert counted[7:9] == [(8.0, 0), (9.0, 1)]


def test_a_prompt_chunk_without_blocks_preempts_itself() -> None:
    # 1 + 4 blocks fit when both are admitted. The prompt is cut into chunks of 4, 7 and 5 tokens; by the
    # third, the decode has taken the block that it needs.
    older, long = engine_request(4, 9), engine_request(16, 1)
    trace = engine_run(
        engine_config(num_gpu_blocks=6, max_num_batched_tokens=8, max_model_len=20), (0.0, older), (0.0, long)
    )
    assert (older.preemptions, long.preemptions) == (0, 1)
    assert older.end_s == 9.0
    assert long.first_token_s == 11.0  # two chunks of 8, once it is alone
    assert list(trace.running[1:4]) == [2, 1, 1]


def test_nothing_is_admitted_in_a_step_that_preempted() -> None:
    # Asynchronous: step 1 is scheduled as step 0 starts. The ending request is the last admitted; the
    # older's growth takes its two blocks, which leaves one for the newcomer, but not in that step.
    older, ending, newcomer = engine_request(8, 4), engine_request(8, 1), engine_request(4, 1)
    chosen = engine_config(num_gpu_blocks=5, async_scheduling=True)
    trace = engine_run(chosen, (0.0, older), (0.0, ending), (0.0, newcomer))
    assert ending.preemptions == 1
    assert ending.end_s == 1.0
    assert newcomer.first_token_s == 3.0
    assert trace.counters.preemptions == 1


def test_asynchronous_scheduling_holds_an_ended_request_one_step_more() -> None:
    ends_s = {}
    for asynchronous in (False, True):
        first, second = engine_request(12, 3), engine_request(12, 1)
        engine_run(
            engine_config(num_gpu_blocks=5, async_scheduling=asynchronous), (0.0, first), (0.0, second)
        )
        ends_s[asynchronous] = (first.end_s, second.first_token_s)
    assert ends_s[False] == (3.0, 4.0)
    assert ends_s[True] == (3.0, 4.0)  # alone, nothing runs beside: the pipeline empties
    for asynchronous in (False, True):
        first, second, beside = engine_request(8, 3), engine_request(8, 1), engine_request(1, 9)
        engine_run(
            engine_config(num_gpu_blocks=5, async_scheduling=asynchronous),
            *((0.0, one) for one in (beside, first, second)),
        )
        ends_s[asynchronous] = (first.end_s, second.first_token_s)
    assert ends_s[True] == (ends_s[False][0], ends_s[False][1] + 1.0)


def test_a_shared_prefix_is_computed_once_and_counted_once() -> None:
    first, second = engine_request(10, 6, (1, 2, 3)), engine_request(10, 6, (1, 2, 4))
    trace = engine_run(engine_config(prefill_per_token_s=1.0), (0.0, first), (0.5, second))
    assert (first.cached_tokens, second.cached_tokens) == (0, 8)
    assert first.first_token_s == 11.0
    assert second.first_token_s == 14.0  # two tokens of prefill
    assert trace.used_blocks[1] == 4  # two shared, a third for each
    assert (trace.counters.prefix_queries, trace.counters.prefix_hits) == (20, 8)


def test_the_last_token_of_a_cached_prompt_is_computed() -> None:
    first, again = engine_request(8, 1, (1, 2)), engine_request(8, 1, (1, 2))
    engine_run(engine_config(), (0.0, first), (5.0, again))
    assert again.cached_tokens == 4


def test_an_answer_is_found_by_the_next_turn() -> None:
    turn = engine_request(6, 7, (1, 2, 3))  # 12 tokens are stored: the last one never is
    following = engine_request(14, 1, (1, 2, 3))
    engine_run(engine_config(), (0.0, turn), (20.0, following))
    assert following.cached_tokens == 12


def test_idle_cached_blocks_are_invisible_and_evicted_oldest_first() -> None:
    old, young, big = engine_request(8, 1, (1, 2)), engine_request(8, 1, (3, 4)), engine_request(11, 1)
    again_young, again_old = engine_request(9, 1, (3, 4)), engine_request(9, 1, (1, 2))
    trace = engine_run(
        engine_config(num_gpu_blocks=7, max_model_len=12),
        *((10.0 * turn, one) for turn, one in enumerate((old, young, big, again_young, again_old))),
    )
    assert list(trace.used_blocks) == [0] * 5
    # The third takes the two blocks never used, then the oldest idle one: the tail of `old`.
    assert again_young.cached_tokens == 8
    assert again_old.cached_tokens == 4


def test_a_victim_finds_its_own_blocks_again() -> None:
    older, victim = engine_request(8, 8, (1, 2, 3)), engine_request(8, 8, (4, 5, 6))
    trace = engine_run(engine_config(num_gpu_blocks=6), (0.0, older), (0.0, victim))
    assert victim.preemptions == 1
    assert trace.counters.prefix_queries == 16  # a readmission is not counted
    assert victim.cached_tokens == 0


def test_prefix_caching_can_be_turned_off() -> None:
    first, again = engine_request(10, 1, (1, 2)), engine_request(10, 1, (1, 2))
    trace = engine_run(engine_config(enable_prefix_caching=False), (0.0, first), (5.0, again))
    assert again.cached_tokens == 0
    assert trace.counters.prefix_queries == 0


def test_max_num_seqs_makes_the_rest_wait() -> None:
    requests = [engine_request(1, 2) for _ in range(3)]
    trace = engine_run(engine_config(max_num_seqs=2), *((0.0, one) for one in requests))
    assert [one.first_token_s for one in requests] == [1.0, 1.0, 3.0]
    assert list(trace.waiting) == [1, 1, 0, 0]


def test_what_arrives_during_a_step_is_seen_by_the_next_one() -> None:
    trace = engine_run(engine_config(), (0.0, engine_request(1, 2)), (0.5, engine_request(1, 1)))
    assert list(trace.waiting) == [0, 0]
    assert list(trace.running) == [1, 0]


def test_the_queue_limit_counts_all_unfinished_requests() -> None:
    trace = engine_run(engine_config(max_num_queued_reqs=2), *((0.0, engine_request(1, 3)) for _ in range(3)))
    assert trace.counters.rejected == 1
    assert len(trace.requests) == 2


def test_the_token_limit_counts_prompts_without_a_first_token() -> None:
    engine = Engine(engine_config(max_num_queued_tokens=12))
    first, second, third, late = (
        engine_request(8, 3),
        engine_request(6, 1),
        engine_request(1, 1),
        engine_request(1, 1),
    )
    # 0 and 8 tokens are below the limit, 14 are not; after a step both have their first token.
    assert [engine.submit(one, 0.0) for one in (first, second, third)] == [True, True, False]
    engine.begin(0.0)
    engine.end()
    assert engine.submit(late, 1.0)
    assert (engine.counters.rejected, engine.counters.rejected_for_tokens) == (0, 1)


@pytest.mark.parametrize("steps_before", [0, 1, 2, 3])
def test_an_abort_frees_everything_at_once(steps_before: int) -> None:
    engine = Engine(engine_config(max_num_batched_tokens=8, max_model_len=24))
    other, doomed = engine_request(4, 9), engine_request(20, 3, tuple(range(5)))
    engine.submit(other, 0.0)
    engine.submit(doomed, 0.0)
    for _ in range(steps_before):
        engine.begin(0.0)
        engine.end()
    engine.begin(0.0)
    engine.abort(doomed, 0.5)
    engine.abort(doomed, 0.6)
    step = engine.end()
    assert doomed.state is RequestState.ABORTED
    assert doomed.end_s == 0.5
    assert doomed not in step.tokens
    assert engine.gauges.used_blocks == -(-(4 + steps_before) // 4)
    assert engine.counters.aborted == 1


def test_step_time_is_the_stated_sum() -> None:
    chosen = engine_config(
        step_base_s=1.0, step_per_seq_s=0.1, step_per_kv_token_s=0.01, prefill_per_token_s=0.001
    )
    trace = engine_run(chosen, (0.0, engine_request(6, 3)), (0.0, engine_request(3, 2)))
    durations = [trace.step_end_s[0]]
    durations += [
        after - before for before, after in zip(trace.step_end_s, trace.step_end_s[1:], strict=False)
    ]
    assert durations == pytest.approx([1.0 + 0.2 + 0.09 + 0.009, 1.0 + 0.2 + 0.11, 1.0 + 0.1 + 0.08])


def test_jitter_keeps_the_mean_and_follows_the_seed() -> None:
    def ends_s(seed: int) -> list[float]:
        chosen = engine_config(num_gpu_blocks=999, max_model_len=400, jitter_cv=0.2, seed=seed)
        return list(engine_run(chosen, *((0.0, engine_request(1, 390)) for _ in range(8))).step_end_s)

    assert ends_s(1) == ends_s(1)
    assert ends_s(1) != ends_s(2)
    assert ends_s(1)[-1] == pytest.approx(390, rel=0.04)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_num_batched_tokens": 4}, "max_num_batched_tokens"),
        ({"num_gpu_blocks": 4}, "lower max_model_len"),
        ({"step_base_s": 0.0}, "step_base_s"),
    ],
)
def test_what_vllm_would_not_start_with_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine_config(**changes)


def test_a_request_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="max_model_len"):
        Engine(engine_config()).submit(engine_request(10, 7), 0.0)
    with pytest.raises(ValueError, match="at least one token"):
        engine_request(0, 1)


def test_steps_out_of_order_are_refused() -> None:
    engine = Engine(engine_config())
    with pytest.raises(RuntimeError):
        engine.end()
    engine.submit(engine_request(1, 1), 0.0)
    engine.begin(0.0)
    with pytest.raises(RuntimeError):
        engine.begin(0.0)


def test_a_closed_loop_keeps_its_users_busy_and_thinking() -> None:
    source = [engine_request(4, 5) for _ in range(40)]
    trace = closed_loop(engine_config(), source, users=4, turn_round_s=0.5, think_s=lambda: 20.0)
    assert trace.counters.finished == 40
    assert {one.user for one in trace.requests} == {0, 1, 2, 3}
    assert max(trace.running) == 4
    first_user = [one for one in trace.requests if one.user == 0]
    assert first_user[1].arrival_s == first_user[0].end_s + 20.5  # type: ignore[operator]

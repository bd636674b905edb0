"""Requests that are refused or run into their time limit, in virtual time."""

import pytest

from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request, RequestState
from loadtest.simulator.gateway import Gate, GatewayLimits
from loadtest.simulator.routers import first_replica
from loadtest.simulator.virtual import Simulation, TimedRequest, simulate, simulate_replicas
from testing.inputs.engines import SMALL_ENGINE


def requests(count: int, *, every_s: float, output: int = 20) -> list[TimedRequest]:
    return [
        (number * every_s, Request(prompt_tokens=8, output_tokens=output, user=number))
        for number in range(count)
    ]


def engine(**changes: object) -> EngineConfig:
    values = {name: getattr(SMALL_ENGINE, name) for name in SMALL_ENGINE.__dataclass_fields__}
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


def test_a_queue_limit_refuses_what_comes_above_it_and_calls_back() -> None:
    seen = []

    def note(ended: Request, now_s: float) -> None:
        seen.append((ended.user, ended.state, ended.refused_with, now_s == ended.end_s))

    trace = simulate(engine(max_num_queued_reqs=3), requests(5, every_s=0.001), on_end=note)
    assert len(trace.requests) == 3
    assert [one.user for one in trace.failed] == [3, 4]
    assert seen[:2] == [(3, RequestState.REFUSED, 503, True), (4, RequestState.REFUSED, 503, True)]
    assert trace.counters.rejected == 2


def test_a_request_is_aborted_at_its_time_limit_with_the_tokens_that_had_come() -> None:
    alone = simulate(engine(), requests(1, every_s=1.0, output=40))
    token_s = alone.token_times_s(alone.requests[0])
    limit_s = (token_s[9] + token_s[10]) / 2
    (trace,) = simulate_replicas(
        [engine()], requests(1, every_s=1.0, output=40), route=first_replica, timeout_s=limit_s
    )
    (late,) = trace.failed
    assert late.state is RequestState.ABORTED
    assert late.end_s == pytest.approx(limit_s)
    assert list(trace.token_times_s(late)) == pytest.approx(list(token_s[:10]))
    assert trace.counters.aborted == 1
    assert trace.used_blocks[-1] == 0  # its blocks are free again


def test_a_time_limit_that_nobody_reaches_changes_nothing() -> None:
    without = simulate(engine(jitter_cv=0.1), requests(60, every_s=0.5))
    (with_limit,) = simulate_replicas(
        [engine(jitter_cv=0.1)], requests(60, every_s=0.5), route=first_replica, timeout_s=1e6
    )
    assert with_limit.step_end_s == without.step_end_s
    assert not with_limit.failed


def test_what_waits_in_the_queue_runs_into_its_limit_without_a_token_and_leaves_the_queue() -> None:
    (trace,) = simulate_replicas(
        [engine(max_num_seqs=2)], requests(8, every_s=0.001, output=60), route=first_replica, timeout_s=90.0
    )
    assert {one.user for one in trace.failed if one.first_token_s is None} >= {4, 5, 6, 7}
    assert all(one.end_s == pytest.approx(one.arrival_s + 90.0) for one in trace.failed)
    assert trace.waiting[-1] == 0


def test_a_refused_user_may_come_again_and_is_taken_when_there_is_room() -> None:
    def again(ended: Request, now_s: float) -> TimedRequest | None:
        if ended.state is not RequestState.REFUSED:
            return None
        return now_s + 5.0, Request(prompt_tokens=8, output_tokens=20, user=ended.user)

    simulation = Simulation(
        [engine(max_num_queued_reqs=2)], requests(3, every_s=0.001), route=first_replica, on_end=again
    )
    simulation.run()
    (trace,) = simulation.traces
    assert sorted(one.user for one in trace.requests) == [0, 1, 2]
    assert {one.user for one in trace.failed} == {2}


def test_a_gateway_counts_unfinished_requests_of_all_replicas() -> None:
    traces = simulate_replicas(
        [engine(), engine()],
        requests(6, every_s=0.001),
        route=lambda one, _: one.user % 2,
        gateway=GatewayLimits(max_unfinished=4, refusal_s=0.25),
    )
    assert [len(trace.requests) for trace in traces] == [2, 2]
    refused = [one for trace in traces for one in trace.failed]
    assert [one.refused_with for one in refused] == [429, 429]
    assert all(one.end_s == pytest.approx(one.arrival_s + 0.25) for one in refused)


def test_a_token_bucket_lets_through_its_rate_after_its_burst() -> None:
    gate = Gate(GatewayLimits(requests_per_s=2.0, burst=5))
    passed = [number * 0.1 for number in range(101) if gate.status(number * 0.1, 0) == 200]
    assert passed[:5] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert len(passed) == pytest.approx(5 + 2 * 10, abs=1)


def test_malformed_requests_are_refused_at_any_load() -> None:
    gate = Gate(GatewayLimits(malformed_fraction=0.2, seed=3))
    statuses = [gate.status(float(number), 0) for number in range(2000)]
    assert set(statuses) == {200, 400}
    assert statuses.count(400) == pytest.approx(400, abs=80)

"""Replicas behind a router in virtual time."""

import random

import pytest

from loadtest.simulator.engine.requests import Request
from loadtest.simulator.routers import ROUTERS, first_replica, prefix_aware, round_robin
from loadtest.simulator.virtual import Simulation, TimedRequest, simulate, simulate_replicas
from testing.inputs.engines import SMALL_ENGINE


def crowd(count: int, *, seed: int, every_s: float) -> list[TimedRequest]:
    """Requests of several lengths, a few of which begin alike."""
    rng = random.Random(seed)
    return [
        (
            number * every_s,
            Request(
                prompt_tokens=rng.randint(4, 40),
                output_tokens=rng.randint(1, 40),
                block_hashes=(*range(rng.randint(0, 3)), *range(100 * number + 100, 100 * number + 130)),
            ),
        )
        for number in range(count)
    ]


def test_round_robin_gives_each_replica_every_other_request_and_both_run_as_if_alone() -> None:
    both = simulate_replicas(
        [SMALL_ENGINE, SMALL_ENGINE], crowd(40, seed=1, every_s=0.7), route=round_robin()
    )
    for place, trace in enumerate(both):
        alone = simulate(SMALL_ENGINE, crowd(40, seed=1, every_s=0.7)[place::2])
        assert trace.step_end_s == alone.step_end_s
        assert trace.used_blocks == alone.used_blocks
        assert trace.counters == alone.counters


def test_an_answer_to_one_replicas_end_reaches_another_at_its_time() -> None:
    """The second replica would leap far over the moment at which the first one's user comes to it."""
    long = Request(prompt_tokens=4, output_tokens=100)
    short = Request(prompt_tokens=4, output_tokens=3)
    follow_up = Request(prompt_tokens=4, output_tokens=1)

    def again(ended: Request, now_s: float) -> TimedRequest | None:
        return (now_s + 0.1, follow_up) if ended is short else None

    places = {short: 0, long: 1, follow_up: 1}
    traces = simulate_replicas(
        [SMALL_ENGINE, SMALL_ENGINE],
        [(0.0, long), (0.0, short)],
        route=lambda one, _: places[one],
        on_end=again,
    )
    assert follow_up in traces[1].requests
    assert short.end_s is not None
    assert follow_up.admitted_s == pytest.approx(short.end_s + 1.0, abs=0.2)


def test_least_loaded_keeps_replicas_even() -> None:
    made = {}
    for name in ("least-loaded", "round-robin"):
        arrivals = [
            (2.0 * number, Request(prompt_tokens=4, output_tokens=(40, 1)[number % 2]))
            for number in range(40)
        ]
        traces = simulate_replicas([SMALL_ENGINE, SMALL_ENGINE], arrivals, route=ROUTERS[name]())
        made[name] = [sum(one.output_tokens for one in trace.requests) for trace in traces]
    assert made["round-robin"] == [800, 20]  # every long one to the same replica
    assert max(made["least-loaded"]) < 600
    assert sum(made["least-loaded"]) == 820


def test_prefix_aware_sends_a_conversation_where_its_history_is() -> None:
    """Four chats of five turns over three replicas: only the aware router finds every history."""
    hits = {}
    for name in ("round-robin", "prefix-aware"):
        turns = [(chat, turn) for turn in range(5) for chat in range(4)]
        arrivals = [
            (
                100.0 * number,
                Request(
                    prompt_tokens=16 * (turn + 1) + 1,
                    output_tokens=2,
                    block_hashes=range(1000 * chat, 1000 * chat + 4 * (turn + 1)),
                ),
            )
            for number, (chat, turn) in enumerate(turns)
        ]
        traces = simulate_replicas([SMALL_ENGINE] * 3, arrivals, route=ROUTERS[name]())
        hits[name] = sum(trace.counters.prefix_hits for trace in traces)
    assert hits["prefix-aware"] == sum(16 * turn for turn in range(5)) * 4
    assert hits["round-robin"] < hits["prefix-aware"]


def test_prefix_aware_leaves_a_replica_that_is_far_ahead() -> None:
    popular = [(0.0, Request(prompt_tokens=9, output_tokens=60, block_hashes=range(2))) for _ in range(40)]
    traces = simulate_replicas([SMALL_ENGINE] * 2, popular, route=prefix_aware())
    share = [len(trace.requests) for trace in traces]
    assert min(share) >= 12


def test_goes_on_where_it_stopped() -> None:
    whole = simulate(SMALL_ENGINE, crowd(200, seed=2, every_s=1.0))
    pieces = Simulation([SMALL_ENGINE], crowd(150, seed=2, every_s=1.0), route=first_replica)
    for until_s in (5.0, 20.0, 20.0, 150.0):
        pieces.run(until_s)
        assert pieces.traces[0].step_end_s[-1] < until_s + 4.0
    for at_s, request in crowd(200, seed=2, every_s=1.0)[150:]:
        pieces.push(at_s, request)
    pieces.run()
    assert pieces.traces[0].step_end_s == whole.step_end_s
    assert len(pieces.traces[0].requests) == 200

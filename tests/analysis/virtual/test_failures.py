"""Virtual users whose requests fail: what they do then, and what the figures count."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.virtual.run import simulate_users
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.gateway import GatewayLimits
from testing.inputs.engines import SMALL_ENGINE


def service(*, think_s: float = 0.001, output: int = 20, **engine: object) -> Service:
    values = {name: getattr(SMALL_ENGINE, name) for name in SMALL_ENGINE.__dataclass_fields__}
    return Service(
        engine=EngineConfig(**(values | engine)),  # type: ignore[arg-type]
        chatting=ChatBehaviour(conversations=[[(4, output)]], pauses_s=np.array([think_s])),
    )


def test_users_within_a_queue_limit_see_no_error_and_one_more_is_starved() -> None:
    """The one above the limit pauses for up to 30 s after each refusal. Few requests fail therefore, but this
    user hardly gets an answer: each second of these pauses counts as a failure."""
    limited = service(max_num_queued_reqs=4)
    at, above = (simulate_users(limited, users, requests=3000).figures(Slo()) for users in (4, 5))
    assert at.error_share == 0.0
    answers_per_s = above.output_tok_s / 20
    assert above.error_share == pytest.approx(1 / (1 + answers_per_s), rel=0.1)


def test_pauses_double_in_a_row_and_begin_again_after_a_success() -> None:
    limited = service(max_num_queued_reqs=1)
    (trace,) = simulate_users(limited, 2, requests=60).traces
    by_user = {user: [one for one in trace.failed if one.user == user] for user in (0, 1)}
    starved = max(by_user.values(), key=len)
    assert [one.pause_s for one in starved[:6]] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    ends = [one.end_s or math.nan for one in starved[:3]]
    assert starved[1].arrival_s == pytest.approx(ends[0] + 1.0 + 0.001)


def test_retry_after_is_obeyed() -> None:
    limited = replace(service(), gateway=GatewayLimits(max_unfinished=1, retry_after_s=7.0))
    (trace,) = simulate_users(limited, 2, requests=200).traces
    assert {one.pause_s for one in trace.failed[:3]} == {7.0}


def test_refusals_for_what_is_asked_are_no_overload() -> None:
    picky = replace(service(), gateway=GatewayLimits(malformed_fraction=0.1))
    seen = simulate_users(picky, 3, requests=2000)
    figures = seen.figures(Slo(ttft_p95_s=60.0))
    refused = [one for one in seen.traces[0].failed if one.refused_with == 400]
    assert len(refused) == pytest.approx(200, abs=60)
    assert figures.error_share == 0.0
    assert figures.ttft_miss == 0.0


def test_a_time_limit_is_an_error_and_misses_ttft_only_where_the_wait_was_longer() -> None:
    slow = service(output=60, max_num_seqs=2)
    limited = replace(slow, timeout_s=150.0)
    seen = simulate_users(limited, 8, requests=600)
    strict = seen.figures(Slo(ttft_p95_s=100.0))
    loose = seen.figures(Slo(ttft_p95_s=151.0))
    assert strict.error_share > 0.01
    assert strict.ttft_miss > 0.1
    assert loose.ttft_miss == 0.0  # none of them had waited longer than 151 s
    assert strict.ttft_p95_s > 100.0
    assert loose.error_share == strict.error_share


def test_tokens_before_the_time_limit_count_in_throughput_and_tpot() -> None:
    long = replace(service(output=200), timeout_s=60.0)
    figures = simulate_users(long, 1, requests=40).figures(Slo(tpot_p95_s=0.001))
    assert figures.error_share == 1.0
    assert figures.tpot_miss == 1.0
    assert figures.output_tok_s > 0.0

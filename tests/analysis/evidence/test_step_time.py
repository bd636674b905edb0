"""Step time and the cost of prefill, fitted to levels whose truth is known."""

import pytest

from analysis.evidence import step_time as latency
from analysis.evidence.evidence import gather_evidence
from analysis.statistics.samples import MissShare
from testing.runs.virtual import level
from testing.truth.deployments import deployment
from testing.truth.methods import sweep


def test_step_time_recovers_base_and_slope():
    base, slope = 0.02, 0.001
    levels = [level(n, output_tok_s=n / (base + slope * n)) for n in (1, 2, 4, 8, 16)]
    found = latency.step_time(levels)
    assert found is not None
    assert found.base_s == pytest.approx(base)
    assert found.per_sequence_s == pytest.approx(slope)
    assert found.knee == pytest.approx(180.0)
    assert found.output_tok_s(found.knee) == pytest.approx(0.9 / slope)


def test_step_time_needs_two_loads_and_leaves_queues_out():
    assert latency.step_time([level(4), level(4)]) is None
    assert latency.step_time([level(4), level(8, waiting_fraction=0.5)]) is None


def test_queues_for_slots_do_not_slow_the_steps_that_are_fitted():
    free = [level(n, output_tok_s=n / (0.01 + 0.001 * n)) for n in (4, 8)]
    queued = [
        level(
            n,
            in_flight=n,
            output_tok_s=400.0,
            queue=MissShare(misses=20, n=50),
            blocked=MissShare(misses=0, n=50),
        )
        for n in (19, 22, 26)
    ]
    assert latency.step_time(free + queued) == latency.step_time(free)


def test_the_pace_of_prefill_is_found_where_people_think_and_their_prompts_meet():
    one = deployment(176)  # long prompts, long thoughts: 29 requests at the lowest level
    load, _ = sweep(one)
    step_cost = gather_evidence([load.run()], slo=one.slo).step_cost
    assert step_cost is not None
    assert step_cost.prefill_per_token_s == pytest.approx(one.service.engine.prefill_per_token_s, rel=0.15)

"""The answer of sizing: the least wall, bands, and what moves it."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.sizing.answer import size_deployment
from analysis.sizing.engine import size_engine
from testing.inputs.model_configs import QWEN3_1_7B
from testing.inputs.planned import planned_deployment, planned_workload


def test_the_answer_is_the_least_wall_and_every_figure_has_a_band() -> None:
    found = size_deployment(planned_deployment(QWEN3_1_7B), planned_workload(think="20"), quantization=None)
    assert found.users is not None
    low, middle, high = found.users
    assert 0 < low <= middle <= high
    assert found.binding == found.bounds[0].name
    assert found.users_x is not None
    assert found.users_x[1] == pytest.approx(min(bound.users_x for bound in found.bounds))
    for bound in found.bounds:
        assert bound.interval_x[0] <= bound.users_x <= bound.interval_x[1]
    for band in (found.pool_bytes, found.blocks, found.pool_tokens, found.vllm_max_concurrency_band):
        assert band is not None
        assert band[0] < band[1] < band[2]
    assert found.sensitivity[0].effect_users != 0
    effects = [abs(one.effect_users) for one in found.sensitivity]
    assert effects == sorted(effects, reverse=True)


def test_answers_of_one_token_have_no_time_per_output_token() -> None:
    asked = planned_workload()
    (users,) = asked.classes
    asked = replace(asked, classes=[replace(users, output=np.ones(2000, dtype=np.int64))])
    found = size_deployment(planned_deployment(QWEN3_1_7B), asked, quantization=None)
    assert "tpot" in found.not_met


def test_users_who_mostly_think_do_not_outgrow_the_pool() -> None:
    asked = planned_deployment(QWEN3_1_7B, max_num_seqs=4096)
    found = size_engine(asked, planned_workload(think="exp:120"), latency=False)
    users = next(wall.x for wall in found.walls if wall.name == "kv_cache")
    in_flight = users * found.pace.active(int(users))
    assert 0.7 < in_flight * found.mean_blocks(in_flight) / found.band.blocks[1] < 1


def test_replicas_multiply_users() -> None:
    one, two = (
        size_deployment(planned_deployment(QWEN3_1_7B, replicas=count), planned_workload(), quantization=None)
        for count in (1, 2)
    )
    assert one.users_x is not None
    assert two.users_x is not None
    assert two.users_x[1] == pytest.approx(2 * one.users_x[1])
    assert "--data-parallel-size" in two.vllm_flags

"""How a limit moves with errors that are not simulated one by one, and the parts of a recommendation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.tune.commands import proof_levels, serve_command
from analysis.tune.limits import difference_interval
from analysis.tune.response import Response, SimulatedLoad, loads_around
from analysis.twin.maximum import find_maximum
from analysis.twin.model_error import Variant, with_times
from analysis.twin.what_if import with_blocks
from analysis.virtual.run import simulate_users
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import RunInfo, ServerInfo, Slo
from testing.runs.virtual import chat_lengths, small_engine


def service(**engine: object) -> Service:
    rng = np.random.default_rng(1)
    chats = [(chat_lengths(rng),) for _ in range(500)]
    return Service(
        engine=small_engine(**engine),
        chatting=ChatBehaviour(conversations=chats, pauses_s=np.array([1e-3])),
    )


@pytest.mark.parametrize(
    ("blocks", "slo", "slower", "pool", "tighter"),
    [
        (128, Slo(), 1.0, 1.25, 1.0),
        (128, Slo(), 1.0, 0.8, 1.0),
        (2000, Slo(tpot_p95_s=0.008), 1.2, 1.0, 1.0),
        (2000, Slo(tpot_p95_s=0.008), 1.0, 1.0, 1.15),
        (2000, Slo(stall_p95_s=0.02), 1.2, 1.0, 1.0),
    ],
)
def test_a_limit_moves_with_errors_as_if_each_were_simulated(
    blocks: int, slo: Slo, slower: float, pool: float, tighter: float
) -> None:
    """A pool that errs, steps that a refit makes slower, and a TPOT that the model makes too short."""
    base = service(num_gpu_blocks=blocks)
    here = find_maximum(base, slo)
    assert here is not None
    loads = [
        SimulatedLoad.of(simulate_users(base, users, requests=2000), slo) for users in loads_around(here.x)
    ]
    response = Response(service=base, slo=slo, x=here.x, loads=loads)
    engine = base.engine
    draw = base.with_engine(
        step_base_s=slower * engine.step_base_s,
        step_per_seq_s=slower * engine.step_per_seq_s,
        prefill_per_token_s=slower * engine.prefill_per_token_s,
    )
    variant = Variant(
        service=with_blocks(draw, round(pool * blocks)),
        slo=with_times(slo, ttft=1.0, tpot=tighter),
    )
    simulated = find_maximum(variant.service, variant.slo)
    assert simulated is not None
    assert abs(simulated.x / here.x - 1) > 0.1  # the error matters
    assert response.users_with(draw, variant) == pytest.approx(simulated.x, rel=0.1)
    assert response.users_with(base, Variant(service=base, slo=slo)) == pytest.approx(here.x)


def test_times_that_hardly_rise_with_users_are_no_wall_near_the_limit() -> None:
    """Their line meets the objective at a number of users that no float holds."""
    base, slo = service(), Slo()
    loads = [SimulatedLoad.of(simulate_users(base, users, requests=1000), slo) for users in (12, 17, 24)]
    flat = [replace(one, tpot_p95_s=0.003 * (1 + 1e-5 * one.users)) for one in loads]
    response = Response(service=base, slo=slo, x=17.0, loads=flat)
    assert response.users_with(base, Variant(service=base, slo=slo)) == pytest.approx(17.0)


def test_a_difference_of_draws_that_move_together_is_known_better_than_each() -> None:
    ours = [10.0, 20.0, 30.0, 40.0]
    low, high = difference_interval(5.0, ours, [one + 5.0 for one in ours])
    assert (low, high) == (5.0, 5.0)
    low, high = difference_interval(5.0, ours, [15.0, 45.0, 15.0, 65.0])
    assert low < 0 < 5 < (high or 0)


def test_the_serve_line_doubles_blocks_that_were_set_by_hand_when_they_become_half_as_large(
    tmp_path: Path,
) -> None:
    info = RunInfo(
        run_id="run",
        model="a model",
        scenario="chat",
        host="http://h",
        started_unix_s=0.0,
        settings={},
        server=ServerInfo(max_model_len=2048, num_gpu_blocks_override=128),
    )
    command = serve_command(info, {"kv_cache_dtype": "fp8"}, stated={"max_num_seqs": 32})
    assert command == (
        "vllm serve 'a model' --max-model-len 2048 --num-gpu-blocks-override 256 --max-num-seqs 32 "
        "--kv-cache-dtype fp8"
    )


def test_the_levels_of_the_proof_reach_beyond_the_predicted_limit() -> None:
    assert proof_levels(now_x=8.2, users=(30.0, 44.0)) == [1, 8, 30, 37, 44, 51]
    assert max(proof_levels(now_x=8.2, users=(30.0, None))) > 60

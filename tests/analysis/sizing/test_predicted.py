"""Walls of planned deployments, against the engine and against the measured law."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.evidence.lengths import LengthPairs
from analysis.memory.block_distribution import block_distribution
from analysis.sizing.engine import latency_walls, size_engine
from analysis.sizing.latency.curve import LatencyCurve
from analysis.sizing.workload import planned_block_distribution
from loadtest.model.architectures import parse_config
from loadtest.model.kv_cache import kv_layout
from loadtest.model.step_time import PredictedStepTime, SpeedBands
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.virtual import closed_loop
from testing.inputs.model_configs import GEMMA2_27B, LLAMA31_8B, QWEN3_1_7B, QWEN3_30B_A3B, QWEN3_NEXT
from testing.inputs.planned import planned_deployment, planned_workload


def test_the_general_law_of_blocks_is_the_measured_ones_for_full_attention() -> None:
    (asked,) = planned_workload().classes
    layout = kv_layout(parse_config(QWEN3_1_7B))
    pairs = LengthPairs(
        prompt=asked.prompt, output=asked.output, conversation=np.arange(len(asked.prompt), dtype=np.int64)
    )
    ours, theirs = planned_block_distribution(asked, layout), block_distribution(pairs, block_tokens=16)
    size = min(len(ours.held), len(theirs.held))
    for name in ("held", "growth", "entry"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a[:size] == pytest.approx(b[:size], abs=1e-12)
        assert a[size:].sum() == b[size:].sum() == 0
    assert ours.steps == pytest.approx(theirs.steps)
    assert ours.growth.sum() > 0


def test_windows_and_states_bound_what_long_requests_hold() -> None:
    (asked,) = planned_workload(prompt="4000", max_model_len=8192).classes
    windows, full = kv_layout(parse_config(GEMMA2_27B)), kv_layout(parse_config(LLAMA31_8B))
    # Half of Gemma's groups stop at a window of 4,096; its requests are just longer than that.
    assert planned_block_distribution(asked, windows).mean < 2 * planned_block_distribution(asked, full).mean
    hybrid = kv_layout(parse_config(QWEN3_NEXT))
    law = planned_block_distribution(asked, hybrid)
    assert law.held[: hybrid.fixed_blocks + 1].sum() == 0
    assert law.q > 0


def test_the_memory_wall_is_where_the_engine_begins_to_preempt() -> None:
    found = planned_deployment(QWEN3_1_7B, max_num_seqs=1000, max_num_batched_tokens=2048)
    asked = planned_workload(prompt="lognormal:256,0.5", max_model_len=1500)
    (users,) = asked.classes
    sized = size_engine(found, asked, latency=False)
    wall = sized.binding_wall.x
    assert sized.binding_wall.name == "kv_cache"

    def preempted(count: int) -> float:
        requests = (
            Request(prompt_tokens=int(p), output_tokens=int(o))
            for p, o in zip(users.prompt, users.output, strict=True)
        )
        config = EngineConfig(
            num_gpu_blocks=sized.band.blocks[1],
            max_model_len=1500,
            step_base_s=1.0,
            max_num_seqs=1000,
            enable_prefix_caching=False,
        )
        trace = closed_loop(config, requests, users=count, start_spread_s=200.0)
        return trace.counters.preemptions / len(trace.requests)

    assert preempted(int(0.9 * wall)) < 0.01 < preempted(int(1.12 * wall))


def test_thinking_users_are_more_than_requests_in_flight() -> None:
    found = planned_deployment(QWEN3_1_7B)
    busy, idle = (size_engine(found, planned_workload(think=think), latency=False) for think in ("0", "60"))
    x = {one.name: one.x for one in busy.walls}["kv_cache"]
    thinking = {one.name: one.x for one in idle.walls}["kv_cache"]
    assert thinking > 2 * x
    assert thinking * idle.pace.active(int(thinking)) <= x  # never more are admitted at once


def test_crossings_of_a_curve_lie_between_its_loads_and_move_with_speed() -> None:
    bands = SpeedBands(ttft=(0.7, 1.4), tpot=(0.8, 1.2), e2e=(0.8, 1.2), known=True)
    curve = LatencyCurve(
        users=(10, 20, 40), ttft_s=(0.1, 0.2, 0.4), tpot_s=(0.01, 0.01, 0.01), reach=40.0, bands=bands
    )
    slo = Slo(ttft_p95_s=0.2, tpot_p95_s=0.1)
    (ttft,) = latency_walls(curve, slo)
    assert ttft.name == "ttft"
    assert ttft.x == pytest.approx(20)
    assert 10 < ttft.low < 20 < ttft.high <= 40
    (slower,) = latency_walls(curve, slo, ttft_scale=1.5)
    assert slower.x < ttft.x


def test_fewer_experts_are_read_for_fewer_sequences() -> None:
    steps = size_engine(
        planned_deployment(QWEN3_30B_A3B, gpu="H100", dtype="bfloat16"), planned_workload(), latency=False
    ).steps

    def read_s(steps: PredictedStepTime, sequences: float) -> float:
        alone = replace(steps, token_s=0.0, fixed_s=0.0, sequence_s=0.0, collective_token_s=0.0)
        return alone.seconds(decodes=sequences, prefills=0, kv_tokens=0, prefill_tokens=0, pairs=0)

    assert read_s(steps, 1) < 0.25 * read_s(steps, 1000)
    dense = size_engine(planned_deployment(QWEN3_1_7B), planned_workload(), latency=False).steps
    assert read_s(dense, 1) == pytest.approx(read_s(dense, 1000))


def test_lengths_are_cut_to_the_context_and_counted() -> None:
    (cut,) = planned_workload(max_model_len=600).classes
    assert int((cut.prompt + cut.output).max()) == 600
    assert cut.clipped > 0

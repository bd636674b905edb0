"""Walls from steady states: sizing, twin and simulator agree, and nothing jumps."""

import pytest

from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.engine import size_engine
from analysis.sizing.latency.load import simulate_closed_loop
from analysis.sizing.workload import PlannedWorkload, draw_workload
from analysis.twin.maximum import find_maximum
from loadtest.model.startup import CURRENT_VERSION
from loadtest.record import Slo, UserClass
from loadtest.simulator.presets import PRESETS
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B, QWEN3_30B_A3B
from testing.inputs.planned import planned_deployment

AGREES = 0.05
"""Share by which sizing and twin may differ."""
TWIN_REQUESTS = 8_000
"""Requests of a probe of the twin: its quick ones, of a sixth of them, then end after the warm-up too."""
WORKLOADS = {
    "chat": ("lognormal:512,0.6", "lognormal:128,0.6", "0", 1),
    "long prompts": ("lognormal:2000,0.5", "lognormal:100,0.5", "0", 1),
    "long answers": ("lognormal:200,0.5", "lognormal:600,0.6", "0", 1),
    "thinking": ("lognormal:512,0.6", "lognormal:128,0.6", "exp:10", 1),
    "conversations": ("lognormal:150,0.6", "lognormal:120,0.6", "exp:3", 3),
}
"""Prompt tokens, answer tokens, think time in seconds, turns."""


def _workload(name: str, slo: Slo, max_model_len: int) -> PlannedWorkload:
    prompt, output, think, turns = WORKLOADS[name]
    users = UserClass(name="", prompt_tokens=prompt, output_tokens=output, think_s=think, turns=str(turns))
    return draw_workload([users], slo=slo, max_model_len=max_model_len)


def _agree(deployment: PlannedDeployment, workload: PlannedWorkload) -> None:
    sized = size_engine(deployment, workload)
    start = max(int(sized.binding_wall.x), 1)
    found = find_maximum(sized.service, workload.slo, start=start, requests=TWIN_REQUESTS)
    assert found is not None
    assert sized.binding_wall.x == pytest.approx(found.x, rel=AGREES, abs=1.0), (
        sized.binding_wall.name,
        found.wall,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_sizing_and_twin_agree_on_every_preset(name: str) -> None:
    preset = PRESETS[name]
    engine = preset.engine_config()
    deployment = PlannedDeployment(
        model=preset.model,
        shape=preset.shape,
        gpu=preset.gpu,
        version=CURRENT_VERSION,
        utilization=preset.gpu_memory_utilization,
        max_model_len=engine.max_model_len,
        max_num_seqs=preset.max_num_seqs,
        max_num_batched_tokens=preset.max_num_batched_tokens,
        dtype=preset.dtype,
    )
    workload = _workload("chat", Slo(), engine.max_model_len)
    sized = size_engine(deployment, workload)
    # Sizing simulates the engine that the preset is: the same steps, the same pool.
    assert sized.service.engine.step_time == engine.step_time
    assert sized.service.engine.num_gpu_blocks == engine.num_gpu_blocks
    _agree(deployment, workload)


@pytest.mark.parametrize(
    ("config", "gpu", "workload", "slo"),
    [
        (QWEN3_1_7B, "L4", "long prompts", Slo(ttft_p95_s=1.0)),
        (QWEN3_1_7B, "L4", "long answers", Slo(tpot_p95_s=0.03)),
        (QWEN3_1_7B, "T4", "conversations", Slo()),
        (LLAMA31_8B, "A10G", "chat", Slo(tpot_p95_s=0.05)),
        (LLAMA31_8B, "A100", "long prompts", Slo(ttft_p95_s=0.8)),
        (LLAMA31_8B, "A100", "thinking", Slo()),
        (LLAMA31_8B, "L40S", "long answers", Slo()),
        (LLAMA31_8B, "H100", "chat", Slo(tpot_p95_s=0.02)),
        (QWEN3_30B_A3B, "H100", "chat", Slo(ttft_p95_s=0.3)),
        (QWEN3_30B_A3B, "H100", "conversations", Slo(tpot_p95_s=0.03)),
    ],
)
def test_sizing_and_twin_agree_on_other_deployments(
    config: dict[str, object], gpu: str, workload: str, slo: Slo
) -> None:
    dtype = "float16" if gpu == "T4" else "bfloat16"
    _agree(planned_deployment(config, gpu=gpu, dtype=dtype), _workload(workload, slo, 8192))


def test_a_wall_moves_smoothly_with_the_token_budget() -> None:
    slo = Slo(ttft_p95_s=0.3)
    walls = []
    for tokens in (2048, 4096, 8192, 16384):
        deployment = planned_deployment(
            LLAMA31_8B, gpu="A100", dtype="bfloat16", max_num_batched_tokens=tokens, max_model_len=2048
        )
        sized = size_engine(deployment, _workload("chat", slo, 2048))
        # A larger budget also takes memory from the pool, which moves another wall.
        walls.append(next(wall.x for wall in sized.walls if wall.name == "ttft"))
    assert max(walls) < 1.1 * min(walls), walls


def test_latency_of_a_load_does_not_depend_on_how_long_it_is_simulated() -> None:
    sized = size_engine(
        planned_deployment(LLAMA31_8B, gpu="H100", dtype="bfloat16", max_num_batched_tokens=8192),
        _workload("chat", Slo(), 8192),
        latency=False,
    )
    once, longer = (simulate_closed_loop(sized.service, 150, length=length).p95_s() for length in (1, 5))
    assert once == pytest.approx(longer, rel=0.1)

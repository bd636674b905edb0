"""Pools of planned deployments against published logs."""

import pytest

from analysis.sizing.deployment.pool import max_concurrency, pool_band
from loadtest.units import GIB
from testing.inputs.model_configs import GEMMA2_27B, LLAMA31_8B, QWEN3_1_7B
from testing.inputs.planned import planned_deployment


@pytest.mark.parametrize(
    ("config", "gpu", "changes", "logged_gib"),
    [
        (LLAMA31_8B, "H100", {"dtype": "bfloat16"}, 58.11),
        (GEMMA2_27B, "H100", {"dtype": "bfloat16"}, 20.59),
        (LLAMA31_8B, "H100", {"dtype": "bfloat16", "tp": 4}, 67.44),
    ],
    ids=["llama-3.1-8b", "gemma-2-27b", "llama-3.1-8b on four"],
)
def test_pools_are_those_of_published_logs(
    config: dict[str, object], gpu: str, changes: dict[str, object], logged_gib: float
) -> None:
    """vLLM 0.19.0 on H100 at a utilisation of 0.95 (llm-d-planner)."""
    defaults = {"version": (0, 19, 0), "utilization": 0.95, "max_num_seqs": 1024}
    found = planned_deployment(config, gpu=gpu, **defaults, max_num_batched_tokens=8192, **changes)
    low, middle, high = pool_band(found).kv_bytes
    assert middle / GIB == pytest.approx(logged_gib, rel=0.01)
    assert low / GIB < logged_gib < high / GIB


def test_pipeline_stages_share_the_smallest_pool() -> None:
    found = planned_deployment(
        LLAMA31_8B,
        gpu="H100",
        version=(0, 19, 0),
        utilization=0.95,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        dtype="bfloat16",
        pp=2,
    )
    # The log of such a start-up: 1,075,312 tokens, 131.26 requests of 8,192.
    band = pool_band(found)
    assert band.blocks[1] == pytest.approx(67207, rel=0.005)
    assert max_concurrency(found, 67207) == pytest.approx(131.26, abs=0.01)


def test_a_larger_budget_came_with_0_20_and_graphs_in_it_with_0_21() -> None:
    old, new = (planned_deployment(QWEN3_1_7B, version=version) for version in ((0, 20, 0), (0, 21, 0)))
    difference = pool_band(old).pool.kv_bytes - pool_band(new).pool.kv_bytes
    assert difference == pool_band(new).overheads.cuda_graphs > 0
    eager = planned_deployment(QWEN3_1_7B, enforce_eager=True)
    assert pool_band(eager).overheads.cuda_graphs == 0

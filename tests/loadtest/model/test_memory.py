"""The memory budget of a start-up, against published logs."""

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.gpus import A100_80, GPU_CATALOGUE, H100, T4, Gpu
from loadtest.model.kv_cache import kv_layout
from loadtest.model.memory import MemoryBudget, divide_budget
from loadtest.model.startup import (
    CURRENT_VERSION,
    VllmVersion,
    activation_bytes,
    default_batch_limits,
    startup_overheads,
)
from loadtest.model.weights import weights_bytes
from loadtest.units import GIB
from testing.inputs.model_configs import (
    LLAMA31_8B,
    MIXTRAL_8X7B,
    QWEN3_1_7B,
    QWEN15_1_8B,
)


def t4_pool(config: dict[str, object], utilization: float) -> MemoryBudget:
    shape = parse_config(config)
    found = startup_overheads(
        shape, T4, version=CURRENT_VERSION, max_num_seqs=256, max_num_batched_tokens=2048, dtype="float16"
    )
    return divide_budget(
        kv_layout(shape, dtype="float16"),
        vram_bytes=T4.vram_bytes,
        gpu_memory_utilization=utilization,
        weights=weights_bytes(shape, dtype="float16"),
        activation=found.activation,
        cuda_graphs=found.cuda_graphs,
        non_torch=found.non_torch,
    )


@pytest.mark.parametrize("utilization", [0.90, 0.92])
def test_pools_on_a_t4_lie_in_the_ranges_of_the_reference_comparison(utilization: float) -> None:
    assert 76_000 <= t4_pool(QWEN3_1_7B, utilization).tokens <= 89_000
    assert 43_000 <= t4_pool(QWEN15_1_8B, utilization).tokens <= 51_000


def test_the_pool_is_whole_blocks_without_the_null_block() -> None:
    layout = kv_layout(parse_config(QWEN3_1_7B), block_size=32)
    pool = divide_budget(
        layout,
        vram_bytes=T4.vram_bytes,
        gpu_memory_utilization=0.92,
        weights=3 * GIB,
        activation=GIB,
        cuda_graphs=0,
        non_torch=0,
    )
    assert pool.budget_bytes == -(-T4.vram_bytes * 92 // 100)
    assert pool.kv_bytes == pool.budget_bytes - 4 * GIB
    assert pool.num_gpu_blocks == pool.kv_bytes // (32 * 112 * 1024)
    assert pool.tokens == (pool.num_gpu_blocks - 1) * 32


def test_a_model_that_does_not_fit_is_said_so() -> None:
    with pytest.raises(ValueError, match=r"Nothing is left for the KV cache: .* weights take 14\.96"):
        t4_pool(LLAMA31_8B, 0.9)


@pytest.mark.parametrize(
    ("version", "seqs", "logged_gib"),
    [((0, 19, 0), 1024, 1.89), ((0, 15, 1), 256, 1.19), ((0, 7, 0), 256, 1.19)],
    ids=[
        "vLLM 0.19 on an H100, logged",
        "vLLM 0.15 on an A100, what 19.28 GiB of pool leave",
        "vLLM 0.7 on a GPU of 79.14 GiB, logged",
    ],
)
def test_the_sampling_peak_follows_the_sampler_of_the_version(
    version: VllmVersion, seqs: int, logged_gib: float
) -> None:
    shape = parse_config(LLAMA31_8B)
    peak = activation_bytes(shape, max_num_seqs=seqs, max_num_batched_tokens=2048, version=version)
    assert peak / GIB == pytest.approx(logged_gib, abs=0.02)


@pytest.mark.parametrize("version", [(0, 8, 5), (0, 10, 1)])
def test_where_the_sampler_is_not_known_the_band_holds_both(version: VllmVersion) -> None:
    shape = parse_config(LLAMA31_8B)
    found, sorting, fused = (
        startup_overheads(
            shape,
            A100_80,
            version=version,
            max_num_seqs=256,
            max_num_batched_tokens=2048,
            flashinfer=flashinfer,
        )
        for flashinfer in (None, False, True)
    )
    assert fused.activation < found.activation < sorting.activation
    reach = 1.645 * found.activation_sd
    assert found.activation - reach < fused.activation
    assert sorting.activation < found.activation + reach
    assert sorting.activation_sd < found.activation_sd


@pytest.mark.parametrize(
    ("gpu", "version", "context", "limits"),
    [
        (A100_80, (0, 7, 3), 8192, (8192, 256)),
        (A100_80, (0, 7, 3), 131072, (2048, 256)),
        (T4, (0, 9, 2), 16384, (16384, 256)),
        (T4, (0, 10, 0), 16384, (2048, 256)),
        (A100_80, (0, 8, 2), 8192, (2048, 1024)),
        (A100_80, (0, 8, 4), 8192, (2048, 256)),
        (A100_80, (0, 8, 5), 8192, (8192, 1024)),
        (A100_80, (0, 9, 0), 8192, (2048, 256)),
        (H100, (0, 8, 2), 8192, (8192, 1024)),
        (GPU_CATALOGUE["B200"], (0, 27, 0), 8192, (8192, 1024)),
        (GPU_CATALOGUE["B200"], (0, 32, 0), 8192, (16384, 1024)),
    ],
)
def test_the_default_batch_follows_the_version(
    gpu: Gpu, version: VllmVersion, context: int, limits: tuple[int, int]
) -> None:
    assert default_batch_limits(gpu, version=version, max_model_len=context) == limits


def test_with_few_slots_the_forward_is_the_activation_peak() -> None:
    shape = parse_config(LLAMA31_8B)
    assert activation_bytes(shape, max_num_seqs=8, max_num_batched_tokens=8192) == 8192 * 59392 * 2
    # Of Mixtral on two H100 vLLM 0.19 logs 1.21 GiB, most of it the experts' workspace.
    mixtral = parse_config(MIXTRAL_8X7B)
    peak = activation_bytes(mixtral, max_num_seqs=1024, max_num_batched_tokens=8192, version=(0, 19, 0), tp=2)
    assert peak / GIB == pytest.approx(1.21, rel=0.1)

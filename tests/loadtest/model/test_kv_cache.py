"""Blocks and bytes of the KV cache, against vLLM's log."""

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.kv_cache import KvCacheGroup, kv_bytes_per_token, kv_layout
from loadtest.model.quantisation import UnsupportedModelError
from loadtest.units import GIB
from testing.inputs.model_configs import (
    DEEPSEEK_V2_LITE,
    GEMMA2_27B,
    GPT_OSS_20B,
    LLAMA31_8B,
    QWEN3_NEXT,
)


@pytest.mark.parametrize(
    ("config", "kv_gib", "max_model_len", "in_flight", "blocks", "concurrency"),
    [
        (LLAMA31_8B, 58.11, 8192, 8192, 29751, 58.11),
        (GEMMA2_27B, 20.59, 8192, 8192, 7335, 7.16),
        (GPT_OSS_20B, 59.32, 8192, 8192, 323972, 316.07),
    ],
    ids=["full attention", "windows in every other layer", "windows of 128 tokens, two GPUs"],
)
def test_blocks_and_concurrency_are_those_of_vllms_log(
    config: dict[str, object],
    kv_gib: float,
    max_model_len: int,
    in_flight: int,
    blocks: int,
    concurrency: float,
) -> None:
    """vLLM 0.19 on H100 (llm-d-planner's published logs); the logged GiB have two decimals."""
    layout = kv_layout(parse_config(config), tp=2 if config is GPT_OSS_20B else 1)
    found = kv_gib * GIB / layout.bytes_per_block
    assert found == pytest.approx(blocks, rel=0.005 / kv_gib + 1 / blocks)
    reckoned = layout.max_blocks(max_model_len, in_flight=in_flight)
    assert blocks / reckoned == pytest.approx(concurrency, abs=0.006)


def test_windows_chunks_and_states_hold_what_is_in_reach() -> None:
    window = KvCacheGroup(kind="window", span=64, layers=(0,))
    assert [window.blocks(tokens, block_size=16) for tokens in (1, 16, 17, 64, 65, 80, 81, 1000)] == [
        *(1, 1, 2, 4, 5, 4, 5, 5)
    ]
    chunk = KvCacheGroup(kind="chunk", span=64, layers=(0,))
    assert [chunk.blocks(tokens, block_size=16) for tokens in (1, 64, 65, 128, 129)] == [1, 4, 1, 4, 1]
    state = KvCacheGroup(kind="state", span=0, layers=(0,))
    assert [state.blocks(tokens, block_size=16) for tokens in (1, 10_000)] == [1, 1]


def test_a_recurrent_state_makes_blocks_as_large_as_itself() -> None:
    layout = kv_layout(parse_config(QWEN3_NEXT))
    kinds = [group.kind for group in layout.groups]
    assert kinds.count("state") == 3
    assert kinds.count("full") == 1
    # 32 value heads of 128 x 128 and a convolution of 3 x 8192, in 16 bits; a token and layer: 2 KiB.
    assert layout.block_size == 16 * -(-(2 * (32 * 128 * 128 + 3 * 8192)) // (16 * 2048))
    assert layout.blocks(10) == 4
    assert layout.blocks(10 * layout.block_size) == 13


def test_mla_keeps_one_latent_on_every_gpu() -> None:
    shape = parse_config(DEEPSEEK_V2_LITE)
    assert [kv_bytes_per_token(shape, tp=tp) for tp in (1, 2, 8)] == [27 * 576 * 2] * 3


def test_the_kv_cache_type_sets_its_bytes_and_packed_types_are_refused() -> None:
    shape = parse_config(LLAMA31_8B)
    assert kv_bytes_per_token(shape, kv_dtype="fp8") == 64 * 1024
    assert kv_bytes_per_token(shape, kv_dtype="auto", dtype="float32") == 256 * 1024
    with pytest.raises(UnsupportedModelError, match="turboquant_4bit_nc"):
        kv_bytes_per_token(shape, kv_dtype="turboquant_4bit_nc")


def test_windows_leave_no_single_figure_of_bytes_a_token() -> None:
    assert kv_bytes_per_token(parse_config(GEMMA2_27B)) is None


def test_a_window_as_long_as_the_context_is_full_attention() -> None:
    phi = LLAMA31_8B | {"model_type": "phi3", "sliding_window": 262144}
    assert kv_bytes_per_token(parse_config(phi)) == 128 * 1024
    assert kv_bytes_per_token(parse_config(phi | {"sliding_window": 2047})) is None

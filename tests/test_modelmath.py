"""Parameters, KV bytes and pools against the published figures of the models."""

import pytest

from loadtest.modelmath import (
    GIB,
    UnsupportedModelError,
    activation_bytes,
    decode_bytes,
    estimate_pool,
    kv_bytes_per_token,
    parameters,
    parse_config,
    weights_bytes,
)

T4_BYTES = round(14.6 * GIB)

QWEN3_1_7B: dict[str, object] = {
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
QWEN15_1_8B: dict[str, object] = {
    "model_type": "qwen2",
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LLAMA31_8B: dict[str, object] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
}
MIXTRAL_8X7B: dict[str, object] = {
    "model_type": "mixtral",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
QWEN3_30B_A3B: dict[str, object] = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("config", "count", "kv_bytes"),
    [
        (QWEN3_1_7B, 1_720_574_976, 112 * 1024),
        (QWEN15_1_8B, 1_836_828_672, 192 * 1024),
        (LLAMA31_8B, 8_030_261_248, 128 * 1024),
        (MIXTRAL_8X7B, 46_702_792_704, 128 * 1024),
        (QWEN3_30B_A3B, 30_532_122_624, 96 * 1024),
    ],
    ids=["qwen3-1.7b", "qwen1.5-1.8b", "llama-3.1-8b", "mixtral-8x7b", "qwen3-30b-a3b"],
)
def test_parameters_are_exactly_those_of_the_checkpoint(
    config: dict[str, object], count: int, kv_bytes: int
) -> None:
    shape = parse_config(config)
    assert parameters(shape) == count
    assert kv_bytes_per_token(shape) == kv_bytes


def test_weights_are_those_of_the_reference_comparison() -> None:
    assert weights_bytes(parse_config(QWEN3_1_7B), dtype="float16") / GIB == pytest.approx(3.205, abs=5e-4)
    assert weights_bytes(parse_config(QWEN15_1_8B), dtype="float16") / GIB == pytest.approx(3.421, abs=5e-4)
    assert weights_bytes(parse_config(QWEN3_1_7B), dtype="float32") == 4 * 1_720_574_976


def test_a_decode_step_reads_no_input_embeddings_unless_they_are_tied() -> None:
    read = [decode_bytes(parse_config(config), dtype="float16") for config in (QWEN3_1_7B, QWEN15_1_8B)]
    ceilings = [320e9 / count for count in read]
    assert ceilings == pytest.approx([93.0, 105.0], abs=0.5)  # tokens/s of one request on a T4


def test_tensor_parallelism_splits_weights_and_kv_heads_down_to_one() -> None:
    shape = parse_config(LLAMA31_8B)
    # vLLM logs 7.51 and 3.77 GiB for this model on two and four H100s.
    assert weights_bytes(shape, tp=2) / GIB == pytest.approx(7.51, abs=0.04)
    assert weights_bytes(shape, tp=4) / GIB == pytest.approx(3.77, abs=0.04)
    assert [kv_bytes_per_token(shape, tp=tp) // 1024 for tp in (1, 2, 8, 16)] == [128, 64, 16, 16]


def t4_pool(config: dict[str, object], utilization: float) -> int:
    return estimate_pool(
        parse_config(config),
        vram_bytes=T4_BYTES,
        gpu_memory_utilization=utilization,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        cuda_graphs_bytes=GIB // 4,
        non_torch_bytes=GIB // 16,
        dtype="float16",
    ).tokens


@pytest.mark.parametrize("utilization", [0.90, 0.92])
def test_pools_on_a_t4_lie_in_the_ranges_of_the_reference_comparison(utilization: float) -> None:
    assert 76_000 <= t4_pool(QWEN3_1_7B, utilization) <= 89_000
    assert 43_000 <= t4_pool(QWEN15_1_8B, utilization) <= 51_000


def test_the_pool_is_whole_blocks_without_the_null_block() -> None:
    pool = estimate_pool(
        parse_config(QWEN3_1_7B),
        vram_bytes=T4_BYTES,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        cuda_graphs_bytes=0,
        non_torch_bytes=0,
        block_size=32,
    )
    parts = pool.weights_bytes + pool.activation_bytes
    assert pool.kv_bytes == pool.budget_bytes - parts
    assert pool.budget_bytes == -(-T4_BYTES * 92 // 100)
    assert pool.num_gpu_blocks == pool.kv_bytes // (32 * 112 * 1024)
    assert pool.tokens == (pool.num_gpu_blocks - 1) * 32


def test_the_activation_peak_is_sampling_or_the_forward_whichever_is_larger() -> None:
    shape = parse_config(LLAMA31_8B)
    sampling = activation_bytes(shape, max_num_seqs=1024, max_num_batched_tokens=8192)
    assert sampling == round(38.8 * 1024 * 128256)
    forward = activation_bytes(shape, max_num_seqs=8, max_num_batched_tokens=8192)
    assert forward == 8192 * (3 * 14336 + 4 * 4096) * 2


def test_a_model_that_does_not_fit_is_said_so() -> None:
    with pytest.raises(ValueError, match=r"Nothing is left for the KV cache: .* weights take 14\.96"):
        t4_pool(LLAMA31_8B, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "multi-head latent attention"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "sliding-window attention"),
        ({"model_type": "mistral", "sliding_window": 4096, "use_sliding_window": None}, "sliding-window"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "not full attention"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised weights"),
        ({"text_config": {}}, "nested text_config"),
        ({"model_type": "mamba"}, "'mamba'"),
        ({"torch_dtype": "float8_e4m3fn"}, "'float8_e4m3fn'"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"num_hidden_layers": "28"}, "whole number above 0"),
        ({"num_hidden_layers": True}, "whole number above 0"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse_config(QWEN3_1_7B | changes)


def test_layers_left_dense_among_experts_are_counted_as_dense() -> None:
    all_experts = parse_config(QWEN3_30B_A3B)
    some_dense = parse_config(QWEN3_30B_A3B | {"mlp_only_layers": [0, 5]})
    assert some_dense.expert_layers == 46
    expert_layer = 2048 * 128 + 128 * 3 * 2048 * 768
    assert parameters(all_experts) - parameters(some_dense) == 2 * (expert_layer - 3 * 2048 * 6144)
    assert parse_config(QWEN3_30B_A3B | {"decoder_sparse_step": 2}).expert_layers == 24

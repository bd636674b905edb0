"""Parameters, KV bytes and pools against the published figures of the models."""

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.cards import T4
from loadtest.model.kv_cache import KvCacheGroup, kv_bytes_per_token, kv_layout
from loadtest.model.memory import MemoryBudget, divide_budget
from loadtest.model.quantisation import UnsupportedModelError
from loadtest.model.startup import CURRENT_VERSION, VllmVersion, activation_bytes, startup_overheads
from loadtest.model.weights import parameter_count, pipeline_stages, rotary_bytes, step_bytes, weights_bytes
from loadtest.units import GIB
from testing.model_configs import (
    DEEPSEEK_V2_LITE,
    GEMMA2_27B,
    GPT_OSS_20B,
    LLAMA31_8B,
    MIXTRAL_8X7B,
    QWEN3_1_7B,
    QWEN3_30B_A3B,
    QWEN3_NEXT,
    QWEN15_1_8B,
)


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
    assert parameter_count(shape) == count
    assert kv_bytes_per_token(shape) == kv_bytes


def test_weights_are_those_of_the_reference_comparison() -> None:
    assert weights_bytes(parse_config(QWEN3_1_7B), dtype="float16") / GIB == pytest.approx(3.205, abs=5e-4)
    assert weights_bytes(parse_config(QWEN15_1_8B), dtype="float16") / GIB == pytest.approx(3.421, abs=5e-4)
    assert weights_bytes(parse_config(QWEN3_1_7B), dtype="float32") == 4 * 1_720_574_976


def test_a_decode_step_reads_no_input_embeddings_unless_they_are_tied() -> None:
    read = [step_bytes(parse_config(config), dtype="float16") for config in (QWEN3_1_7B, QWEN15_1_8B)]
    ceilings = [320e9 / count for count in read]
    assert ceilings == pytest.approx([93.0, 105.0], abs=0.5)  # tokens/s of one request on a T4


def test_tensor_parallelism_splits_weights_and_kv_heads_down_to_one() -> None:
    shape = parse_config(LLAMA31_8B)
    # vLLM logs 7.51 and 3.77 GiB for this model on two and four H100s.
    assert weights_bytes(shape, tp=2) / GIB == pytest.approx(7.51, abs=0.04)
    assert weights_bytes(shape, tp=4) / GIB == pytest.approx(3.77, abs=0.04)
    assert [kv_bytes_per_token(shape, tp=tp) // 1024 for tp in (1, 2, 8, 16)] == [128, 64, 16, 16]


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
    [((0, 19, 0), 1024, 1.89), ((0, 15, 1), 256, 1.19)],
    ids=["vLLM 0.19 on an H100, logged", "vLLM 0.15 on an A100, what 19.28 GiB of pool leave"],
)
def test_the_sampling_peak_follows_the_sampler_of_the_version(
    version: VllmVersion, seqs: int, logged_gib: float
) -> None:
    shape = parse_config(LLAMA31_8B)
    peak = activation_bytes(shape, max_num_seqs=seqs, max_num_batched_tokens=8192, version=version)
    assert peak / GIB == pytest.approx(logged_gib, abs=0.02)


def test_with_few_slots_the_forward_is_the_activation_peak() -> None:
    shape = parse_config(LLAMA31_8B)
    assert activation_bytes(shape, max_num_seqs=8, max_num_batched_tokens=8192) == 8192 * 59392 * 2
    # Of Mixtral on two H100 vLLM 0.19 logs 1.21 GiB, most of it the experts' workspace.
    mixtral = parse_config(MIXTRAL_8X7B)
    peak = activation_bytes(mixtral, max_num_seqs=1024, max_num_batched_tokens=8192, version=(0, 19, 0), tp=2)
    assert peak / GIB == pytest.approx(1.21, rel=0.1)


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


def test_pipeline_stages_share_layers_as_vllm_does() -> None:
    assert [len(stage) for stage in pipeline_stages(32, 4)] == [8, 8, 8, 8]
    assert [len(stage) for stage in pipeline_stages(61, 4)] == [15, 15, 16, 15]
    shape = parse_config(LLAMA31_8B)
    # vLLM 0.19 logs 7.51 GiB on the first of two stages, and 4.26 on the first of four.
    assert weights_bytes(shape, pp=2) / GIB == pytest.approx(7.51, abs=0.04)
    assert weights_bytes(shape, pp=4) / GIB == pytest.approx(4.26, abs=0.04)


FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
W8A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
    "ignore": ["lm_head"],
}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
LINEAR = 8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096
"""Parameters of Llama-3.1-8B's quantisable matrices."""


@pytest.mark.parametrize(
    ("declared", "bytes_a_weight"),
    [
        (FP8_BLOCKS, 1 + 4 / 128**2),
        (AWQ, 0.5 + 2.5 / 128),
        (GPTQ, 0.5 + 2.5 / 128),
        (W8A8, 1.0),
        (NVFP4, 0.5 + 1 / 16),
    ],
    ids=["FP8 in blocks", "AWQ", "GPTQ", "INT8 by channel", "NVFP4"],
)
def test_quantised_weights_count_their_scales_and_leave_the_vocabulary_alone(
    declared: dict[str, object], bytes_a_weight: float
) -> None:
    shape = parse_config(LLAMA31_8B | {"quantization_config": declared})
    expected = LINEAR * bytes_a_weight + 2 * (2 * 128256 * 4096 + 65 * 4096)
    assert weights_bytes(shape) == pytest.approx(expected, rel=1.5e-3)


def test_online_fp8_takes_what_vllm_logs() -> None:
    shape = parse_config(LLAMA31_8B, quantization="fp8")
    found = weights_bytes(shape) + rotary_bytes(shape)
    assert found / GIB == pytest.approx(8.49, abs=0.005)  # vLLM 0.19 on an H100


def test_a_checkpoint_with_scales_for_the_cache_says_so() -> None:
    scheme = {**W8A8, "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    found = parse_config(LLAMA31_8B | {"quantization_config": scheme}).quantisation
    assert found is not None
    assert found.fp8_cache
    plain = parse_config(LLAMA31_8B | {"quantization_config": W8A8}).quantisation
    assert plain is not None
    assert not plain.fp8_cache


def test_a_window_as_long_as_the_context_is_full_attention() -> None:
    phi = LLAMA31_8B | {"model_type": "phi3", "sliding_window": 262144}
    assert kv_bytes_per_token(parse_config(phi)) == 128 * 1024
    assert kv_bytes_per_token(parse_config(phi | {"sliding_window": 2047})) is None


def test_modules_that_are_listed_keep_their_type() -> None:
    all_quantised = parse_config(LLAMA31_8B | {"quantization_config": FP8_BLOCKS})
    without_first = {**FP8_BLOCKS, "modules_to_not_convert": ["model.layers.0"]}
    some = parse_config(LLAMA31_8B | {"quantization_config": without_first})
    assert weights_bytes(some) - weights_bytes(all_quantised) == pytest.approx(LINEAR / 32, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_lora_rank": 512}, "multi-head latent attention"),
        ({"index_topk": 2048}, "sparse attention index"),
        (
            {"model_type": "llama", "sliding_window": 4096, "use_sliding_window": None},
            "a sliding window that models of its type do not have",
        ),
        ({"layer_types": ["hash_attention"] * 28}, "'hash_attention'"),
        ({"quantization_config": {"quant_method": "quark"}}, "'quark'"),
        ({"quantization_config": {"quant_method": "gptq", "dynamic": {"-:a": {}}}}, "dynamic"),
        ({"model_type": "strange_vl", "text_config": {}}, "multimodal model type 'strange_vl'"),
        ({"model_type": "mamba"}, "'mamba'"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"num_hidden_layers": "28"}, "whole number above 0"),
        ({"num_hidden_layers": True}, "whole number above 0"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse_config(QWEN3_1_7B | changes)


def test_a_type_that_is_no_float_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="'float8_e4m3fn'"):
        weights_bytes(parse_config(QWEN3_1_7B | {"torch_dtype": "float8_e4m3fn"}))


def test_layers_left_dense_among_experts_are_counted_as_dense() -> None:
    some_dense = parse_config(QWEN3_30B_A3B | {"mlp_only_layers": [0, 5]})
    expert_layer = 2048 * 128 + 128 * 3 * 2048 * 768
    missing = parameter_count(parse_config(QWEN3_30B_A3B)) - parameter_count(some_dense)
    assert missing == 2 * (expert_layer - 3 * 2048 * 6144)
    every_other = parse_config(QWEN3_30B_A3B | {"decoder_sparse_step": 2})
    assert sum(any(".experts." in one.name for one in layer.tensors) for layer in every_other.layers) == 24

"""Parameters and bytes of weights, against checkpoints and published logs."""

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.kv_cache import kv_bytes_per_token
from loadtest.model.layers.tensors import ExpertPlacement
from loadtest.model.weights import (
    lora_bytes,
    parameter_count,
    pipeline_stages,
    step_bytes,
    weights_bytes,
)
from loadtest.units import GIB
from testing.inputs.model_configs import (
    LLAMA31_8B,
    MIXTRAL_8X7B,
    QWEN3_1_7B,
    QWEN3_30B_A3B,
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


def test_pipeline_stages_share_layers_as_vllm_does() -> None:
    assert [len(stage) for stage in pipeline_stages(32, 4)] == [8, 8, 8, 8]
    assert [len(stage) for stage in pipeline_stages(61, 4)] == [15, 15, 16, 15]
    shape = parse_config(LLAMA31_8B)
    # vLLM 0.19 logs 7.51 GiB on the first of two stages, and 4.26 on the first of four.
    assert weights_bytes(shape, pp=2) / GIB == pytest.approx(7.51, abs=0.04)
    assert weights_bytes(shape, pp=4) / GIB == pytest.approx(4.26, abs=0.04)


def test_layers_left_dense_among_experts_are_counted_as_dense() -> None:
    some_dense = parse_config(QWEN3_30B_A3B | {"mlp_only_layers": [0, 5]})
    expert_layer = 2048 * 128 + 128 * 3 * 2048 * 768
    missing = parameter_count(parse_config(QWEN3_30B_A3B)) - parameter_count(some_dense)
    assert missing == 2 * (expert_layer - 3 * 2048 * 6144)
    every_other = parse_config(QWEN3_30B_A3B | {"decoder_sparse_step": 2})
    assert sum(any(".experts." in one.name for one in layer.tensors) for layer in every_other.layers) == 24


def test_buffers_for_adapters_are_as_large_as_logged() -> None:
    # vLLM 0.8.2 with two adapters of rank 16 loaded 15.1749 GiB, and 14.9889 without; it had buffers for 256
    # more tokens of the vocabulary, which later versions do not have.
    found = lora_bytes(parse_config(LLAMA31_8B), max_loras=2, max_lora_rank=16)
    assert found / GIB == pytest.approx(15.1749 - 14.9889, rel=0.1)


def test_only_the_side_of_an_adapter_that_the_matrix_is_split_along_is_split() -> None:
    shape = parse_config(LLAMA31_8B)
    whole, half = (lora_bytes(shape, max_loras=1, max_lora_rank=8, tp=tp) for tp in (1, 2))
    layer = 3 * 4096 + 4096 + 2 * 1024 + 2 * 4096 + 2 * 4096 + 2 * 14336 + 14336 + 4096
    split = 4096 + 2 * 1024 + 4096 + 2 * 14336 + 14336
    assert whole - half == 32 * split / 2 * 8 * 2
    assert whole > 32 * layer * 8 * 2


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_engines_of_one_server_divide_the_experts_and_copy_the_rest(expert_parallel: bool) -> None:
    shape = parse_config(QWEN3_30B_A3B)
    placed = ExpertPlacement(data_parallel=4, expert_parallel=expert_parallel)
    experts = sum(tensor.parameters for layer in shape.layers for tensor in layer.tensors if tensor.expert)
    rest = parameter_count(shape) - experts
    assert weights_bytes(shape, experts=placed) == 2 * (rest + experts // 4)
    assert weights_bytes(shape, tp=2, experts=placed) < rest + 2 * experts / 8 + GIB

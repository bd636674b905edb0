"""Quantised weights: their scales, what stays whole, and what is not understood."""

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.quantisation import UnsupportedModelError
from loadtest.model.weights import rotary_bytes, weights_bytes
from loadtest.units import GIB
from testing.inputs.model_configs import (
    LLAMA31_8B,
    QWEN3_1_7B,
)

FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


W8A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
    "ignore": ["lm_head"],
}


NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}


def quark(dtype: str, qscheme: str) -> dict[str, object]:
    weight = {"dtype": dtype, "qscheme": qscheme}
    return {
        "quant_method": "quark",
        "global_quant_config": {"weight": weight},
        "layer_quant_config": {"*k_proj": {"weight": weight}},
        "exclude": ["lm_head"],
    }


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
        (quark("fp8_e4m3", "per_tensor"), 1.0),
        (quark("fp4", "per_group"), 0.5 + 1 / 32),
    ],
    ids=["FP8 in blocks", "AWQ", "GPTQ", "INT8 by channel", "NVFP4", "FP8 by Quark", "MXFP4 by Quark"],
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
        ({"quantization_config": {"quant_method": "torchao"}}, "'torchao'"),
        ({"quantization_config": quark("int4", "per_group")}, "'int4'"),
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

"""The facts of config.json for the models of published measurements. Knows no measurement."""

from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.quantisation import UnsupportedModelError


def _llama(
    layers: int, hidden: int, mlp: int, heads: int, vocabulary: int, **more: object
) -> dict[str, object]:
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        **more,
    }


def _qwen(layers: int, hidden: int, mlp: int, heads: tuple[int, int], **more: object) -> dict[str, object]:
    return {
        "model_type": "qwen2",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": 151936 if hidden < 3000 else 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        **more,
    }


def _mixtral(layers: int, hidden: int, mlp: int, heads: int) -> dict[str, object]:
    return {
        "model_type": "mixtral",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }


def _gpt_oss(layers: int, experts: int) -> dict[str, object]:
    return {
        "model_type": "gpt_oss",
        "num_hidden_layers": layers,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "mxfp4"},
    }


_LLAMA3_70B = _llama(80, 8192, 28672, 64, 128256)
_LLAMA3_8B = _llama(32, 4096, 14336, 32, 128256)
_MIXTRAL_22B = _mixtral(56, 6144, 16384, 48)
_QWEN2_7B = _qwen(28, 3584, 18944, (28, 4))
_QWEN3: dict[str, object] = {
    "model_type": "qwen3",
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
_CONFIGS: dict[str, dict[str, object]] = {
    "Llama-2-70b-hf": _llama(80, 8192, 28672, 64, 32000),
    "Llama-3.1-70B-Instruct": _LLAMA3_70B,
    "Meta-Llama-3-70B": _LLAMA3_70B,
    "Llama-3.1-8B-Instruct": _LLAMA3_8B,
    "Meta-Llama-3-8B": _LLAMA3_8B,
    "CodeLlama-34b-Instruct-hf": _llama(48, 8192, 22016, 64, 32000),
    "Mistral-7B-v0.1": _llama(32, 4096, 14336, 32, 32000),
    "Mixtral-8x7B-v0.1": _mixtral(32, 4096, 14336, 32),
    "Mixtral-8x22B-v0.1": _MIXTRAL_22B,
    "Mixtral-8x22B-Instruct-v0.1": _MIXTRAL_22B,
    "Llama-4-Scout-17B-16E-Instruct-FP8-dynamic": {
        **_llama(48, 5120, 8192, 40, 202048),
        "model_type": "llama4_text",
        "intermediate_size_mlp": 16384,
        "head_dim": 128,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                }
            },
            "ignore": ["re:.*lm_head", "re:.*self_attn", "re:.*router"],
        },
    },
    "Qwen2.5-0.5B-Instruct": _qwen(24, 896, 4864, (14, 2), tie_word_embeddings=True),
    "Qwen2-7B-Instruct": _QWEN2_7B,
    "Qwen2-7B": _QWEN2_7B,
    "Qwen2.5-32B": _qwen(64, 5120, 27648, (40, 8)),
    "Qwen3-1.7B": _qwen(28, 2048, 6144, (16, 8), tie_word_embeddings=True, **_QWEN3),
    "Qwen3-14B": _qwen(40, 5120, 17408, (40, 8), **_QWEN3),
    "Qwen3-32B": _qwen(64, 5120, 25600, (64, 8), **_QWEN3),
    "gemma-3-4b-it": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
        "rope_local_base_freq": 10000,
    },
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "MiniMax-M2.5": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 62,
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "moe_intermediate_size": 1536,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 200064,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 196608,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
}
"""By the last part of the model's name. MiniMax-M2.5 has the tensors of a Qwen3 with experts."""


def config_of(model: str) -> dict[str, object]:
    """Returns the model's config.json. Raises UnsupportedModelError if it is not in the table."""
    config = _CONFIGS.get(model.rpartition("/")[2])
    if config is None:
        raise UnsupportedModelError(f"the config of {model} is not in this benchmark's table")
    return {"torch_dtype": "bfloat16", **config}


def shape_of(model: str) -> ModelShape:
    """Returns the model's shape. Raises UnsupportedModelError if its config is not in the table."""
    return parse_config(config_of(model))

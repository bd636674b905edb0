"""The families of models that are known, one row for each model_type. Knows no GPU and no bytes."""

import functools
from dataclasses import replace

from loadtest.model.layers.family import ModelFamily
from loadtest.model.layers.gemma3n import alternating_mlp, layer_embeddings, sharing_attention
from loadtest.model.layers.mixers import (
    all_but_each,
    bamba_mixer,
    even_layers,
    every_layer,
    falcon_attention,
    falcon_mixer,
    granite_hybrid,
    grouped_attention,
    jamba_mixer,
    last_layers,
    latent_attention,
    nemotron_mixer,
    qwen_hybrid,
    sparse_latent_attention,
)
from loadtest.model.layers.mlps import (
    deepseek_experts,
    dense_mlp,
    gpt_oss_experts,
    granite_experts,
    halved_mlp,
    jamba_experts,
    llama4_experts,
    mixtral_experts,
    nemotron_experts,
    qwen_experts,
)

_LLAMA_DEFAULTS: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_GEMMA3_DEFAULTS: dict[str, object] = {
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 262208,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
}
_family = functools.partial(ModelFamily, mixer=grouped_attention, mlp=dense_mlp)
_LLAMA = _family(mlp_bias="mlp_bias", defaults=_LLAMA_DEFAULTS)
_MISTRAL = _family(
    slides=every_layer,
    defaults=_LLAMA_DEFAULTS | {"intermediate_size": 14336, "num_key_value_heads": 8},
)
_QWEN2 = _family(qkv_bias=True, o_bias=False, slides=last_layers)
_QWEN3 = _family(qk_norm="head", slides=last_layers)
_QWEN3_MOE = _family(mlp=qwen_experts, qk_norm="head", slides=last_layers)
_DEEPSEEK = _family(mixer=latent_attention, mlp=deepseek_experts, mtp="replicated")
_DEEPSEEK_SPARSE = replace(_DEEPSEEK, mixer=sparse_latent_attention)
_QWEN35 = _family(mixer=qwen_hybrid, qk_norm="head", gated_query=True, mtp="sharded")
_QWEN35_MOE = replace(_QWEN35, mlp=qwen_experts)

_GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
_GPT2 = _family(
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    gated=False,
    norm_bias=True,
    tied=True,
    learned_positions=0,
    aliases=_GPT2_ALIASES,
    defaults={"expansion_ratio": 4, "position_embedding_type": "learned"},
)

FAMILIES: dict[str, ModelFamily] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "ministral3": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gemma": _family(tied=True, defaults={"head_dim": 256}),
    "gemma2": _family(
        norms=4, tied=True, slides=even_layers, defaults={"head_dim": 256, "sliding_window": 4096}
    ),
    "gemma3_text": _family(
        norms=4, qk_norm="head", tied=True, slides=all_but_each(6), defaults=_GEMMA3_DEFAULTS
    ),
    "gemma3n_text": _family(
        mixer=sharing_attention,
        mlp=alternating_mlp,
        embeddings=layer_embeddings,
        norms=4,
        qk_norm="head",
        tied=True,
        slides=all_but_each(5),
        defaults={"head_dim": 256, "sliding_window": 512},
    ),
    "phi": _family(
        qkv_bias=True, o_bias=True, mlp_bias=True, head_bias=True, gated=False, norms=1, norm_bias=True
    ),
    "phi3": _family(slides=every_layer),
    "granite": _LLAMA,
    "smollm3": _family(mlp_bias="mlp_bias", tied=True, slides=None),
    "seed_oss": _family(qkv_bias="attention_bias", o_bias="attention_out_bias", mlp_bias="mlp_bias"),
    "ernie4_5": _family(qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True),
    "olmo": _family(norm_weight=False, norms=0),
    "olmo2": _family(qk_norm="full"),
    "olmo3": _family(qk_norm="full", slides=all_but_each(4)),
    "starcoder2": _family(
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        gated=False,
        norm_bias=True,
        slides=every_layer,
        tied=True,
        defaults={"use_bias": True},
    ),
    "stablelm": _family(qkv_bias="use_qkv_bias", o_bias=False, norm_bias=True),
    "nemotron": _family(mlp_bias="mlp_bias", gated=False, norm_bias=True),
    "cohere": _family(norms=1, qk_norm="full", qk_norm_key="use_qk_norm", tied=True),
    "cohere2": _family(norms=1, slides=all_but_each(4), tied=True),
    "glm": _family(o_bias=False, defaults={"attention_bias": True}),
    "glm4": _family(o_bias=False, norms=4, defaults={"attention_bias": True}),
    "exaone4": _family(qk_norm="head", slides=all_but_each(4)),
    "mixtral": _family(
        mlp=mixtral_experts,
        slides=every_layer,
        defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": _family(
        qkv_bias="qkv_bias", o_bias=False, mlp=qwen_experts, slides=last_layers, defaults={"qkv_bias": True}
    ),
    "qwen3_moe": _QWEN3_MOE,
    "olmoe": _family(mlp=mixtral_experts, qk_norm="full"),
    "minimax_m2": _family(
        mlp=mixtral_experts,
        qk_norm="full",
        qk_norm_key="use_qk_norm",
        defaults={"use_routing_bias": True, "use_qk_norm": True},
    ),
    "granitemoe": _family(mlp=granite_experts),
    "phimoe": _family(
        mlp=mixtral_experts,
        norm_bias=True,
        head_bias="lm_head_bias",
        slides=every_layer,
    ),
    "gpt_oss": _family(qkv_bias=True, o_bias=True, mlp=gpt_oss_experts, sinks=True, slides=even_layers),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": _family(
        o_bias=False, mlp=deepseek_experts, qk_norm="head", qk_norm_key="use_qk_norm", mtp="replicated"
    ),
    "llama4_text": _family(mlp=llama4_experts),
    "qwen3_next": replace(_QWEN35_MOE, defaults={"num_nextn_predict_layers": 1}),
    "qwen3_5_text": _QWEN35,
    "qwen3_5_moe_text": _QWEN35_MOE,
    "falcon_h1": _family(mixer=falcon_mixer, mlp_bias="mlp_bias"),
    "jamba": _family(mixer=jamba_mixer, mlp=jamba_experts),
    "bamba": _family(mixer=bamba_mixer, mlp_bias="mlp_bias"),
    "granitemoehybrid": _family(mixer=granite_hybrid, mlp=granite_experts),
    "nemotron_h": _family(
        mixer=nemotron_mixer,
        mlp=nemotron_experts,
        mlp_bias="mlp_bias",
        gated=False,
        norms=1,
        aliases={"head_dim": "attention_head_dim"},
        defaults={"position_embedding_type": "none"},
    ),
    "glm4_moe_lite": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK_SPARSE,
    "glm_moe_dsa": _DEEPSEEK_SPARSE,
    "dots1": _family(mlp=deepseek_experts, qk_norm="head"),
    "ernie4_5_moe": _family(
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        mlp=deepseek_experts,
        tied=True,
        mtp="replicated",
        aliases={
            "n_routed_experts": "moe_num_experts",
            "n_shared_experts": "moe_num_shared_experts",
            "num_experts_per_tok": "moe_k",
            "first_k_dense_replace": "moe_layer_start_index",
            "moe_layer_freq": "moe_layer_interval",
        },
    ),
    "gpt2": _GPT2,
    "gpt_bigcode": replace(_GPT2, defaults={**_GPT2.defaults, "multi_query": True}),
    "gptj": _family(
        qkv_bias=False,
        o_bias=False,
        mlp_bias=True,
        head_bias=True,
        gated=False,
        norms=1,
        norm_bias=True,
        aliases=_GPT2_ALIASES,
        defaults={"expansion_ratio": 4},
    ),
    "gpt_neox": _family(
        qkv_bias="attention_bias",
        mlp_bias=True,
        gated=False,
        norm_bias=True,
        aliases={"partial_rotary_factor": "rotary_pct"},
        defaults={"attention_bias": True, "partial_rotary_factor": 0.25},
    ),
    "opt": _family(
        qkv_bias="enable_bias",
        o_bias="enable_bias",
        mlp_bias="enable_bias",
        gated=False,
        norm_bias=True,
        tied=True,
        learned_positions=2,
        aliases={"intermediate_size": "ffn_dim"},
        defaults={"enable_bias": True, "position_embedding_type": "learned"},
    ),
    "mpt": _family(
        qkv_bias=False,
        o_bias=False,
        gated=False,
        tied=True,
        aliases={
            "hidden_size": "d_model",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
            "max_position_embeddings": "max_seq_len",
        },
        defaults={"expansion_ratio": 4, "position_embedding_type": "alibi"},
    ),
    "falcon": _family(
        mixer=falcon_attention,
        qkv_bias="bias",
        o_bias="bias",
        mlp_bias="bias",
        gated=False,
        norms=1,
        norm_bias=True,
        tied=True,
        aliases={"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size"},
        defaults={"expansion_ratio": 4, "multi_query": True, "parallel_attn": True},
    ),
    "bloom": _family(
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gated=False,
        norm_bias=True,
        tied=True,
        embedding_norm=True,
        aliases={
            "hidden_size": "n_embed",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
            "max_position_embeddings": "seq_length",
        },
        defaults={"expansion_ratio": 4, "position_embedding_type": "alibi"},
    ),
    "internlm2": _family(qkv_bias="bias", o_bias="bias"),
    "baichuan": _family(
        qkv_bias=False, o_bias=False, aliases={"max_position_embeddings": "model_max_length"}
    ),
    "exaone": _family(aliases={"num_hidden_layers": "num_layers"}),
    "chatglm": _family(
        qkv_bias="add_qkv_bias",
        o_bias="add_bias_linear",
        mlp_bias="add_bias_linear",
        aliases={
            "num_hidden_layers": "num_layers",
            "intermediate_size": "ffn_hidden_size",
            "num_key_value_heads": "multi_query_group_num",
            "head_dim": "kv_channels",
            "vocab_size": "padded_vocab_size",
            "max_position_embeddings": "seq_length",
        },
        defaults={"partial_rotary_factor": 0.5},
    ),
    "qwen": _family(qkv_bias=True, o_bias=False, mlp=halved_mlp, aliases={"head_dim": "kv_channels"}),
}

# Types of multimodal models, each with the type of its text part for configs that do not state it.
WRAPPERS = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "mistral3": "mistral",
    "llava": "llama",
    "llava_next": "llama",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
    "llama4": "llama4_text",
    "kimi_vl": "deepseek_v3",
    "kimi_k25": "kimi_k2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
TEXT_ALIASES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}

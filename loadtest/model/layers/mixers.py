"""Builds the mixer of a layer (its attention or recurrent part): tensors and caches. Knows no GPU, no bytes.

There is one builder for each kind of mixer; `architectures` says which family uses which.
"""

from collections.abc import Callable
from typing import Literal

from loadtest.model.layers.family import ConfigKeys, ModelFamily, nemotron_layer
from loadtest.model.layers.tensors import (
    ANY_SHARDS,
    AttentionCache,
    Cache,
    StateCache,
    Tensor,
    column_parallel,
    norm_tensors,
    row_parallel,
)
from loadtest.model.quantisation import UnsupportedModelError


def grouped_attention(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds multi-head, grouped-query or multi-query attention over all tokens, a window or a chunk."""
    heads, kv_heads, dim, hidden = keys.heads, keys.kv_heads, keys.head_dim, keys.hidden
    bias = keys.bias(family.qkv_bias)
    query = heads * dim * (2 if family.gated_query else 1)
    tensors = [
        *column_parallel("self_attn.q_proj", query, hidden, bias=bias),
        *column_parallel("self_attn.k_proj", kv_heads * dim, hidden, bias=bias, shards=kv_heads),
        *column_parallel("self_attn.v_proj", kv_heads * dim, hidden, bias=bias, shards=kv_heads),
        *row_parallel("self_attn.o_proj", hidden, heads * dim, bias=keys.bias(family.o_bias)),
    ]
    if family.qk_norm and (not family.qk_norm_key or keys.flag(family.qk_norm_key)):
        size = 2 * dim if family.qk_norm == "head" else (heads + kv_heads) * dim
        tensors += norm_tensors("self_attn.qk_norm", size, 1)
    if family.sinks:
        tensors.append(Tensor(name="self_attn.sinks", rows=heads, shards=ANY_SHARDS))
    kind, span = attention_span(keys, family, layer)
    return tensors, [AttentionCache(kind=kind, heads=kv_heads, width=2 * dim, span=span)]


def falcon_attention(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds the attention of a Falcon layer, with the second norm that some of them have. The MLP runs
    beside attention, on the same norm or (num_ln_in_parallel_attn) on one of its own."""
    tensors, caches = grouped_attention(keys, family, layer)
    second = not keys.flag("parallel_attn")
    if keys.flag("new_decoder_architecture"):
        second = keys.integer("num_ln_in_parallel_attn", default=2) == 2
    return [*tensors, *norm_tensors("second_layernorm", keys.hidden, int(second), bias=True)], caches


def latent_attention(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds multi-head latent attention (DeepSeek). Every GPU caches one latent vector per token."""
    heads, hidden = keys.heads, keys.hidden
    rope, rank = keys.integer("qk_rope_head_dim"), keys.integer("kv_lora_rank")
    nope, value = keys.integer("qk_nope_head_dim"), keys.integer("v_head_dim")
    low_rank = keys.integer("q_lora_rank", default=0)
    query = heads * (nope + rope)
    if low_rank:
        tensors = [
            *column_parallel("self_attn.q_a_proj", low_rank, hidden, shards=1),
            *norm_tensors("self_attn.q_a_layernorm", low_rank, 1),
            *column_parallel("self_attn.q_b_proj", query, low_rank),
        ]
    else:
        tensors = column_parallel("self_attn.q_proj", query, hidden)
    tensors += [
        *column_parallel("self_attn.kv_a_proj_with_mqa", rank + rope, hidden, shards=1),
        *norm_tensors("self_attn.kv_a_layernorm", rank, 1),
        *column_parallel("self_attn.kv_b_proj", heads * (nope + value), rank),
        *row_parallel("self_attn.o_proj", hidden, heads * value, bias=keys.flag("attention_bias")),
    ]
    return tensors, [AttentionCache(kind="mla", heads=1, width=rank + rope)]


def sparse_latent_attention(
    keys: ConfigKeys, family: ModelFamily, layer: int
) -> tuple[list[Tensor], list[Cache]]:
    """Builds latent attention to few tokens (DeepSeek V3.2): an indexer chooses them, with keys of its own in
    the cache. In 8 bits both are packed with their scales (vLLM's fp8_ds_mla and DeepseekV32IndexerCache)."""
    tensors, _ = latent_attention(keys, family, layer)
    rope, rank = keys.integer("qk_rope_head_dim"), keys.integer("kv_lora_rank")
    sizes = 2 * (rank + rope), rank + 4 * (rank // 128) + 2 * rope
    latent = AttentionCache(kind="mla", heads=1, width=rank + rope, packed_bytes=sizes)
    if not _has_indexer(keys, layer):
        return tensors, [latent]
    heads, dim = keys.integer("index_n_heads"), keys.integer("index_head_dim")
    tensors += [
        *column_parallel("self_attn.indexer.wq_b", heads * dim, keys.integer("q_lora_rank"), shards=1),
        Tensor(name="self_attn.indexer.wk_weights_proj", rows=dim + heads, columns=keys.hidden),
        *norm_tensors("self_attn.indexer.k_norm", dim, 1, bias=True),
    ]
    stored = dim + 4 * (dim // 128)
    index = AttentionCache(kind="mla", heads=1, width=dim, packed_bytes=(stored, stored))
    return tensors, [latent, index]


def _has_indexer(keys: ConfigKeys, layer: int) -> bool:
    """Whether the layer chooses tokens itself, and does not use the choice of the layer before."""
    pattern = keys.get("index_topk_pattern")
    if isinstance(pattern, str) and layer < len(pattern):
        return pattern[layer] != "S"
    offset = keys.integer("index_skip_topk_offset", default=2)
    return max(layer - offset + 1, 0) % keys.integer("index_topk_freq", default=1) == 0


def attention_span(
    keys: ConfigKeys, family: ModelFamily, layer: int
) -> tuple[Literal["full", "window", "chunk"], int]:
    """Returns a layer's kind of attention, and the length of its window or chunk in tokens (0 if full)."""
    kinds = keys.items("layer_types")
    if kinds:
        kind = str(kinds[layer])
    elif family.slides and keys.get("sliding_window") and keys.flag("use_sliding_window", default=True):
        kind = "sliding_attention" if family.slides(keys, layer) else "full_attention"
    elif keys.get("attention_chunk_size") is not None:
        kind = "chunked_attention" if _has_rotary_positions(keys, layer) else "full_attention"
    else:
        kind = "full_attention"
    match kind:
        case "full_attention" | "attention":
            return "full", 0
        case "sliding_attention":
            span = keys.integer("sliding_window")
            reaches_all = span >= keys.integer("max_position_embeddings", default=span + 1)
            return ("full", 0) if reaches_all else ("window", span)
        case "chunked_attention":
            return "chunk", keys.integer("attention_chunk_size")
    raise UnsupportedModelError(f"This config.json has layers of the kind {kind!r}, which is not supported.")


def _has_rotary_positions(keys: ConfigKeys, layer: int) -> bool:
    """Whether a layer of Llama 4 has rotary embeddings (RoPE). A layer with RoPE attends to a chunk; a layer
    without RoPE attends to all tokens."""
    listed = keys.items("no_rope_layers")
    return (
        bool(listed[layer]) if listed else (layer + 1) % keys.integer("no_rope_layer_interval", default=4) > 0
    )


def every_layer(keys: ConfigKeys, layer: int) -> bool:
    """Returns True: in this family every layer has a sliding window."""
    return True


def even_layers(keys: ConfigKeys, layer: int) -> bool:
    """Whether the layer has a sliding window: layers 0, 2, 4, ... have one."""
    return layer % 2 == 0


def all_but_each(period: int) -> Callable[[ConfigKeys, int], bool]:
    """Returns a function that says whether a layer has a sliding window. Every layer has one except each
    `period`-th layer. If the config has sliding_window_pattern, it replaces `period`."""

    def slides(keys: ConfigKeys, layer: int) -> bool:
        stated = keys.get("sliding_window_pattern")
        return (layer + 1) % (stated if isinstance(stated, int) else period) > 0

    return slides


def last_layers(keys: ConfigKeys, layer: int) -> bool:
    """Whether the layer has a sliding window (Qwen). If use_sliding_window is true, the layers from number
    max_window_layers on have one; if it is false, no layer has one."""
    return keys.flag("use_sliding_window") and layer >= keys.integer("max_window_layers", default=28)


def _delta_net(keys: ConfigKeys) -> tuple[list[Tensor], list[Cache]]:
    """Builds a gated delta net (Qwen3-Next, Qwen3.5). Its state has two parts: one matrix per value head, and
    the last inputs of a short convolution."""
    hidden = keys.hidden
    key_dim, value_dim = keys.integer("linear_key_head_dim"), keys.integer("linear_value_head_dim")
    key_heads, value_heads = keys.integer("linear_num_key_heads"), keys.integer("linear_num_value_heads")
    kernel = keys.integer("linear_conv_kernel_dim")
    mixed, value = 2 * key_heads * key_dim + value_heads * value_dim, value_heads * value_dim
    tensors = [
        *column_parallel("linear_attn.in_proj_qkvz", mixed + value, hidden),
        *column_parallel("linear_attn.in_proj_ba", 2 * value_heads, hidden),
        Tensor(name="linear_attn.conv1d", rows=mixed, columns=kernel, shards=ANY_SHARDS),
        Tensor(name="linear_attn.dt_bias", rows=2 * value_heads, shards=ANY_SHARDS),
        *norm_tensors("linear_attn.norm", value_dim, 1),
        *row_parallel("linear_attn.out_proj", hidden, value),
    ]
    dtype = str(keys.get("mamba_ssm_dtype") or "auto")
    recurrent = value_heads * value_dim * key_dim
    return tensors, [StateCache(channels=mixed, inputs=kernel - 1, recurrent=recurrent, dtype=dtype)]


def _mamba2(
    keys: ConfigKeys,
    *,
    width: int,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    kernel: int,
    bias: bool,
    norm: bool,
    dtype: str = "auto",
) -> tuple[list[Tensor], list[Cache]]:
    hidden, mixed = keys.hidden, width + 2 * groups * state
    tensors = [
        *column_parallel("mamba.in_proj", width + mixed + heads, hidden, bias=bias),
        Tensor(name="mamba.conv1d", rows=mixed, columns=kernel, shards=ANY_SHARDS),
        *([Tensor(name="mamba.conv1d.bias", rows=mixed, shards=ANY_SHARDS)] if _conv_bias(keys) else []),
        Tensor(name="mamba.A_D_dt_bias", rows=3 * heads, shards=ANY_SHARDS),
        *([Tensor(name="mamba.norm", rows=width, shards=ANY_SHARDS)] if norm else []),
        *row_parallel("mamba.out_proj", hidden, width, bias=bias),
    ]
    recurrent = heads * head_dim * state
    return tensors, [StateCache(channels=mixed, inputs=kernel - 1, recurrent=recurrent, dtype=dtype)]


def _conv_bias(keys: ConfigKeys) -> bool:
    return keys.flag("mamba_conv_bias", keys.flag("use_conv_bias", default=True))


def _bamba_mamba(keys: ConfigKeys, *, norm: bool = True) -> tuple[list[Tensor], list[Cache]]:
    return _mamba2(
        keys,
        width=keys.integer("mamba_d_ssm", default=keys.integer("mamba_expand", default=2) * keys.hidden),
        heads=keys.integer("mamba_n_heads"),
        head_dim=_mamba_head_dim(keys),
        groups=keys.integer("mamba_n_groups", default=1),
        state=keys.integer("mamba_d_state"),
        kernel=keys.integer("mamba_d_conv"),
        bias=keys.flag("mamba_proj_bias"),
        norm=norm,
    )


def _mamba_head_dim(keys: ConfigKeys) -> int:
    stated = keys.get("mamba_d_head")
    width = keys.integer("mamba_d_ssm", default=keys.integer("mamba_expand", default=2) * keys.hidden)
    return stated if isinstance(stated, int) else width // keys.integer("mamba_n_heads")


def qwen_hybrid(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds the mixer of a Qwen3-Next layer: attention or a gated delta net. layer_types says which; if
    absent, each full_attention_interval-th layer has attention and the others a gated delta net."""
    kinds = keys.items("layer_types")
    interval = keys.integer("full_attention_interval", default=4)
    is_linear = kinds[layer] == "linear_attention" if kinds else (layer + 1) % interval > 0
    return _delta_net(keys) if is_linear else grouped_attention(keys, family, layer)


def falcon_mixer(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds the mixer of a Falcon-H1 layer: attention and Mamba 2 side by side."""
    attention, keys_values = grouped_attention(keys, family, layer)
    mamba, state = _bamba_mamba(keys, norm=keys.flag("mamba_rms_norm"))
    return attention + mamba, keys_values + state


def bamba_mixer(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds the mixer of a Bamba layer: attention in the layers of attn_layer_indices, Mamba 2 in the
    others."""
    if layer in keys.items("attn_layer_indices"):
        return grouped_attention(keys, family, layer)
    return _bamba_mamba(keys)


def granite_hybrid(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds the mixer of a Granite 4 layer: Mamba 2 in layers listed as "mamba", attention in the others."""
    kinds = keys.items("layer_types") or keys.items("layers_block_type")
    if kinds and kinds[layer] == "mamba":
        return _bamba_mamba(keys)
    return grouped_attention(keys, family, layer)


def nemotron_mixer(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds the mixer of a Nemotron-H layer: attention, Mamba 2, or none in a layer that is an MLP."""
    kind = nemotron_layer(keys, layer)
    if kind == "*":
        return grouped_attention(keys, family, layer)
    if kind != "M":
        return [], []
    heads, head_dim = keys.integer("mamba_num_heads"), keys.integer("mamba_head_dim")
    return _mamba2(
        keys,
        width=heads * head_dim,
        heads=heads,
        head_dim=head_dim,
        groups=keys.integer("n_groups"),
        state=keys.integer("ssm_state_size"),
        kernel=keys.integer("conv_kernel"),
        bias=keys.flag("use_bias"),
        norm=True,
        dtype=str(keys.get("mamba_ssm_cache_dtype") or "float32"),
    )


def jamba_mixer(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds the mixer of a Jamba layer: attention in one layer of every attn_layer_period, Mamba 1 in
    the others."""
    period = keys.integer("attn_layer_period", default=8)
    offset = keys.integer("attn_layer_offset", default=0)
    if layer % period == offset:
        return grouped_attention(keys, family, layer)
    hidden, state = keys.hidden, keys.integer("mamba_d_state")
    width, kernel = keys.integer("mamba_expand") * hidden, keys.integer("mamba_d_conv")
    rank = keys.integer("mamba_dt_rank", default=-(-hidden // 16))
    bias = keys.flag("mamba_proj_bias")
    tensors = [
        *column_parallel("mamba.in_proj", 2 * width, hidden, bias=bias),
        Tensor(name="mamba.conv1d", rows=width, columns=kernel, shards=ANY_SHARDS),
        *([Tensor(name="mamba.conv1d.bias", rows=width, shards=ANY_SHARDS)] if _conv_bias(keys) else []),
        *column_parallel("mamba.x_proj", rank + 2 * state, width),
        *column_parallel("mamba.dt_proj", width, rank, bias=True),
        Tensor(name="mamba.A_log", rows=width, columns=state + 1, shards=ANY_SHARDS),
        *norm_tensors("mamba.norms", rank + 2 * state, 1),
        *row_parallel("mamba.out_proj", hidden, width, bias=bias),
    ]
    return tensors, [StateCache(channels=width, inputs=kernel - 1, recurrent=width * state, dtype="auto")]

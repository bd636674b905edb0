"""Builds the parts of Gemma 3n that no other family has, as tensors. Knows no GPU and no bytes."""

from loadtest.model.layers.family import ConfigKeys, ModelFamily
from loadtest.model.layers.mixers import grouped_attention
from loadtest.model.layers.mlps import gated_mlp
from loadtest.model.layers.tensors import (
    ANY_SHARDS,
    Cache,
    Tensor,
    column_parallel,
    norm_tensors,
    row_parallel,
)
from loadtest.model.quantisation import UnsupportedModelError


def sharing_attention(keys: ConfigKeys, family: ModelFamily, layer: int) -> tuple[list[Tensor], list[Cache]]:
    """Builds attention; the last num_kv_shared_layers layers use keys and values of layers before them."""
    tensors, caches = grouped_attention(keys, family, layer)
    if layer < keys.integer("num_hidden_layers") - keys.integer("num_kv_shared_layers", default=0):
        return tensors, caches
    own = [tensor for tensor in tensors if tensor.name.endswith(("q_proj", "o_proj"))]
    return [*own, *norm_tensors("self_attn.q_norm", keys.head_dim, 1)], []


def alternating_mlp(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLP of a layer with what is beside it: alternating updates (AltUp), a low-rank residual
    (LAuReL) and the layer's own embedding of each token."""
    widths, hidden = keys.items("intermediate_size"), keys.hidden
    width = widths[layer] if widths else keys.get("intermediate_size")
    if type(width) is not int:
        raise UnsupportedModelError("intermediate_size in config.json must be a whole number for each layer.")
    inputs, rank = keys.integer("altup_num_inputs", default=4), keys.integer("laurel_rank", default=64)
    own = keys.integer("hidden_size_per_layer_input", default=256)
    return [
        *gated_mlp("mlp", hidden, width),
        Tensor(name="altup.router", rows=inputs, columns=hidden),
        Tensor(name="altup.coefficients", rows=inputs**2 + inputs**3),
        *norm_tensors("altup.scale_and_norm", hidden, 2),
        *column_parallel("laurel.linear_left", rank, hidden),
        *row_parallel("laurel.linear_right", hidden, rank),
        *column_parallel("per_layer_input_gate", own, hidden, shards=1),
        *column_parallel("per_layer_projection", hidden, own, shards=1),
        *norm_tensors("laurel_and_per_layer_norms", hidden, 2),
    ]


def layer_embeddings(keys: ConfigKeys) -> list[Tensor]:
    """Builds the embeddings that each layer has of its own, and the projections of AltUp's inputs."""
    hidden, own = keys.hidden, keys.integer("hidden_size_per_layer_input", default=256)
    wide = keys.integer("num_hidden_layers") * own
    vocab = keys.integer("vocab_size_per_layer_input", default=262144)
    projections = 2 * (keys.integer("altup_num_inputs", default=4) - 1)
    return [
        Tensor(name="model.embed_tokens_per_layer", rows=vocab, columns=wide, shards=ANY_SHARDS),
        *column_parallel("model.per_layer_model_projection", wide, hidden),
        *norm_tensors("model.per_layer_projection_norm", own, 1),
        *column_parallel("model.altup_projections", hidden, hidden, count=projections),
    ]

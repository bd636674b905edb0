"""Reads a Hugging Face config.json into the tensors and KV caches of every layer. Knows no GPU and no bytes.

Counts the tensors that vLLM loads. A layout that is not in `families` is refused, never guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from loadtest.model.families import FAMILIES, TEXT_ALIASES, WRAPPERS
from loadtest.model.layers.family import ConfigKeys, ModelFamily
from loadtest.model.layers.mixers import latent_attention, sparse_latent_attention
from loadtest.model.layers.tensors import ANY_SHARDS, Layer, Tensor, column_parallel, norm_tensors
from loadtest.model.layers.vision import vision_tower
from loadtest.model.quantisation import Quantisation, UnsupportedModelError, parse_quantisation


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The parts of a config.json that decide memory use. Heads and layers are those of the whole model."""

    model_type: str
    num_heads: int
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str
    layers: tuple[Layer, ...]
    before: tuple[Tensor, ...]
    """Tensors before the first layer (first pipeline stage): embeddings and the vision tower, if there is
    one."""
    after: tuple[Tensor, ...]
    """Tensors after the last layer (last pipeline stage): norm and head. A tied head is not among them; with
    several stages the last one holds a copy of the embeddings."""
    tie_word_embeddings: bool
    mlp_width: int
    """Width of the widest dense MLP; 0 if all MLPs are experts."""
    expert_width: int
    """Width of the widest expert; 0 for a dense model."""
    experts_per_token: int
    """Routed experts per token; 0 for a dense model."""
    active_parameters: int
    """Parameters that are used for one token: all but the embeddings and the experts that are not chosen."""
    rotary_elements: int
    """Elements of the cosine and sine tables of rotary embeddings (RoPE), which vLLM keeps with the weights;
    0 for a model without them."""
    quantisation: Quantisation | None
    """How matrices are quantised; None if all weights have the type `dtype`."""
    workspace_bytes: int = 0
    """Bytes for each token of max_model_len that sparse attention's workspace takes at start-up."""
    mtp_layers: tuple[Layer, ...] = ()
    """Layers of multi-token prediction, which vLLM loads only for speculative decoding."""
    uncounted: tuple[str, ...] = ()
    """Names of parts that vLLM loads and that are not counted here."""

    @property
    def num_layers(self) -> int:
        """Number of layers of the whole model."""
        return len(self.layers)


def parse_config(
    config: Mapping[str, object],
    *,
    quantization: str | None = None,
    extra: Mapping[str, object] | None = None,
) -> ModelShape:
    """Builds a model's shape from its parsed config.json.

    `quantization` is the value of vLLM's flag --quantization. `extra` is a parsed hf_quant_config.json.
    Raises UnsupportedModelError for a layout that is not understood, and for a missing or malformed key.
    """
    text, family = _text_part(config)
    keys = ConfigKeys(text, family.defaults, family.aliases)
    layers = tuple(_layer(keys, family, index) for index in range(keys.integer("num_hidden_layers")))
    vision, uncounted = vision_tower(config, keys)
    tied = keys.flag("tie_word_embeddings", config.get("tie_word_embeddings", family.tied))
    hidden, vocab = keys.integer("hidden_size"), keys.integer("vocab_size")
    norm = norm_tensors("model.norm", hidden, 1, bias=family.norm_bias) if family.norm_weight else []
    head = column_parallel("lm_head", vocab, hidden, bias=keys.bias(family.head_bias))
    after = [*norm, *head] if not tied else norm
    declared = text.get("quantization_config") or config.get("quantization_config") or extra
    return ModelShape(
        model_type=keys.model_type,
        num_heads=keys.heads,
        hidden_size=hidden,
        vocab_size=vocab,
        max_position_embeddings=keys.integer("max_position_embeddings", default=2048),
        dtype=_dtype(text, config),
        layers=layers,
        before=(*_embeddings(keys, family), *vision),
        after=tuple(after),
        tie_word_embeddings=tied,
        mlp_width=_mlp_width(layers),
        expert_width=_expert_width(layers),
        experts_per_token=_experts_per_token(keys, layers),
        active_parameters=_active_parameters(keys, layers) + vocab * hidden,
        rotary_elements=_rotary_elements(keys),
        quantisation=parse_quantisation(declared, quantization),
        workspace_bytes=_workspace_bytes(keys),
        mtp_layers=_mtp_layers(keys, family),
        uncounted=uncounted,
    )


def _text_part(config: Mapping[str, object]) -> tuple[Mapping[str, object], ModelFamily]:
    outer = config.get("model_type")
    text, inner = config, outer
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        if outer not in WRAPPERS:
            raise UnsupportedModelError(
                f"The multimodal model type {outer!r} (a nested text_config) is not supported: known are "
                f"{', '.join(sorted(WRAPPERS))}."
            )
        inner = nested.get("model_type") or WRAPPERS[str(outer)]
        text = {**nested, "model_type": TEXT_ALIASES.get(str(inner), inner)}
    elif outer in WRAPPERS:
        text = {**config, "model_type": WRAPPERS[str(outer)]}
    family = FAMILIES.get(str(text.get("model_type")))
    if family is None:
        raise UnsupportedModelError(
            f"The model type {text.get('model_type')!r} is not supported: known are "
            f"{', '.join(sorted(FAMILIES))}."
        )
    _refuse_what_families_lack(text, family)
    return text, family


def _refuse_what_families_lack(text: Mapping[str, object], family: ModelFamily) -> None:
    """Raises UnsupportedModelError if the config has a layout feature that the family's builders ignore."""
    latent = text.get("kv_lora_rank") is not None
    latent_mixers = (latent_attention, sparse_latent_attention)
    window = text.get("sliding_window") is not None and text.get("use_sliding_window") is not False
    refusals = {
        "multi-head latent attention": latent and family.mixer not in latent_mixers,
        "a sparse attention index": text.get("index_topk") is not None
        and family.mixer is not sparse_latent_attention,
        "a sliding window that models of its type do not have": window
        and family.slides is None
        and not text.get("layer_types"),
        "cross-attention layers": bool(text.get("cross_attention_layers")),
        "norms after the layers (OPT 350M)": text.get("do_layer_norm_before") is False,
        "biases that published MPT models do not have": text.get("no_bias") is False,
    }
    for name, present in refusals.items():
        if present:
            raise UnsupportedModelError(
                f"This config.json ({text.get('model_type')}) has {name}, which is not supported."
            )


def _embeddings(keys: ConfigKeys, family: ModelFamily) -> list[Tensor]:
    """Builds the embeddings of tokens, and those of positions and the norm if the family has them."""
    vocab, hidden = keys.integer("vocab_size"), keys.hidden
    tensors = [Tensor(name="model.embed_tokens", rows=vocab, columns=hidden, shards=ANY_SHARDS)]
    if family.learned_positions is not None:
        rows = keys.integer("max_position_embeddings") + family.learned_positions
        tensors.append(Tensor(name="model.embed_positions", rows=rows, columns=hidden))
    tensors += norm_tensors("model.embed_norm", hidden, int(family.embedding_norm), bias=True)
    return tensors + (family.embeddings(keys) if family.embeddings else [])


def _layer(keys: ConfigKeys, family: ModelFamily, index: int) -> Layer:
    tensors, caches = family.mixer(keys, family, index)
    count = family.norms if family.norm_weight else 0
    tensors = [
        *tensors,
        *family.mlp(keys, family, index),
        *norm_tensors("layernorms", keys.hidden, count, bias=family.norm_bias),
    ]
    prefix = f"model.layers.{index}."
    named = (replace(tensor, name=prefix + tensor.name) for tensor in tensors)
    return Layer(tensors=tuple(named), caches=tuple(caches))


def _workspace_bytes(keys: ConfigKeys) -> int:
    """Returns five latent vectors in 16 bits, which vLLM's flashmla_sparse keeps for each token (its
    sparse_mla_prefill_workspace_factor); 0 without a sparse attention index."""
    if keys.get("index_topk") is None:
        return 0
    return 5 * 2 * (keys.integer("kv_lora_rank") + keys.integer("qk_rope_head_dim"))


def _mtp_layers(keys: ConfigKeys, family: ModelFamily) -> tuple[Layer, ...]:
    """Builds the layers of multi-token prediction: each is like the last layer, with three more norms and a
    projection of two hidden states to one (vLLM's deepseek_mtp and qwen3_next_mtp)."""
    count = keys.integer("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0) if family.mtp else 0
    if not count:
        return ()
    last, hidden = keys.integer("num_hidden_layers") - 1, keys.hidden
    layer = _layer(keys, family, last)
    shards = 1 if family.mtp == "replicated" else ANY_SHARDS
    projection = Tensor(name="mtp.eh_proj", rows=hidden, columns=2 * hidden, shards=shards)
    tensors = (*layer.tensors, projection, *norm_tensors("mtp.norms", hidden, 3))
    return (replace(layer, tensors=tensors),) * count


def _all_tensors(layers: Sequence[Layer]) -> list[Tensor]:
    return list(chain.from_iterable(layer.tensors for layer in layers))


def _mlp_width(layers: Sequence[Layer]) -> int:
    dense = [
        tensor.columns
        for tensor in _all_tensors(layers)
        if tensor.count == 1 and tensor.name.endswith("down_proj")
    ]
    return max(dense, default=0)


def _expert_width(layers: Sequence[Layer]) -> int:
    experts = [
        tensor.columns
        for tensor in _all_tensors(layers)
        if tensor.count > 1 and tensor.name.endswith("down_proj")
    ]
    return max(experts, default=0)


def _experts_per_token(keys: ConfigKeys, layers: Sequence[Layer]) -> int:
    return keys.integer("num_experts_per_tok", "moe_topk") if _expert_width(layers) else 0


def _active_parameters(keys: ConfigKeys, layers: Sequence[Layer]) -> int:
    chosen = _experts_per_token(keys, layers)
    return sum(
        tensor.rows * tensor.columns * (min(tensor.count, chosen) if tensor.expert else tensor.count)
        for tensor in _all_tensors(layers)
    )


def _dtype(*configs: Mapping[str, object]) -> str:
    """Returns the type of the weights from the first config that states a type; float32 if none does."""
    for config in configs:
        stated = config.get("dtype") or config.get("torch_dtype")
        if stated:
            return str(stated).removeprefix("torch.")
    return "float32"


def _rotary_elements(keys: ConfigKeys) -> int:
    """Returns the number of elements in the cos/sin tables of rotary embeddings (RoPE); 0 without RoPE.

    Linear and dynamic scaling multiply the number of positions in a table (vLLM's rotary_embedding). Models
    with a separate RoPE base for window layers have a second table.
    """
    if "rope" in str(keys.get("position_embedding_type") or "rope") and not keys.flag("alibi"):
        scaling = keys.get("rope_scaling")
        known = scaling if isinstance(scaling, Mapping) else {}
        kind, factor = known.get("rope_type", known.get("type")), known.get("factor")
        stretch = float(factor) if kind in ("linear", "dynamic") and isinstance(factor, int | float) else 1.0
        partial = keys.get("partial_rotary_factor")
        width = keys.integer("qk_rope_head_dim", "rotary_dim", default=keys.head_dim)
        width = int(width * partial) if isinstance(partial, float) else width
        positions = keys.integer("max_position_embeddings", default=2048)
        tables = 1 + (keys.get("rope_local_base_freq") is not None)
        return round(positions * width * (stretch + tables - 1))
    return 0

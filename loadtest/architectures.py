"""A Hugging Face config.json -> the tensors and the KV caches of every layer. Knows no GPU and no bytes.

Counts what vLLM loads, exactly. A layout that is not in the tables below is refused by name, never guessed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

from loadtest.quantisation import Quantisation, UnsupportedModelError, parse_quantisation

FREELY = 1 << 30
"""Shards of a tensor that tensor parallelism can split over any number of GPUs; 1 is one copy on each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One weight of a layer, `count` times (experts)."""

    name: str
    """Its module's path in the checkpoint, as quantisation's lists of exceptions name it."""
    rows: int
    columns: int = 1
    count: int = 1
    shards: int = 1
    split: Literal["rows", "columns"] = "rows"
    """Which of them tensor parallelism divides."""
    linear: bool = False
    """A matrix of a linear layer or an expert: what quantisation applies to."""

    @property
    def parameters(self) -> int:
        return self.rows * self.columns * self.count

    @property
    def expert(self) -> bool:
        """Of experts, only the chosen ones are read for a token."""
        return ".experts." in self.name

    def part(self, tp: int) -> tuple[float, float]:
        """Rows and columns that one of `tp` GPUs holds."""
        pieces = min(tp, self.shards)
        return (
            (self.rows / pieces, self.columns) if self.split == "rows" else (self.rows, self.columns / pieces)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCache:
    """Keys and values of one layer, a token: `heads * width` elements. MLA: one latent, on every GPU."""

    kind: Literal["full", "window", "chunk", "mla"]
    heads: int
    width: int
    """Elements a token and head, keys and values together."""
    span: int = 0
    """Tokens of the window or chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateCache:
    """Recurrent state of one layer, a request, whatever its length. Split over the tensor-parallel group."""

    convolution: int
    """Elements, in the model's type."""
    recurrent: int
    """Elements, in `dtype`."""
    dtype: str
    """"auto" is the model's."""


Cache = AttentionCache | StateCache


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    tensors: tuple[Tensor, ...]
    caches: tuple[Cache, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What of a config.json decides memory. Heads and layers are those of the whole model."""

    model_type: str
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str
    layers: tuple[Layer, ...]
    before: tuple[Tensor, ...]
    """On the first pipeline stage: embeddings (and a vision tower)."""
    after: tuple[Tensor, ...]
    """On the last pipeline stage: norm and head. A tied head is a second copy only when stages differ."""
    tie_word_embeddings: bool
    mlp_width: int
    """Widest dense MLP of a layer; 0 where all are experts."""
    expert_width: int
    experts_per_token: int
    """Routed ones; 0 for a dense model."""
    active_parameters: int
    """Of a token's forward: experts that are not chosen left out, embeddings too."""
    rotary_elements: int
    """Of the tables of rotary positions that are kept beside the weights."""
    quantisation: Quantisation | None
    uncounted: tuple[str, ...] = ()
    """Parts of the model that are loaded but not counted, in words."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)


def parse_config(
    config: Mapping[str, object],
    *,
    quantization: str | None = None,
    extra: Mapping[str, object] | None = None,
) -> ModelShape:
    """Reads a parsed config.json. `quantization` is vLLM's flag; `extra` a parsed hf_quant_config.json.

    Raises UnsupportedModelError for a layout that is not understood, and for a missing or malformed key.
    """
    text, family = _text_part(config)
    keys = Keys(text, family.defaults)
    layers = tuple(_layer(keys, family, place) for place in range(keys.integer("num_hidden_layers")))
    vision, uncounted = _vision(config, keys)
    tied = keys.flag("tie_word_embeddings", config.get("tie_word_embeddings", family.tied))
    hidden, vocab = keys.integer("hidden_size"), keys.integer("vocab_size")
    norm = _norms("model.norm", hidden, 1, bias=family.norm_bias) if family.norm_weight else []
    head = _linear("lm_head", vocab, hidden, bias=keys.bias(family.head_bias))
    after = [*norm, *head] if not tied else norm
    declared = text.get("quantization_config") or config.get("quantization_config") or extra
    return ModelShape(
        model_type=keys.model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        max_position_embeddings=keys.integer("max_position_embeddings", default=2048),
        dtype=_dtype(text, config),
        layers=layers,
        before=(Tensor(name="model.embed_tokens", rows=vocab, columns=hidden, shards=FREELY), *vision),
        after=tuple(after),
        tie_word_embeddings=tied,
        mlp_width=_mlp_width(layers),
        expert_width=_expert_width(layers),
        experts_per_token=_experts_per_token(keys, layers),
        active_parameters=_active(keys, layers) + vocab * hidden,
        rotary_elements=_rotary(keys),
        quantisation=parse_quantisation(declared, quantization),
        uncounted=uncounted,
    )


class Keys:
    """A config.json's keys, with the defaults of its family. Knows how to complain."""

    def __init__(self, config: Mapping[str, object], defaults: Mapping[str, object]) -> None:
        self._config, self._defaults = config, defaults
        self.model_type = str(config.get("model_type"))

    def get(self, name: str) -> object:
        """None where neither the file nor the family has it."""
        value = self._config.get(name)
        return self._defaults.get(name) if value is None else value

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is present. Booleans are not integers here."""
        for name in names:
            value = self.get(name)
            if value is None:
                continue
            if type(value) is not int or value < 0 or (value == 0 and default != 0):
                raise UnsupportedModelError(
                    f"{name} in config.json must be a whole number above 0, not {value!r}."
                )
            return value
        if default is None:
            raise UnsupportedModelError(f"The config.json lacks {names[0]}.")
        return default

    def flag(self, name: str, default: object = False) -> bool:
        value = self.get(name)
        return bool(default if value is None else value)

    def bias(self, rule: str | bool) -> bool:
        """A constant, or the key that says so."""
        return rule if isinstance(rule, bool) else self.flag(rule)

    def items(self, name: str) -> Sequence[object]:
        value = self.get(name)
        return value if isinstance(value, list | tuple) else ()

    @property
    def hidden(self) -> int:
        return self.integer("hidden_size")

    @property
    def heads(self) -> int:
        return self.integer("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        return self.integer("num_key_value_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        return self.integer("head_dim", default=self.hidden // self.heads)


# Pieces of layers. Column-parallel projections split their bias, row-parallel ones repeat it.


def _linear(
    name: str, rows: int, columns: int, *, bias: bool = False, shards: int = FREELY, count: int = 1
) -> list[Tensor]:
    found = [Tensor(name=name, rows=rows, columns=columns, count=count, shards=shards, linear=True)]
    if bias:
        found.append(Tensor(name=f"{name}.bias", rows=rows, count=count, shards=shards))
    return found


def _row_linear(name: str, rows: int, columns: int, *, bias: bool = False, count: int = 1) -> list[Tensor]:
    found = [
        Tensor(
            name=name, rows=rows, columns=columns, count=count, shards=FREELY, split="columns", linear=True
        )
    ]
    return [*found, Tensor(name=f"{name}.bias", rows=rows, count=count)] if bias else found


def _norms(name: str, size: int, count: int, *, bias: bool = False) -> list[Tensor]:
    return [Tensor(name=name, rows=size, columns=2 if bias else 1, count=count)] if count else []


def _gated(name: str, hidden: int, width: int, *, bias: bool = False, count: int = 1) -> list[Tensor]:
    return [
        *_linear(f"{name}.gate_proj", width, hidden, bias=bias, count=count),
        *_linear(f"{name}.up_proj", width, hidden, bias=bias, count=count),
        *_row_linear(f"{name}.down_proj", hidden, width, bias=bias, count=count),
    ]


def _plain(name: str, hidden: int, width: int, *, bias: bool, count: int = 1) -> list[Tensor]:
    return [
        *_linear(f"{name}.up_proj", width, hidden, bias=bias, count=count),
        *_row_linear(f"{name}.down_proj", hidden, width, bias=bias, count=count),
    ]


def _router(name: str, experts: int, hidden: int, *, bias: bool = False) -> list[Tensor]:
    """Never split, never quantised."""
    found = [Tensor(name=name, rows=experts, columns=hidden)]
    return [*found, Tensor(name=f"{name}.bias", rows=experts)] if bias else found


Mixer = Callable[[Keys, "Family", int], tuple[list[Tensor], list[Cache]]]
Mlp = Callable[[Keys, "Family", int], list[Tensor]]


def _grouped_attention(keys: Keys, family: "Family", place: int) -> tuple[list[Tensor], list[Cache]]:
    """Multi-head, grouped-query and multi-query attention, of the whole context or of a window."""
    heads, kv_heads, dim, hidden = keys.heads, keys.kv_heads, keys.head_dim, keys.hidden
    bias = keys.bias(family.qkv_bias)
    query = heads * dim * (2 if family.gated_query else 1)
    tensors = [
        *_linear("self_attn.q_proj", query, hidden, bias=bias),
        *_linear("self_attn.k_proj", kv_heads * dim, hidden, bias=bias, shards=kv_heads),
        *_linear("self_attn.v_proj", kv_heads * dim, hidden, bias=bias, shards=kv_heads),
        *_row_linear("self_attn.o_proj", hidden, heads * dim, bias=keys.bias(family.o_bias)),
    ]
    if family.qk_norm and (not family.qk_norm_key or keys.flag(family.qk_norm_key)):
        size = 2 * dim if family.qk_norm == "head" else (heads + kv_heads) * dim
        tensors += _norms("self_attn.qk_norm", size, 1)
    if family.sinks:
        tensors.append(Tensor(name="self_attn.sinks", rows=heads, shards=FREELY))
    kind, span = _reach(keys, family, place)
    return tensors, [AttentionCache(kind=kind, heads=kv_heads, width=2 * dim, span=span)]


def _latent_attention(keys: Keys, family: "Family", place: int) -> tuple[list[Tensor], list[Cache]]:
    """MLA, as DeepSeek made it: one latent vector a token, on every GPU of the group."""
    heads, hidden = keys.heads, keys.hidden
    rope, rank = keys.integer("qk_rope_head_dim"), keys.integer("kv_lora_rank")
    nope, value = keys.integer("qk_nope_head_dim"), keys.integer("v_head_dim")
    low_rank = keys.integer("q_lora_rank", default=0)
    query = heads * (nope + rope)
    if low_rank:
        tensors = [
            *_linear("self_attn.q_a_proj", low_rank, hidden, shards=1),
            *_norms("self_attn.q_a_layernorm", low_rank, 1),
            *_linear("self_attn.q_b_proj", query, low_rank),
        ]
    else:
        tensors = _linear("self_attn.q_proj", query, hidden)
    tensors += [
        *_linear("self_attn.kv_a_proj_with_mqa", rank + rope, hidden, shards=1),
        *_norms("self_attn.kv_a_layernorm", rank, 1),
        *_linear("self_attn.kv_b_proj", heads * (nope + value), rank),
        *_row_linear("self_attn.o_proj", hidden, heads * value, bias=keys.flag("attention_bias")),
    ]
    return tensors, [AttentionCache(kind="mla", heads=1, width=rank + rope)]


def _reach(keys: Keys, family: "Family", place: int) -> tuple[Literal["full", "window", "chunk"], int]:
    """How far layer `place` looks back, and the window's or chunk's tokens."""
    kinds = keys.items("layer_types")
    if kinds:
        kind = str(kinds[place])
    elif family.slides and keys.get("sliding_window") and keys.flag("use_sliding_window", default=True):
        kind = "sliding_attention" if family.slides(keys, place) else "full_attention"
    elif keys.get("attention_chunk_size") is not None:
        kind = "chunked_attention" if _ropes(keys, place) else "full_attention"
    else:
        kind = "full_attention"
    match kind:
        case "full_attention" | "attention":
            return "full", 0
        case "sliding_attention":
            return "window", keys.integer("sliding_window")
        case "chunked_attention":
            return "chunk", keys.integer("attention_chunk_size")
    raise UnsupportedModelError(f"This config.json has layers of the kind {kind!r}, which is not supported.")


def _ropes(keys: Keys, place: int) -> bool:
    """Llama 4: layers with rotary positions look at a chunk, the others at everything."""
    listed = keys.items("no_rope_layers")
    return (
        bool(listed[place]) if listed else (place + 1) % keys.integer("no_rope_layer_interval", default=4) > 0
    )


def _every_layer(keys: Keys, place: int) -> bool:
    return True


def _even_layers(keys: Keys, place: int) -> bool:
    return place % 2 == 0


def _all_but_each(period: int) -> Callable[[Keys, int], bool]:
    """Every `period`-th layer looks at everything; the config may state another period."""

    def slides(keys: Keys, place: int) -> bool:
        stated = keys.get("sliding_window_pattern")
        return (place + 1) % (stated if isinstance(stated, int) else period) > 0

    return slides


def _last_layers(keys: Keys, place: int) -> bool:
    """Qwen: windows from max_window_layers on, and only where use_sliding_window says so."""
    return keys.flag("use_sliding_window") and place >= keys.integer("max_window_layers", default=28)


def _delta_net(keys: Keys) -> tuple[list[Tensor], list[Cache]]:
    """Gated delta net (Qwen3-Next, Qwen3.5): a matrix for each value head, and a short convolution."""
    hidden = keys.hidden
    key_dim, value_dim = keys.integer("linear_key_head_dim"), keys.integer("linear_value_head_dim")
    key_heads, value_heads = keys.integer("linear_num_key_heads"), keys.integer("linear_num_value_heads")
    kernel = keys.integer("linear_conv_kernel_dim")
    mixed, value = 2 * key_heads * key_dim + value_heads * value_dim, value_heads * value_dim
    tensors = [
        *_linear("linear_attn.in_proj_qkvz", mixed + value, hidden),
        *_linear("linear_attn.in_proj_ba", 2 * value_heads, hidden),
        Tensor(name="linear_attn.conv1d", rows=mixed, columns=kernel, shards=FREELY),
        Tensor(name="linear_attn.dt_bias", rows=2 * value_heads, shards=FREELY),
        *_norms("linear_attn.norm", value_dim, 1),
        *_row_linear("linear_attn.out_proj", hidden, value),
    ]
    dtype = str(keys.get("mamba_ssm_dtype") or "auto")
    recurrent = value_heads * value_dim * key_dim
    return tensors, [StateCache(convolution=mixed * (kernel - 1), recurrent=recurrent, dtype=dtype)]


def _mamba2(
    keys: Keys,
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
        *_linear("mamba.in_proj", width + mixed + heads, hidden, bias=bias),
        Tensor(name="mamba.conv1d", rows=mixed, columns=kernel, shards=FREELY),
        *([Tensor(name="mamba.conv1d.bias", rows=mixed, shards=FREELY)] if _conv_bias(keys) else []),
        Tensor(name="mamba.A_D_dt_bias", rows=3 * heads, shards=FREELY),
        *([Tensor(name="mamba.norm", rows=width, shards=FREELY)] if norm else []),
        *_row_linear("mamba.out_proj", hidden, width, bias=bias),
    ]
    recurrent = heads * head_dim * state
    return tensors, [StateCache(convolution=mixed * (kernel - 1), recurrent=recurrent, dtype=dtype)]


def _conv_bias(keys: Keys) -> bool:
    return keys.flag("mamba_conv_bias", keys.flag("use_conv_bias", default=True))


def _bamba_mamba(keys: Keys, *, norm: bool = True) -> tuple[list[Tensor], list[Cache]]:
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


def _mamba_head_dim(keys: Keys) -> int:
    stated = keys.get("mamba_d_head")
    width = keys.integer("mamba_d_ssm", default=keys.integer("mamba_expand", default=2) * keys.hidden)
    return stated if isinstance(stated, int) else width // keys.integer("mamba_n_heads")


def _qwen_hybrid(keys: Keys, family: "Family", place: int) -> tuple[list[Tensor], list[Cache]]:
    kinds = keys.items("layer_types")
    interval = keys.integer("full_attention_interval", default=4)
    linear = kinds[place] == "linear_attention" if kinds else (place + 1) % interval > 0
    return _delta_net(keys) if linear else _grouped_attention(keys, family, place)


def _falcon_h1(keys: Keys, family: "Family", place: int) -> tuple[list[Tensor], list[Cache]]:
    """Attention and Mamba side by side in every layer."""
    attention, keys_values = _grouped_attention(keys, family, place)
    mamba, state = _bamba_mamba(keys, norm=keys.flag("mamba_rms_norm"))
    return attention + mamba, keys_values + state


def _bamba(keys: Keys, family: "Family", place: int) -> tuple[list[Tensor], list[Cache]]:
    if place in keys.items("attn_layer_indices"):
        return _grouped_attention(keys, family, place)
    return _bamba_mamba(keys)


def _granite_hybrid(keys: Keys, family: "Family", place: int) -> tuple[list[Tensor], list[Cache]]:
    kinds = keys.items("layer_types") or keys.items("layers_block_type")
    if kinds and kinds[place] == "mamba":
        return _bamba_mamba(keys)
    return _grouped_attention(keys, family, place)


def _jamba(keys: Keys, family: "Family", place: int) -> tuple[list[Tensor], list[Cache]]:
    period = keys.integer("attn_layer_period", default=8)
    offset = keys.integer("attn_layer_offset", default=0)
    if place % period == offset:
        return _grouped_attention(keys, family, place)
    hidden, state = keys.hidden, keys.integer("mamba_d_state")
    width, kernel = keys.integer("mamba_expand") * hidden, keys.integer("mamba_d_conv")
    rank = keys.integer("mamba_dt_rank", default=-(-hidden // 16))
    bias = keys.flag("mamba_proj_bias")
    tensors = [
        *_linear("mamba.in_proj", 2 * width, hidden, bias=bias),
        Tensor(name="mamba.conv1d", rows=width, columns=kernel, shards=FREELY),
        *([Tensor(name="mamba.conv1d.bias", rows=width, shards=FREELY)] if _conv_bias(keys) else []),
        *_linear("mamba.x_proj", rank + 2 * state, width),
        *_linear("mamba.dt_proj", width, rank, bias=True),
        Tensor(name="mamba.A_log", rows=width, columns=state + 1, shards=FREELY),
        *_norms("mamba.norms", rank + 2 * state, 1),
        *_row_linear("mamba.out_proj", hidden, width, bias=bias),
    ]
    return tensors, [StateCache(convolution=width * (kernel - 1), recurrent=width * state, dtype="auto")]


def _dense(keys: Keys, family: "Family", place: int) -> list[Tensor]:
    width, bias = keys.integer("intermediate_size"), keys.bias(family.mlp_bias)
    return (_gated if family.gated else _plain)("mlp", keys.hidden, width, bias=bias)


def _mixtral_experts(keys: Keys, family: "Family", place: int) -> list[Tensor]:
    """Every layer has experts and nothing else."""
    experts, hidden = keys.integer("num_local_experts", "num_experts"), keys.hidden
    width = keys.integer("moe_intermediate_size", "intermediate_size")
    bias = keys.flag("use_routing_bias")
    return _router("mlp.gate", experts, hidden, bias=bias) + _gated(
        "mlp.experts", hidden, width, count=experts
    )


def _qwen_experts(keys: Keys, family: "Family", place: int) -> list[Tensor]:
    """Experts in every decoder_sparse_step-th layer that is not listed as dense; perhaps a shared one."""
    if place in keys.items("mlp_only_layers") or (place + 1) % keys.integer("decoder_sparse_step", default=1):
        return _dense(keys, family, place)
    experts, hidden = keys.integer("num_experts", "num_local_experts"), keys.hidden
    tensors = _router("mlp.gate", experts, hidden)
    tensors += _gated("mlp.experts", hidden, keys.integer("moe_intermediate_size"), count=experts)
    shared = keys.integer("shared_expert_intermediate_size", default=0)
    if shared:
        tensors += _gated("mlp.shared_expert", hidden, shared)
        tensors += _router("mlp.shared_expert_gate", 1, hidden)
    return tensors


def _deepseek_experts(keys: Keys, family: "Family", place: int) -> list[Tensor]:
    """The first layers dense, then routed and shared experts; V3's router carries a correction."""
    every = keys.integer("moe_layer_freq", default=1)
    if place < keys.integer("first_k_dense_replace", default=0) or place % every:
        return _dense(keys, family, place)
    experts, hidden = keys.integer("n_routed_experts"), keys.hidden
    width = keys.integer("moe_intermediate_size")
    corrected = keys.get("topk_method") == "noaux_tc" or keys.model_type in _CORRECTED_ROUTERS
    tensors = _router("mlp.gate", experts, hidden, bias=corrected)
    tensors += _gated("mlp.experts", hidden, width, count=experts)
    shared = keys.integer("n_shared_experts", default=0)
    return tensors + (_gated("mlp.shared_experts", hidden, width * shared) if shared else [])


_CORRECTED_ROUTERS = {"deepseek_v3", "kimi_k2", "glm4_moe"}


def _llama4_experts(keys: Keys, family: "Family", place: int) -> list[Tensor]:
    listed, step = keys.items("moe_layers"), keys.integer("interleave_moe_layer_step", default=1)
    hidden, width = keys.hidden, keys.integer("intermediate_size")
    if place not in listed if listed else (place + 1) % step:
        return _gated("feed_forward", hidden, keys.integer("intermediate_size_mlp"))
    experts = keys.integer("num_local_experts")
    return [
        *_router("feed_forward.router", experts, hidden),
        *_gated("feed_forward.experts", hidden, width, count=experts),
        *_gated("feed_forward.shared_expert", hidden, width),
    ]


def _gpt_oss_experts(keys: Keys, family: "Family", place: int) -> list[Tensor]:
    experts, hidden, width = keys.integer("num_local_experts"), keys.hidden, keys.integer("intermediate_size")
    return _router("mlp.router", experts, hidden, bias=True) + _gated(
        "mlp.experts", hidden, width, bias=True, count=experts
    )


def _jamba_experts(keys: Keys, family: "Family", place: int) -> list[Tensor]:
    period = keys.integer("expert_layer_period", default=2)
    offset = keys.integer("expert_layer_offset", default=0)
    experts = keys.integer("num_experts", default=16)
    if place % period != offset or experts == 1:
        return _gated("feed_forward", keys.hidden, keys.integer("intermediate_size"))
    return _router("feed_forward.router", experts, keys.hidden) + _gated(
        "feed_forward.experts", keys.hidden, keys.integer("intermediate_size"), count=experts
    )


def _granite_experts(keys: Keys, family: "Family", place: int) -> list[Tensor]:
    """Experts where there are any, and a shared MLP where there is one."""
    experts, hidden = keys.integer("num_local_experts", default=0), keys.hidden
    tensors = []
    if experts:
        tensors += _router("block_sparse_moe.router", experts, hidden)
        width = keys.integer("intermediate_size")
        tensors += _gated("block_sparse_moe.experts", hidden, width, count=experts)
    shared = keys.integer("shared_intermediate_size", default=0)
    return tensors + (_gated("shared_mlp", hidden, shared) if shared else [])


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How the models of one model_type are built. A bias is a constant or the key that says so."""

    mixer: Mixer = _grouped_attention
    mlp: Mlp = _dense
    qkv_bias: str | bool = "attention_bias"
    o_bias: str | bool = "attention_bias"
    mlp_bias: str | bool = False
    head_bias: str | bool = False
    gated: bool = True
    gated_query: bool = False
    norms: int = 2
    """Of the hidden size, a layer."""
    norm_bias: bool = False
    norm_weight: bool = True
    qk_norm: Literal["", "head", "full"] = ""
    """"head": of a head's size, for queries and for keys; "full": of all heads."""
    qk_norm_key: str = ""
    """The key that switches it on; always on without one."""
    sinks: bool = False
    slides: Callable[[Keys, int], bool] | None = None
    tied: bool = False
    """What an absent tie_word_embeddings means."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What the family's configuration class fills in for an absent key."""


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
_LLAMA = Family(mlp_bias="mlp_bias", defaults=_LLAMA_DEFAULTS)
_MISTRAL = Family(
    slides=_every_layer,
    defaults=_LLAMA_DEFAULTS | {"intermediate_size": 14336, "num_key_value_heads": 8},
)
_QWEN2 = Family(qkv_bias=True, o_bias=False, slides=_last_layers)
_QWEN3 = Family(qk_norm="head", slides=_last_layers)
_QWEN3_MOE = Family(mlp=_qwen_experts, qk_norm="head", slides=_last_layers)
_DEEPSEEK = Family(mixer=_latent_attention, mlp=_deepseek_experts)
_QWEN3_NEXT = Family(mixer=_qwen_hybrid, mlp=_qwen_experts, qk_norm="head", gated_query=True)
_QWEN35 = Family(mixer=_qwen_hybrid, qk_norm="head", gated_query=True)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "ministral3": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gemma": Family(tied=True, defaults={"head_dim": 256}),
    "gemma2": Family(
        norms=4, tied=True, slides=_even_layers, defaults={"head_dim": 256, "sliding_window": 4096}
    ),
    "gemma3_text": Family(
        norms=4, qk_norm="head", tied=True, slides=_all_but_each(6), defaults=_GEMMA3_DEFAULTS
    ),
    "phi": Family(
        qkv_bias=True, o_bias=True, mlp_bias=True, head_bias=True, gated=False, norms=1, norm_bias=True
    ),
    "phi3": Family(slides=_every_layer),
    "granite": _LLAMA,
    "smollm3": Family(mlp_bias="mlp_bias", tied=True, slides=None),
    "seed_oss": Family(qkv_bias="attention_bias", o_bias="attention_out_bias", mlp_bias="mlp_bias"),
    "ernie4_5": Family(qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True),
    "olmo": Family(norm_weight=False, norms=0),
    "olmo2": Family(qk_norm="full"),
    "olmo3": Family(qk_norm="full", slides=_all_but_each(4)),
    "starcoder2": Family(
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        gated=False,
        norm_bias=True,
        slides=_every_layer,
        tied=True,
        defaults={"use_bias": True},
    ),
    "stablelm": Family(qkv_bias="use_qkv_bias", o_bias=False, norm_bias=True),
    "nemotron": Family(mlp_bias="mlp_bias", gated=False, norm_bias=True),
    "cohere": Family(norms=1, qk_norm="full", qk_norm_key="use_qk_norm", tied=True),
    "cohere2": Family(norms=1, slides=_all_but_each(4), tied=True),
    "glm": Family(o_bias=False, defaults={"attention_bias": True}),
    "glm4": Family(o_bias=False, norms=4, defaults={"attention_bias": True}),
    "exaone4": Family(qk_norm="head", slides=_all_but_each(4)),
    "mixtral": Family(
        mlp=_mixtral_experts,
        slides=_every_layer,
        defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": Family(
        qkv_bias="qkv_bias", o_bias=False, mlp=_qwen_experts, slides=_last_layers, defaults={"qkv_bias": True}
    ),
    "qwen3_moe": _QWEN3_MOE,
    "olmoe": Family(mlp=_mixtral_experts, qk_norm="full"),
    "minimax_m2": Family(
        mlp=_mixtral_experts,
        qk_norm="full",
        qk_norm_key="use_qk_norm",
        defaults={"use_routing_bias": True, "use_qk_norm": True},
    ),
    "granitemoe": Family(mlp=_granite_experts),
    "phimoe": Family(
        mlp=_mixtral_experts,
        norm_bias=True,
        head_bias="lm_head_bias",
        slides=_every_layer,
    ),
    "gpt_oss": Family(qkv_bias=True, o_bias=True, mlp=_gpt_oss_experts, sinks=True, slides=_even_layers),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": Family(o_bias=False, mlp=_deepseek_experts, qk_norm="head", qk_norm_key="use_qk_norm"),
    "llama4_text": Family(mlp=_llama4_experts),
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN35,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "falcon_h1": Family(mixer=_falcon_h1, mlp_bias="mlp_bias"),
    "jamba": Family(mixer=_jamba, mlp=_jamba_experts),
    "bamba": Family(mixer=_bamba, mlp_bias="mlp_bias"),
    "granitemoehybrid": Family(mixer=_granite_hybrid, mlp=_granite_experts),
}

# Multimodal models: what the text part is when it does not say so itself.
WRAPPERS = {
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "llava": "llama",
    "llava_next": "llama",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
    "llama4": "llama4_text",
    "kimi_vl": "deepseek_v3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
_TEXT_ALIASES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}


def _text_part(config: Mapping[str, object]) -> tuple[Mapping[str, object], Family]:
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
        text = {**nested, "model_type": _TEXT_ALIASES.get(str(inner), inner)}
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


def _refuse_what_families_lack(text: Mapping[str, object], family: Family) -> None:
    """Keys that change the layout and that the family's builder would not read."""
    latent = text.get("kv_lora_rank") is not None
    window = text.get("sliding_window") is not None and text.get("use_sliding_window") is not False
    refusals = {
        "multi-head latent attention": latent and family.mixer is not _latent_attention,
        "a sparse attention index": text.get("index_topk") is not None,
        "a window that its family does not have": window
        and family.slides is None
        and not text.get("layer_types"),
        "cross-attention layers": bool(text.get("cross_attention_layers")),
    }
    for name, present in refusals.items():
        if present:
            raise UnsupportedModelError(
                f"This config.json ({text.get('model_type')}) has {name}, which is not supported."
            )


def _layer(keys: Keys, family: Family, place: int) -> Layer:
    tensors, caches = family.mixer(keys, family, place)
    norms = family.norms if family.norm_weight else 0
    tensors = [
        *tensors,
        *family.mlp(keys, family, place),
        *_norms("layernorms", keys.hidden, norms, bias=family.norm_bias),
    ]
    prefix = f"model.layers.{place}."
    named = (replace(tensor, name=prefix + tensor.name) for tensor in tensors)
    return Layer(tensors=tuple(named), caches=tuple(caches))


def _all_tensors(layers: Sequence[Layer]) -> list[Tensor]:
    return list(chain.from_iterable(layer.tensors for layer in layers))


def _mlp_width(layers: Sequence[Layer]) -> int:
    dense = [one.columns for one in _all_tensors(layers) if one.count == 1 and one.name.endswith("down_proj")]
    return max(dense, default=0)


def _expert_width(layers: Sequence[Layer]) -> int:
    experts = [
        one.columns for one in _all_tensors(layers) if one.count > 1 and one.name.endswith("down_proj")
    ]
    return max(experts, default=0)


def _experts_per_token(keys: Keys, layers: Sequence[Layer]) -> int:
    return keys.integer("num_experts_per_tok", "moe_topk") if _expert_width(layers) else 0


def _active(keys: Keys, layers: Sequence[Layer]) -> int:
    chosen = _experts_per_token(keys, layers)
    return sum(
        one.rows * one.columns * (min(one.count, chosen) if one.expert else one.count)
        for one in _all_tensors(layers)
    )


def _dtype(*configs: Mapping[str, object]) -> str:
    for config in configs:
        found = config.get("dtype") or config.get("torch_dtype")
        if found:
            return str(found).removeprefix("torch.")
    return "float32"


def _rotary(keys: Keys) -> int:
    """Rows of cosines and sines for every position, which linear and dynamic scaling multiply (vLLM's
    rotary_embedding); models with a base of their own for windows keep two tables."""
    if "rope" in str(keys.get("position_embedding_type") or "rope"):
        scaling = keys.get("rope_scaling")
        known = scaling if isinstance(scaling, Mapping) else {}
        kind, factor = known.get("rope_type", known.get("type")), known.get("factor")
        stretch = float(factor) if kind in ("linear", "dynamic") and isinstance(factor, int | float) else 1.0
        share = keys.get("partial_rotary_factor")
        width = keys.integer("qk_rope_head_dim", default=keys.head_dim)
        width = int(width * share) if isinstance(share, float) else width
        positions = keys.integer("max_position_embeddings", default=2048)
        tables = 1 + (keys.get("rope_local_base_freq") is not None)
        return round(positions * width * (stretch + tables - 1))
    return 0


# Vision towers: transformers whose weights are loaded beside the text model's.


def _vision(config: Mapping[str, object], text: Keys) -> tuple[list[Tensor], tuple[str, ...]]:
    nested = config.get("vision_config")
    if not isinstance(nested, Mapping):
        return [], ()
    counter = _TOWERS.get(str(config.get("model_type")))
    count = counter(Keys(nested, {}), text.hidden) if counter else None
    if count is None:
        return [], ("the vision tower",)
    return [Tensor(name="vision_tower", rows=count, shards=FREELY)], ()


def _siglip(keys: Keys, text_hidden: int) -> int:
    """Gemma 3: SigLIP and one projection."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    patch, image = keys.integer("patch_size"), keys.integer("image_size")
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    outside = (3 * patch**2 + 1) * hidden + (image // patch) ** 2 * hidden + 2 * hidden
    return layers * layer + outside + hidden * text_hidden + hidden


def _pixtral(keys: Keys, text_hidden: int) -> int:
    """Mistral 3: Pixtral's tower, a patch merger and two projections."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    layer = 4 * hidden**2 + 3 * hidden * width + 2 * hidden
    outside = 3 * keys.integer("patch_size") ** 2 * hidden + hidden
    return layers * layer + outside + 4 * hidden**2 + hidden + (hidden + text_hidden) * text_hidden


def _clip(keys: Keys, text_hidden: int) -> int:
    """LLaVA: CLIP, and two projections."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    patch, image = keys.integer("patch_size"), keys.integer("image_size")
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    outside = 3 * patch**2 * hidden + ((image // patch) ** 2 + 2) * hidden + 4 * hidden
    return layers * layer + outside + (hidden + 1) * text_hidden + (text_hidden + 1) * text_hidden


def _llama4_tower(keys: Keys, text_hidden: int) -> int:
    """Llama 4: a tower, two layers that gather patches, and a projection."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    patch, image = keys.integer("patch_size"), keys.integer("image_size")
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    outside = 3 * patch**2 * hidden + ((image // patch) ** 2 + 2) * hidden + 4 * hidden
    wide, inner = keys.integer("projector_input_dim"), keys.integer("projector_output_dim")
    gather = keys.integer("intermediate_size") * wide + inner**2
    return layers * layer + outside + gather + keys.integer("vision_output_dim") * text_hidden


def _qwen3_tower(keys: Keys, text_hidden: int) -> int:
    """Qwen3-VL and Qwen3.5: a tower and mergers of 2 x 2 patches."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("depth")
    patch = (
        keys.integer("in_channels") * keys.integer("temporal_patch_size") * keys.integer("patch_size") ** 2
    )
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    wide = hidden * keys.integer("spatial_merge_size") ** 2
    merger = wide * (wide + 1) + (wide + 1) * keys.integer("out_hidden_size", default=text_hidden)
    deep = len(keys.items("deepstack_visual_indexes"))
    outside = (patch + 1) * hidden + keys.integer("num_position_embeddings") * hidden
    return layers * layer + outside + merger + 2 * hidden + deep * (merger + 2 * wide)


_TOWERS: dict[str, Callable[[Keys, int], int]] = {
    "gemma3": _siglip,
    "mistral3": _pixtral,
    "llava": _clip,
    "llava_next": _clip,
    "llama4": _llama4_tower,
    "qwen3_vl": _qwen3_tower,
    "qwen3_vl_moe": _qwen3_tower,
    "qwen3_5": _qwen3_tower,
    "qwen3_5_moe": _qwen3_tower,
}

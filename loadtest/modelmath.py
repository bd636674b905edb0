"""Weights, KV bytes and vLLM's pool arithmetic, from a Hugging Face config.json.

Knows decoder-only models with full attention (dense, or Mixtral's and Qwen3's experts) in 16 or 32 bits.
Everything else is refused by name rather than guessed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1024**3

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

SAMPLING_BYTES_PER_LOGIT = 38.8
"""Peak of vLLM's profiled sampling step, for each of max_num_seqs * vocab_size logits. Source: published
start-up logs on an H100, seven of eight within 2 % (design notes on vLLM 0.32)."""

_ATTENTION_BIAS = {"qwen2": "qkv"}  # Llama's and Qwen3's is a key of their config
_QK_NORM = {"qwen3", "qwen3_moe"}
_EXPERTS = {"mixtral", "qwen3_moe"}
_KNOWN = {"llama", "mistral", "qwen2", "qwen3"} | _EXPERTS


class UnsupportedModelError(ValueError):
    """The config.json describes something that this module would get wrong, or is not one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What of a config.json decides memory. Heads and layers are those of the whole model."""

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Of the dense MLP, and of each expert for Mixtral."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str
    attention_bias: str
    """"" for none, "qkv", or "qkvo"."""
    mlp_bias: bool
    num_experts: int
    """0 for a dense model."""
    expert_intermediate_size: int
    expert_layers: int
    """Layers with experts; the others have a dense MLP."""


def parse_config(config: Mapping[str, object]) -> ModelShape:
    """Reads a parsed config.json.

    Raises UnsupportedModelError for a layout that is not understood (MLA, sliding window, hybrid, quantised,
    multimodal), and for a missing or malformed key.
    """
    _refuse_unknown_layouts(config)
    model_type = str(config["model_type"])
    num_layers = _integer(config, "num_hidden_layers")
    hidden_size = _integer(config, "hidden_size")
    num_heads = _integer(config, "num_attention_heads")
    intermediate_size = _integer(config, "intermediate_size")
    expert_layers = _expert_layers(config, model_type, num_layers)
    return ModelShape(
        model_type=model_type,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=_integer(config, "num_key_value_heads", default=num_heads),
        head_dim=_integer(config, "head_dim", default=hidden_size // num_heads),
        vocab_size=_integer(config, "vocab_size"),
        max_position_embeddings=_integer(config, "max_position_embeddings"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=_dtype(config),
        attention_bias=_ATTENTION_BIAS.get(model_type, "qkvo" if config.get("attention_bias") else ""),
        mlp_bias=bool(config.get("mlp_bias", False)),
        num_experts=_integer(config, "num_local_experts", "num_experts") if expert_layers else 0,
        expert_intermediate_size=_integer(config, "moe_intermediate_size", default=intermediate_size),
        expert_layers=expert_layers,
    )


def parameters(shape: ModelShape, *, tp: int = 1) -> int:
    """Parameters that one GPU of a tensor-parallel group holds. vLLM splits heads, MLPs, experts and the
    vocabulary; it repeats norms, routers and KV heads that do not go round."""
    embeddings = shape.vocab_size * shape.hidden_size // tp
    embeddings *= 1 if shape.tie_word_embeddings else 2
    dense_layers = shape.num_layers - shape.expert_layers
    return (
        embeddings
        + shape.num_layers * (_attention_parameters(shape, tp) + 2 * shape.hidden_size)
        + dense_layers * _mlp_parameters(shape, shape.intermediate_size, tp)
        + shape.expert_layers * _experts_parameters(shape, tp)
        + shape.hidden_size
    )


def weights_bytes(shape: ModelShape, *, dtype: str | None = None, tp: int = 1) -> int:
    """Bytes of weights on one GPU. `dtype` overrides the config's, as vLLM's flag does."""
    return parameters(shape, tp=tp) * dtype_bytes(dtype or shape.dtype)


def decode_bytes(shape: ModelShape, *, dtype: str | None = None, tp: int = 1) -> int:
    """Bytes of weights that a decode step reads on one GPU: all of a dense model but the table of input
    embeddings, of which it reads one row a sequence. Where that table is tied, it is the output layer too."""
    table = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size // tp
    return (parameters(shape, tp=tp) - table) * dtype_bytes(dtype or shape.dtype)


def kv_bytes_per_token(shape: ModelShape, *, dtype: str | None = None, tp: int = 1) -> int:
    """Bytes that one token's keys and values take on one GPU:
    2 * layers * max(1, kv_heads / tp) * head_dim * bytes. `dtype` is the cache's; "auto" in vLLM."""
    heads = _kv_heads_per_gpu(shape, tp)
    return 2 * shape.num_layers * heads * shape.head_dim * dtype_bytes(dtype or shape.dtype)


def dtype_bytes(dtype: str) -> int:
    """Raises UnsupportedModelError for a type other than float16, bfloat16 and float32."""
    if dtype not in DTYPE_BYTES:
        raise UnsupportedModelError(
            f"The type {dtype!r} is not supported yet: use one of {', '.join(DTYPE_BYTES)}."
        )
    return DTYPE_BYTES[dtype]


def activation_bytes(
    shape: ModelShape,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    dtype: str | None = None,
    tp: int = 1,
) -> int:
    """Peak of vLLM's profile run: the larger of sampling `max_num_seqs` rows of logits and one forward of
    `max_num_batched_tokens`, taken as 3 MLP rows and 4 hidden rows a token (Granite 3.1 8B on an H100:
    0.84 GiB here, 0.85 logged)."""
    sampling = SAMPLING_BYTES_PER_LOGIT * max_num_seqs * shape.vocab_size
    row = 3 * shape.intermediate_size // tp + 4 * shape.hidden_size
    forward = max_num_batched_tokens * row * dtype_bytes(dtype or shape.dtype)
    return round(max(sampling, forward))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """vLLM's memory on one GPU, as it is divided at start. All in bytes but the last three."""

    budget_bytes: int
    weights_bytes: int
    activation_bytes: int
    cuda_graphs_bytes: int
    non_torch_bytes: int
    kv_bytes: int
    """What is left for the KV cache, before rounding to blocks."""
    kv_bytes_per_token: int
    block_size: int
    num_gpu_blocks: int
    """Whole blocks, with the null block."""

    @property
    def tokens(self) -> int:
        """Tokens that requests can hold: one block is lost to the null block."""
        return (self.num_gpu_blocks - 1) * self.block_size


def estimate_pool(
    shape: ModelShape,
    *,
    vram_bytes: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    cuda_graphs_bytes: int,
    non_torch_bytes: int,
    gpu_memory_utilization: float = 0.92,
    block_size: int = 16,
    dtype: str | None = None,
    tp: int = 1,
) -> Pool:
    """The pool that vLLM would allocate on each GPU of `vram_bytes` (as the driver reports it).

    Raises ValueError when nothing is left for the KV cache.
    """
    budget = math.ceil(vram_bytes * gpu_memory_utilization)
    weights = weights_bytes(shape, dtype=dtype, tp=tp)
    activation = activation_bytes(
        shape,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        dtype=dtype,
        tp=tp,
    )
    per_token = kv_bytes_per_token(shape, dtype=dtype, tp=tp)
    kv_bytes = budget - weights - activation - cuda_graphs_bytes - non_torch_bytes
    blocks = kv_bytes // (per_token * block_size)
    if blocks < 2:
        raise ValueError(
            f"Nothing is left for the KV cache: of a budget of {budget / GIB:.2f} GiB, weights take "
            f"{weights / GIB:.2f} and the rest of the start-up "
            f"{(activation + cuda_graphs_bytes + non_torch_bytes) / GIB:.2f} GiB."
        )
    return Pool(
        budget_bytes=budget,
        weights_bytes=weights,
        activation_bytes=activation,
        cuda_graphs_bytes=cuda_graphs_bytes,
        non_torch_bytes=non_torch_bytes,
        kv_bytes=kv_bytes,
        kv_bytes_per_token=per_token,
        block_size=block_size,
        num_gpu_blocks=blocks,
    )


def _refuse_unknown_layouts(config: Mapping[str, object]) -> None:
    refusals = {
        "a nested text_config (multimodal)": "text_config" in config,
        "quantised weights": config.get("quantization_config") is not None,
        "multi-head latent attention": config.get("kv_lora_rank") is not None,
        "sliding-window attention": _slides(config),
        "layers that are not full attention": _mixes_layers(config),
    }
    for name, present in refusals.items():
        if present:
            raise UnsupportedModelError(f"This config.json has {name}, which is not supported yet.")
    model_type = config.get("model_type")
    if model_type not in _KNOWN:
        raise UnsupportedModelError(
            f"The model type {model_type!r} is not supported yet: known are {', '.join(sorted(_KNOWN))}."
        )


def _slides(config: Mapping[str, object]) -> bool:
    # Qwen's configs state a window and then switch it off.
    return config.get("sliding_window") is not None and config.get("use_sliding_window") is not False


def _mixes_layers(config: Mapping[str, object]) -> bool:
    kinds = config.get("layer_types")
    return isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds)


def _expert_layers(config: Mapping[str, object], model_type: str, num_layers: int) -> int:
    """Qwen's configs may leave layers dense: by list, and by every n-th layer."""
    if model_type not in _EXPERTS:
        return 0
    dense = config.get("mlp_only_layers")
    listed = set(dense) if isinstance(dense, list) else set()
    every = _integer(config, "decoder_sparse_step", default=1)
    return sum(layer not in listed and (layer + 1) % every == 0 for layer in range(num_layers))


def _dtype(config: Mapping[str, object]) -> str:
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype_bytes(dtype)
    return dtype


def _integer(config: Mapping[str, object], *names: str, default: int | None = None) -> int:
    """The first of `names` that is present. Booleans are not integers here."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise UnsupportedModelError(
                f"{name} in config.json must be a whole number above 0, not {value!r}."
            )
        return value
    if default is None:
        raise UnsupportedModelError(f"The config.json lacks {names[0]}.")
    return default


def _kv_heads_per_gpu(shape: ModelShape, tp: int) -> int:
    return max(1, shape.num_kv_heads // tp)


def _attention_parameters(shape: ModelShape, tp: int) -> int:
    query = shape.num_heads // tp * shape.head_dim
    key_value = 2 * _kv_heads_per_gpu(shape, tp) * shape.head_dim
    weights = shape.hidden_size * (2 * query + key_value)
    bias = query + key_value if shape.attention_bias else 0
    bias += shape.hidden_size if shape.attention_bias == "qkvo" else 0
    norms = 2 * shape.head_dim if shape.model_type in _QK_NORM else 0
    return weights + bias + norms


def _mlp_parameters(shape: ModelShape, intermediate_size: int, tp: int) -> int:
    rows = intermediate_size // tp
    bias = 2 * rows + shape.hidden_size if shape.mlp_bias else 0
    return 3 * shape.hidden_size * rows + bias


def _experts_parameters(shape: ModelShape, tp: int) -> int:
    router = shape.hidden_size * shape.num_experts
    return router + shape.num_experts * _mlp_parameters(shape, shape.expert_intermediate_size, tp)

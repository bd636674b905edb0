"""The KV cache of a model on one GPU, in bytes and in vLLM's blocks. Knows no memory budget."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loadtest.model.architectures import ModelShape
from loadtest.model.layers.tensors import AttentionCache, Cache, Layer, StateCache
from loadtest.model.quantisation import UnsupportedModelError, dtype_bytes
from loadtest.model.speculation import Speculation
from loadtest.model.weights import pipeline_stages

KV_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "float16", "bfloat16", "float32")


def kv_dtype_bytes(kv_dtype: str | None, dtype: str) -> int:
    """Returns the bytes of one element of the KV cache. If `kv_dtype` is "auto" or None, the element has the
    model's type `dtype`. Raises UnsupportedModelError for a type that is not in KV_DTYPES."""
    if kv_dtype in (None, "auto"):
        return dtype_bytes(dtype)
    if kv_dtype not in KV_DTYPES:
        raise UnsupportedModelError(
            f"The KV cache type {kv_dtype!r} is not supported: use one of {', '.join(KV_DTYPES)}."
        )
    return 1 if str(kv_dtype).startswith("fp8") else dtype_bytes(str(kv_dtype))


def kv_bytes_per_token(
    shape: ModelShape, *, dtype: str | None = None, tp: int = 1, kv_dtype: str | None = None, pp: int = 1
) -> int | None:
    """Returns the KV-cache bytes of one token on one GPU, in the pipeline stage where this number is largest.

    With full attention the number is 2 * layers * max(1, kv_heads / tp) * head_dim * bytes of an element. An
    MLA layer holds one latent vector instead of a key and a value for each head. Recurrent layers do not
    count: their state does not grow with the tokens.
    Returns None if any layer has a window or chunk, because the bytes then depend on the token's position.
    `dtype` is the type of the model, `kv_dtype` the type of the cache.
    """
    caches = [cache for layer in shape.layers for cache in layer.caches]
    if any(isinstance(cache, AttentionCache) and cache.kind in ("window", "chunk") for cache in caches):
        return None
    width = kv_dtype_bytes(kv_dtype, dtype or shape.dtype)
    stage_bytes = [
        sum(
            _token_bytes(cache, tp, width)
            for index in stage
            for cache in shape.layers[index].caches
            if isinstance(cache, AttentionCache)
        )
        for stage in pipeline_stages(shape.num_layers, pp)
    ]
    return max(stage_bytes)


def _token_bytes(cache: AttentionCache, tp: int, width: int) -> int:
    if cache.packed_bytes is not None:
        return cache.packed_bytes[0 if width > 1 else 1]
    heads = 1 if cache.kind == "mla" else max(1, cache.heads // tp)
    return heads * cache.width * width


def _state_bytes(cache: StateCache, tp: int, dtype: str, drafted: int) -> int:
    recurrent = dtype if cache.dtype == "auto" else cache.dtype
    convolution = -(-cache.channels // tp) * (cache.inputs + drafted)
    return convolution * dtype_bytes(dtype) + -(-cache.recurrent // tp) * dtype_bytes(recurrent)


@dataclass(frozen=True, kw_only=True, slots=True)
class KvCacheGroup:
    """A group of layers with the same kind of cache, which share one block table."""

    kind: Literal["full", "window", "chunk", "mla", "state"]
    span: int
    """Tokens of the window or chunk; 0 without one."""
    layers: tuple[int, ...]
    drafted: int = 0
    """Tokens that speculative decoding drafts in a step: blocks of a recurrent state beyond the first one."""

    def blocks(self, tokens: int, *, block_size: int) -> int:
        """Returns the number of blocks that a request of `tokens` tokens holds in this group. Blocks that lie
        wholly before the window or chunk do not count: vLLM has freed them."""
        needed = -(-tokens // block_size)
        match self.kind:
            case "window":
                return needed - max(tokens - self.span, 0) // block_size
            case "chunk":
                return needed - (tokens - 1) // self.span * self.span // block_size
            case "state":
                return 1 + self.drafted
        return needed

    def max_blocks(self, tokens: int, *, block_size: int, in_flight: int, states: int) -> int:
        """Returns the largest number of blocks that vLLM reserves in this group for a request of `tokens`
        tokens. `in_flight` is the number of tokens that one step may compute, `states` the number of blocks
        of a recurrent state."""
        match self.kind:
            case "window":
                return -(-min(self.span - 1 + in_flight, tokens) // block_size) + 1
            case "chunk":
                return -(-min(self.span + in_flight, tokens) // block_size)
            case "state":
                return states + self.drafted
        return -(-tokens // block_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class KvLayout:
    """How vLLM divides the KV cache into blocks. All blocks have the same size.

    vLLM also divides the layers into groups, and each group has blocks of its own. A model that has only full
    attention has one group. In any other model, the groups have about equal numbers of layers, because a
    block must have the same size for every group (vLLM's _get_kv_cache_groups_uniform_page_size).
    """

    block_size: int
    """Tokens of a block; larger than vLLM's flag if a recurrent state needs more room."""
    bytes_per_block: int
    """Bytes of a block on one GPU of the pipeline stage that has the most layers of a group."""
    groups: tuple[KvCacheGroup, ...]
    states: int
    """Blocks that vLLM counts for a recurrent state: 2 with prefix caching (mode "align"), else 1."""
    lookahead: int = 0
    """Tokens for which a request holds blocks beyond its own, with speculative decoding."""

    @property
    def uniform(self) -> bool:
        """Whether all layers have full attention, so that the size of the pool can be given in tokens."""
        return len(self.groups) == 1 and self.groups[0].kind in ("full", "mla")

    def blocks(self, tokens: int) -> int:
        """Returns the number of blocks that a request of `tokens` tokens holds, summed over all groups."""
        held = tokens + self.lookahead
        return sum(group.blocks(held, block_size=self.block_size) for group in self.groups)

    @property
    def fixed_blocks(self) -> int:
        """Number of blocks that a request of any length holds for recurrent states."""
        return sum(1 + group.drafted for group in self.groups if group.kind == "state")

    def max_blocks(self, max_model_len: int, *, in_flight: int) -> int:
        """Returns the number of blocks that vLLM assumes for one request of `max_model_len` tokens in its log
        line "Maximum concurrency". `in_flight` is the number of tokens that one step may compute."""
        return sum(
            group.max_blocks(
                max_model_len, block_size=self.block_size, in_flight=in_flight, states=self.states
            )
            for group in self.groups
        )


def kv_layout(
    shape: ModelShape,
    *,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    tp: int = 1,
    pp: int = 1,
    stage: int | None = None,
    block_size: int = 16,
    enable_prefix_caching: bool = True,
    speculation: Speculation | None = None,
) -> KvLayout:
    """Returns the layout of the KV cache that vLLM chooses on one GPU of pipeline stage `stage`.

    If `stage` is None, the result is for the stage with the largest blocks. The layers of a draft count like
    the model's own; they need `pp` 1. Raises UnsupportedModelError if blocks of all layers cannot have the
    same size.
    """
    model_dtype = dtype or shape.dtype
    width = kv_dtype_bytes(kv_dtype, model_dtype)
    draft = speculation.draft if speculation else None
    drafted = speculation.tokens if speculation else 0
    layers = (*shape.layers, *(draft.layers if draft else ()))
    caches = [cache for layer in layers for cache in layer.caches]
    attention = [cache for cache in caches if isinstance(cache, AttentionCache)]
    sizes = {_token_bytes(cache, tp, width) for cache in attention}
    state = {
        _state_bytes(cache, tp, model_dtype, drafted) for cache in caches if isinstance(cache, StateCache)
    }
    groups = _groups(layers, drafted)
    stages = pipeline_stages(shape.num_layers, pp) if pp > 1 else [range(len(layers))]
    chosen = [layers_of for number, layers_of in enumerate(stages) if stage in (None, number)]
    if len(sizes) > 1 and len(groups) == 1:  # Layers of one kind are one group, whatever their sizes.
        per_block = block_size * max(
            sum(
                _token_bytes(cache, tp, width)
                for index in layers_of
                for cache in layers[index].caches
                if isinstance(cache, AttentionCache)
            )
            for layers_of in chosen
        )
    elif len(sizes) != 1 or len(state) > 1:
        raise UnsupportedModelError("Layers whose KV caches differ in size are not supported.")
    else:
        per_token = sizes.pop()
        if state:
            block_size *= -(-state.pop() // (block_size * per_token))
        busiest = max(
            sum(index in layers_of for index in group.layers) for group in groups for layers_of in chosen
        )
        per_block = busiest * per_token * block_size
    return KvLayout(
        block_size=block_size,
        bytes_per_block=per_block,
        groups=groups,
        states=2 if enable_prefix_caching else 1,
        lookahead=speculation.lookahead if speculation else 0,
    )


def _groups(model_layers: Sequence[Layer], drafted: int) -> tuple[KvCacheGroup, ...]:
    kinds: dict[tuple[str, int], list[int]] = {}
    for index, layer in enumerate(model_layers):
        for cache in layer.caches:
            key = (cache.kind, cache.span) if isinstance(cache, AttentionCache) else ("state", 0)
            kinds.setdefault(key, []).append(index)
    least, most = min(map(len, kinds.values())), max(map(len, kinds.values()))
    size = most if most < 1.5 * least else least  # vLLM's heuristic: pad rather than split
    groups = []
    for (kind, span), indices in kinds.items():
        count = -(-len(indices) // size)
        for first in range(count):
            layers = tuple(indices[first::count])
            groups.append(KvCacheGroup(kind=kind, span=span, layers=layers, drafted=drafted))  # type: ignore[arg-type]
    return tuple(groups)


def cache_kinds(shape: ModelShape) -> list[str]:
    """Returns one text for each kind of cache, such as "12 x sliding window" for 12 layers of this kind. The
    most common kind is first."""
    words = {
        "full": "full attention",
        "mla": "latent attention (MLA)",
        "window": "sliding window",
        "chunk": "chunked attention",
        "state": "recurrent state",
        "index": "index of sparse attention",
    }
    count = Counter(_kind(cache) for layer in shape.layers for cache in layer.caches)
    return [f"{many} x {words[kind]}" for kind, many in count.most_common()]


def _kind(cache: Cache) -> str:
    if isinstance(cache, StateCache):
        return "state"
    packed = cache.packed_bytes
    return "index" if packed is not None and packed[0] == packed[1] else cache.kind

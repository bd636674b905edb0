"""Counts the parameters and bytes of weights on one GPU of a parallel group. Knows no KV cache."""

import math
from collections.abc import Iterable
from itertools import accumulate, chain

from loadtest.model.architectures import ModelShape
from loadtest.model.layers.tensors import ExpertPlacement, Tensor
from loadtest.model.quantisation import dtype_bytes

WITHOUT_DATA_PARALLEL = ExpertPlacement()
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of --max-lora-rank (MaxLoRARanks in vLLM's config/lora.py)."""


def parameter_count(shape: ModelShape, *, tp: int = 1) -> int:
    """Counts the parameters that one GPU of a tensor-parallel group holds.

    vLLM splits heads, MLPs, experts and the vocabulary over the GPUs. Every GPU holds all norms and routers.
    If there are more GPUs than KV heads, several GPUs hold the same KV head.
    """
    return round(sum(math.prod(tensor.part(tp)) * tensor.count for tensor in _tensors(shape)))


def pipeline_stages(num_layers: int, pp: int) -> list[range]:
    """Returns the layers of each pipeline stage. Layers that remain after an even division go
    one each to the second-last stage and the stages before it (vLLM's get_pp_indices)."""
    counts = [num_layers // pp] * pp
    for extra in range(num_layers % pp):
        counts[-extra - 2] += 1
    ends = list(accumulate(counts))
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def weights_bytes(
    shape: ModelShape,
    *,
    dtype: str | None = None,
    tp: int = 1,
    pp: int = 1,
    stage: int = 0,
    experts: ExpertPlacement = WITHOUT_DATA_PARALLEL,
) -> int:
    """Returns the bytes of the weights on one GPU of pipeline stage `stage`, quantisation scales included.
    `dtype` overrides the type that the config states, as vLLM's flag --dtype does."""
    width = dtype_bytes(dtype or shape.dtype)
    return round(
        sum(
            _tensor_bytes(shape, tensor, width, tp, experts) for tensor in _tensors(shape, pp=pp, stage=stage)
        )
    )


def lora_bytes(
    shape: ModelShape,
    *,
    max_loras: int,
    max_lora_rank: int,
    dtype: str | None = None,
    tp: int = 1,
    pp: int = 1,
    stage: int = 0,
    experts: ExpertPlacement = WITHOUT_DATA_PARALLEL,
) -> int:
    """Returns the bytes of the buffers that hold `max_loras` adapters on one GPU of a pipeline stage.

    vLLM allocates them at start-up: two for each matrix of a linear layer or an expert, of which only the one
    beside the split dimension is split (vLLM's lora/layers). Embeddings and head have buffers of the whole
    vocabulary on every GPU, in most families; here in all.
    """
    tensors = [tensor for tensor in _tensors(shape, pp=pp, stage=stage) if tensor.linear]
    vocabulary = (tensor for tensor in tensors if tensor.name == "lm_head")
    held = [experts.held(tensor, tp) for tensor in tensors if tensor.name != "lm_head"]
    elements = sum((rows + columns) * count for rows, columns, count in held)
    elements += sum(tensor.rows + tensor.columns for tensor in vocabulary)
    if stage == 0:
        elements += (shape.vocab_size + shape.hidden_size) * (2 if shape.tie_word_embeddings else 1)
    return round(max_loras * max_lora_rank * elements * dtype_bytes(dtype or shape.dtype))


def step_bytes(
    shape: ModelShape,
    *,
    dtype: str | None = None,
    tp: int = 1,
    sequences: float | None = None,
    experts: ExpertPlacement = WITHOUT_DATA_PARALLEL,
) -> float:
    """Returns the bytes of weights that one decode step reads, summed over one GPU of each pipeline stage.

    A step reads all layers and the head. It reads only a few rows of the embeddings, so these do not count.
    Tied embeddings count, because they are also the head. An expert counts with the probability that at least
    one of `sequences` sequences chooses it; all experts are taken as equally likely. If `sequences` is None,
    all experts are read. Data-parallel engines have `sequences` each, which share the experts.
    """
    width = dtype_bytes(dtype or shape.dtype)
    head = shape.before[:1] if shape.tie_word_embeddings else ()
    total = 0.0
    for tensor in chain(*(layer.tensors for layer in shape.layers), shape.after, head):
        read_fraction = 1.0
        if tensor.expert and sequences is not None:
            unused = 1.0 - min(shape.experts_per_token / tensor.count, 1.0 - 1e-12)
            read_fraction = 1.0 - unused ** max(sequences * experts.data_parallel, 1.0)
        total += read_fraction * _tensor_bytes(shape, tensor, width, tp, experts)
    return total


def rotary_bytes(shape: ModelShape, *, dtype: str | None = None) -> int:
    """Returns the bytes of the cos/sin tables of rotary embeddings (RoPE; vLLM's cos_sin_cache)."""
    return shape.rotary_elements * dtype_bytes(dtype or shape.dtype)


def _tensors(shape: ModelShape, *, pp: int = 1, stage: int = 0) -> Iterable[Tensor]:
    layers = (shape.layers[index].tensors for index in pipeline_stages(shape.num_layers, pp)[stage])
    last = stage == pp - 1
    head = shape.before[:1] if last and pp > 1 and shape.tie_word_embeddings else ()
    return chain(shape.before if stage == 0 else (), *layers, shape.after if last else (), head)


def _tensor_bytes(shape: ModelShape, tensor: Tensor, width: int, tp: int, experts: ExpertPlacement) -> float:
    scheme = shape.quantisation.scheme(tensor.name) if shape.quantisation and tensor.linear else None
    rows, columns, count = experts.held(tensor, tp)
    if scheme is None:
        return rows * columns * width * count
    # Latent attention also keeps this matrix unpacked (W_UK_T and W_UV in vLLM's mla_attention).
    unpacked = rows * columns * width if tensor.name.endswith("kv_b_proj") else 0.0
    return (scheme.matrix_bytes(rows, columns) + unpacked) * count

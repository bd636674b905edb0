"""Counts the parameters and bytes of weights on one GPU of a parallel group. Knows no KV cache."""

import math
from collections.abc import Iterable
from itertools import accumulate, chain

from loadtest.model.architectures import ModelShape
from loadtest.model.layers.tensors import Tensor
from loadtest.model.quantisation import dtype_bytes


def parameter_count(shape: ModelShape, *, tp: int = 1) -> int:
    """Counts the parameters that one GPU of a tensor-parallel group holds. vLLM splits heads, MLPs, experts
    and the vocabulary. Every GPU holds all norms and routers; KV heads are repeated if there are more GPUs
    than heads."""
    return round(sum(math.prod(tensor.part(tp)) * tensor.count for tensor in _tensors(shape)))


def pipeline_stages(num_layers: int, pp: int) -> list[range]:
    """Returns the layers of each pipeline stage. Layers left over by the division go, one each, to the last
    stage but one and to the stages before it (vLLM's get_pp_indices)."""
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
) -> int:
    """Returns the bytes of the weights, with their scales, on one GPU of pipeline stage `stage`. `dtype`
    overrides the type of the config, as vLLM's flag does."""
    width = dtype_bytes(dtype or shape.dtype)
    return round(
        sum(_tensor_bytes(shape, tensor, width, tp) for tensor in _tensors(shape, pp=pp, stage=stage))
    )


def step_bytes(
    shape: ModelShape, *, dtype: str | None = None, tp: int = 1, sequences: float | None = None
) -> float:
    """Returns the bytes of weights that one decode step reads, summed over one GPU of each pipeline stage.
    All layers and the head are read. Embeddings count only as a tied head, because a step reads few of
    their rows. An expert counts with the probability that at least one of `sequences` sequences chooses
    it, if all are chosen equally often (None: all experts are read)."""
    width = dtype_bytes(dtype or shape.dtype)
    head = shape.before[:1] if shape.tie_word_embeddings else ()
    total = 0.0
    for tensor in chain(*(layer.tensors for layer in shape.layers), shape.after, head):
        read_fraction = 1.0
        if tensor.expert and sequences is not None:
            unused = 1.0 - min(shape.experts_per_token / tensor.count, 1.0 - 1e-12)
            read_fraction = 1.0 - unused ** max(sequences, 1.0)
        total += read_fraction * _tensor_bytes(shape, tensor, width, tp)
    return total


def rotary_bytes(shape: ModelShape, *, dtype: str | None = None) -> int:
    """Returns the bytes of the tables of rotary positions, in the model's type (vLLM's cos_sin_cache)."""
    return shape.rotary_elements * dtype_bytes(dtype or shape.dtype)


def _tensors(shape: ModelShape, *, pp: int = 1, stage: int = 0) -> Iterable[Tensor]:
    layers = (shape.layers[index].tensors for index in pipeline_stages(shape.num_layers, pp)[stage])
    last = stage == pp - 1
    head = shape.before[:1] if last and pp > 1 and shape.tie_word_embeddings else ()
    return chain(shape.before if stage == 0 else (), *layers, shape.after if last else (), head)


def _tensor_bytes(shape: ModelShape, tensor: Tensor, width: int, tp: int) -> float:
    scheme = shape.quantisation.scheme(tensor.name) if shape.quantisation and tensor.linear else None
    rows, columns = tensor.part(tp)
    matrix_bytes = rows * columns * width if scheme is None else scheme.matrix_bytes(rows, columns)
    return matrix_bytes * tensor.count

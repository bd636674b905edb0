"""Sizes of a layer's weight tensors and KV caches, and how tensor parallelism splits them. Knows no GPU."""

from dataclasses import dataclass
from typing import Literal

ANY_SHARDS = 1 << 30
"""Value of `Tensor.shards` for a tensor that can be split over any number of GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A weight tensor. A `count` above 1 means that many tensors of the same shape (experts, norms)."""

    name: str
    """Path of the module in the checkpoint, as in the lists of modules that are not quantised."""
    rows: int
    columns: int = 1
    count: int = 1
    shards: int = 1
    """Largest number of parts into which tensor parallelism splits the tensor; with more GPUs, parts are
    repeated."""
    split: Literal["rows", "columns"] = "rows"
    """Dimension along which tensor parallelism splits the tensor."""
    linear: bool = False
    """Whether the tensor is a matrix of a linear layer or an expert, to which quantisation applies."""

    @property
    def parameters(self) -> int:
        """Number of parameters of all `count` tensors."""
        return self.rows * self.columns * self.count

    @property
    def expert(self) -> bool:
        """Whether the tensor belongs to routed experts, of which one token uses only a few."""
        return ".experts." in self.name

    def part(self, tp: int) -> tuple[float, float]:
        """Returns the number of rows and of columns that one of `tp` GPUs holds. They may be fractional."""
        pieces = min(tp, self.shards)
        return (
            (self.rows / pieces, self.columns) if self.split == "rows" else (self.rows, self.columns / pieces)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertPlacement:
    """How routed experts are spread over the GPUs of one server (vLLM's FusedMoEParallelConfig).

    Data-parallel engines hold copies of everything but the experts, which they divide among all their GPUs:
    every expert by its width, or with `expert_parallel` whole experts.
    """

    data_parallel: int = 1
    expert_parallel: bool = False

    def held(self, tensor: Tensor, tp: int) -> tuple[float, float, int]:
        """Returns the rows and columns of a tensor on one GPU, and how many tensors of this size it holds."""
        if not tensor.expert:
            return *tensor.part(tp), tensor.count
        gpus = tp * self.data_parallel
        if self.expert_parallel:
            return tensor.rows, tensor.columns, -(-tensor.count // gpus)
        return *tensor.part(gpus), tensor.count


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCache:
    """KV cache of one attention layer: `heads * width` elements per token. With MLA there is one head, the
    latent vector, and every GPU holds the whole vector."""

    kind: Literal["full", "window", "chunk", "mla"]
    heads: int
    width: int
    """Elements per token and head, keys and values together."""
    span: int = 0
    """Tokens of the window or chunk; 0 without one."""
    packed_bytes: tuple[int, int] | None = None
    """Bytes of a token in a cache of 16 bits and in one of 8, where they do not follow from `width`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateCache:
    """Recurrent state of one layer. Its size is the same for every request; tensor parallelism splits it."""

    channels: int
    """Channels of the convolution."""
    inputs: int
    """Last inputs of each channel that the convolution needs, in the model's type; speculative decoding keeps
    one more for each drafted token."""
    recurrent: int
    """Elements of the recurrent state, in `dtype`."""
    dtype: str
    """Type of the recurrent state; "auto" stands for the model's type."""


Cache = AttentionCache | StateCache


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """All weight tensors and caches of one layer."""

    tensors: tuple[Tensor, ...]
    caches: tuple[Cache, ...]


def column_parallel(
    name: str, rows: int, columns: int, *, bias: bool = False, shards: int = ANY_SHARDS, count: int = 1
) -> list[Tensor]:
    """Builds a projection whose rows (outputs) are split over GPUs. Its bias, if any, is split too."""
    tensors = [Tensor(name=name, rows=rows, columns=columns, count=count, shards=shards, linear=True)]
    if bias:
        tensors.append(Tensor(name=f"{name}.bias", rows=rows, count=count, shards=shards))
    return tensors


def row_parallel(name: str, rows: int, columns: int, *, bias: bool = False, count: int = 1) -> list[Tensor]:
    """Builds a projection whose columns (inputs) are split over GPUs. Every GPU holds the whole
    bias, if there is one."""
    found = [
        Tensor(
            name=name,
            rows=rows,
            columns=columns,
            count=count,
            shards=ANY_SHARDS,
            split="columns",
            linear=True,
        )
    ]
    return [*found, Tensor(name=f"{name}.bias", rows=rows, count=count)] if bias else found


def norm_tensors(name: str, size: int, count: int, *, bias: bool = False) -> list[Tensor]:
    """Returns a list with one tensor for `count` norms; empty if `count` is 0. Every GPU holds all norms."""
    return [Tensor(name=name, rows=size, columns=2 if bias else 1, count=count)] if count else []

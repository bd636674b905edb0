"""Weight tensors and KV caches of a layer: their sizes, and how tensor parallelism splits them. Knows no
GPU."""

from dataclasses import dataclass
from typing import Literal

ANY_SHARDS = 1 << 30
"""Value of `Tensor.shards` for a tensor that can be split over any number of GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """`count` weight tensors of one shape; more than one for experts."""

    name: str
    """Path of the module in the checkpoint, as lists of quantisation exceptions name it."""
    rows: int
    columns: int = 1
    count: int = 1
    shards: int = 1
    """Largest number of GPUs that tensor parallelism splits the tensor over; each further GPU holds a
    copy."""
    split: Literal["rows", "columns"] = "rows"
    """The side that tensor parallelism divides."""
    linear: bool = False
    """Whether the tensor is a matrix of a linear layer or an expert, to which quantisation applies."""

    @property
    def parameters(self) -> int:
        """Parameters of all `count` tensors."""
        return self.rows * self.columns * self.count

    @property
    def expert(self) -> bool:
        """Whether the tensor belongs to routed experts, of which only the chosen ones are read for a
        token."""
        return ".experts." in self.name

    def part(self, tp: int) -> tuple[float, float]:
        """Rows and columns that one of `tp` GPUs holds; they may be fractional."""
        pieces = min(tp, self.shards)
        return (
            (self.rows / pieces, self.columns) if self.split == "rows" else (self.rows, self.columns / pieces)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCache:
    """Keys and values of one layer: `heads * width` elements per token. With MLA, one latent vector on every
    GPU."""

    kind: Literal["full", "window", "chunk", "mla"]
    heads: int
    width: int
    """Elements per token and head, keys and values together."""
    span: int = 0
    """Tokens of the window or chunk; 0 without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateCache:
    """Recurrent state of one layer: the same size for each request, split over the tensor-parallel group."""

    convolution: int
    """Elements of the convolution's state, in the model's type."""
    recurrent: int
    """Elements of the recurrent state, in `dtype`."""
    dtype: str
    """Type of the recurrent state; "auto" stands for the model's type."""


Cache = AttentionCache | StateCache


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """All tensors and caches of one layer."""

    tensors: tuple[Tensor, ...]
    caches: tuple[Cache, ...]


def column_parallel(
    name: str, rows: int, columns: int, *, bias: bool = False, shards: int = ANY_SHARDS, count: int = 1
) -> list[Tensor]:
    """Builds a projection that is split by rows of outputs, and its bias, which is split too."""
    tensors = [Tensor(name=name, rows=rows, columns=columns, count=count, shards=shards, linear=True)]
    if bias:
        tensors.append(Tensor(name=f"{name}.bias", rows=rows, count=count, shards=shards))
    return tensors


def row_parallel(name: str, rows: int, columns: int, *, bias: bool = False, count: int = 1) -> list[Tensor]:
    """Builds a projection that is split by columns of inputs, and its bias, of which every GPU holds a
    copy."""
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
    """Builds `count` norms, of which every GPU holds a copy."""
    return [Tensor(name=name, rows=size, columns=2 if bias else 1, count=count)] if count else []

"""TODO."""

from dataclasses import dataclass
from typing import Literal

ANY_SHARDS = 1 << 30
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


# Pieces of layers. Column-parallel projections split their bias, row-parallel ones repeat it.


def column_parallel(
    name: str, rows: int, columns: int, *, bias: bool = False, shards: int = ANY_SHARDS, count: int = 1
) -> list[Tensor]:
    found = [Tensor(name=name, rows=rows, columns=columns, count=count, shards=shards, linear=True)]
    if bias:
        found.append(Tensor(name=f"{name}.bias", rows=rows, count=count, shards=shards))
    return found


def row_parallel(name: str, rows: int, columns: int, *, bias: bool = False, count: int = 1) -> list[Tensor]:
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
    return [Tensor(name=name, rows=size, columns=2 if bias else 1, count=count)] if count else []

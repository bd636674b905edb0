"""TODO."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loadtest.model.quantisation import UnsupportedModelError

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


class ConfigKeys:
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


Mixer = Callable[[ConfigKeys, "ModelFamily", int], tuple[list[Tensor], list[Cache]]]
Mlp = Callable[[ConfigKeys, "ModelFamily", int], list[Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """How the models of one model_type are built. A bias is a constant or the key that says so."""

    mixer: Mixer
    mlp: Mlp
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
    slides: Callable[[ConfigKeys, int], bool] | None = None
    tied: bool = False
    """What an absent tie_word_embeddings means."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What the family's configuration class fills in for an absent key."""

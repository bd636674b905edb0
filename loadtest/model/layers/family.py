"""Model families: how the models of one model_type are built, and the keys of their config.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loadtest.model.layers.tensors import Cache, Tensor
from loadtest.model.quantisation import UnsupportedModelError


class ConfigKeys:
    """The keys of a config.json, with the defaults of its family. A missing or malformed key raises
    UnsupportedModelError."""

    def __init__(self, config: Mapping[str, object], defaults: Mapping[str, object]) -> None:
        self._config, self._defaults = config, defaults
        self.model_type = str(config.get("model_type"))

    def get(self, name: str) -> object:
        """The value of a key; None where neither the file nor the family has it."""
        value = self._config.get(name)
        return self._defaults.get(name) if value is None else value

    def integer(self, *names: str, default: int | None = None) -> int:
        """The whole number of the first key in `names` that is present. A boolean is not a whole number
        here."""
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
        """The value of a key as a boolean."""
        value = self.get(name)
        return bool(default if value is None else value)

    def bias(self, rule: str | bool) -> bool:
        """Resolves a family's bias: a constant, or the name of the key that holds it."""
        return rule if isinstance(rule, bool) else self.flag(rule)

    def items(self, name: str) -> Sequence[object]:
        """The list under a key; empty where it is absent or not a list."""
        value = self.get(name)
        return value if isinstance(value, list | tuple) else ()

    @property
    def hidden(self) -> int:
        """Hidden size."""
        return self.integer("hidden_size")

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.integer("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.integer("num_key_value_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        """Elements of one head."""
        return self.integer("head_dim", default=self.hidden // self.heads)


Mixer = Callable[[ConfigKeys, "ModelFamily", int], tuple[list[Tensor], list[Cache]]]
Mlp = Callable[[ConfigKeys, "ModelFamily", int], list[Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """How the models of one model_type are built. A bias is a constant or the name of the key that holds
    it."""

    mixer: Mixer
    mlp: Mlp
    qkv_bias: str | bool = "attention_bias"
    o_bias: str | bool = "attention_bias"
    mlp_bias: str | bool = False
    head_bias: str | bool = False
    gated: bool = True
    gated_query: bool = False
    norms: int = 2
    """Norms of the hidden size in one layer."""
    norm_bias: bool = False
    norm_weight: bool = True
    qk_norm: Literal["", "head", "full"] = ""
    """Norms of queries and keys: "head" has the size of one head, "full" of all heads."""
    qk_norm_key: str = ""
    """The key that switches `qk_norm` on; without a key it is always on."""
    sinks: bool = False
    slides: Callable[[ConfigKeys, int], bool] | None = None
    tied: bool = False
    """The value of tie_word_embeddings where the key is absent."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values that the family's configuration class has for absent keys."""

"""Model families: how layers of one model_type are built, and how the keys of its config.json are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loadtest.model.layers.tensors import Cache, Tensor
from loadtest.model.quantisation import UnsupportedModelError


class ConfigKeys:
    """Reads the keys of a config.json. An absent key is looked up by the family's other name for it, then in
    the family's defaults. A malformed key, or a missing one without default, raises UnsupportedModelError."""

    def __init__(
        self,
        config: Mapping[str, object],
        defaults: Mapping[str, object],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self._defaults, self._aliases = config, defaults, aliases or {}
        self.model_type = str(config.get("model_type"))

    def get(self, name: str) -> object:
        """Returns the value of a key; None if neither the file nor the family has it."""
        for stated in (name, self._aliases.get(name)):
            if stated is not None and self._config.get(stated) is not None:
                return self._config[stated]
        return self._defaults.get(name)

    def integer(self, *names: str, default: int | None = None) -> int:
        """Returns the value of the first key in `names` that is present; `default` if all are absent.

        Raises UnsupportedModelError if the value is not a whole number above 0 (0 is accepted if `default` is
        0). Also raises it if all keys are absent and `default` is None.
        """
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
        """Returns the value of a key as a boolean; `default` if it is absent."""
        value = self.get(name)
        return bool(default if value is None else value)

    def bias(self, rule: str | bool) -> bool:
        """Whether a bias exists. `rule` is a boolean, or the name of the config key that says so."""
        return rule if isinstance(rule, bool) else self.flag(rule)

    def items(self, name: str) -> Sequence[object]:
        """Returns the list that a key holds. It is empty if the key is absent or its value is not a list."""
        value = self.get(name)
        return value if isinstance(value, list | tuple) else ()

    @property
    def hidden(self) -> int:
        """Hidden size of the model."""
        return self.integer("hidden_size")

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.integer("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values; by default as many as attention heads, and one with
        multi_query, which new_decoder_architecture (Falcon) overrules."""
        if self.flag("multi_query") and not self.flag("new_decoder_architecture"):
            return 1
        return self.integer("num_key_value_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        """Elements of one head; by default the hidden size divided by the number of heads."""
        return self.integer("head_dim", default=self.hidden // self.heads)


Mixer = Callable[[ConfigKeys, "ModelFamily", int], tuple[list[Tensor], list[Cache]]]
Mlp = Callable[[ConfigKeys, "ModelFamily", int], list[Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """How the models of one model_type are built. A field about a bias is a boolean, or the name of the
    config key that says whether the bias exists."""

    mixer: Mixer
    mlp: Mlp
    qkv_bias: str | bool = "attention_bias"
    o_bias: str | bool = "attention_bias"
    mlp_bias: str | bool = False
    head_bias: str | bool = False
    gated: bool = True
    """Whether a dense MLP has a gate, and so three matrices."""
    gated_query: bool = False
    """Whether the query projection has a gate beside each query."""
    norms: int = 2
    """Number of norms over the hidden size in one layer."""
    norm_bias: bool = False
    norm_weight: bool = True
    """Whether norms have weights."""
    qk_norm: Literal["", "head", "full"] = ""
    """Norms of queries and keys, over one head ("head") or over all heads ("full"); empty: none."""
    qk_norm_key: str = ""
    """Name of the key that switches `qk_norm` on; empty: it is always on."""
    learned_positions: int | None = None
    """Rows of the table of learned positions beyond max_position_embeddings; None: there is no table."""
    embeddings: Callable[[ConfigKeys], list[Tensor]] | None = None
    """Builder of further tensors before the first layer; None: there are none."""
    embedding_norm: bool = False
    """Whether a norm follows the embeddings."""
    mtp: Literal["", "replicated", "sharded"] = ""
    """Whether the checkpoint has layers of multi-token prediction (MTP) that vLLM runs, and whether every GPU
    holds all of their projection; empty: none."""
    sinks: bool = False
    """Whether attention has a learned sink for each head."""
    slides: Callable[[ConfigKeys, int], bool] | None = None
    """Rule that says whether a layer has a window; None: none has one, except by the key layer_types."""
    tied: bool = False
    """Value of tie_word_embeddings if the key is absent."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names that the family's config.json has for keys, by the usual names."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of absent keys, as in the family's configuration class."""


def nemotron_layer(keys: ConfigKeys, layer: int) -> str:
    """Returns the kind of a Nemotron-H layer: "M" for Mamba 2, "*" for attention, "-" for an MLP, "E" for
    experts."""
    pattern = str(keys.get("hybrid_override_pattern") or "")
    if len(pattern) != keys.integer("num_hidden_layers") or set(pattern) - set("M*-E"):
        raise UnsupportedModelError(
            "The config.json lacks hybrid_override_pattern, one letter for each layer."
        )
    return pattern[layer]

"""Speculative decoding: what a draft adds to weights and KV cache. Knows no GPU and no acceptance rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.layers.tensors import ANY_SHARDS, Layer, Tensor
from loadtest.model.quantisation import UnsupportedModelError

_AUXILIARY_STATES = 3
"""Hidden states of the target that EAGLE-3 joins, if its config does not say (vLLM's llama_eagle3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """Speculative decoding with `tokens` drafted tokens in each step."""

    method: str
    tokens: int
    draft: ModelShape | None = None
    """The layers that draft; None for drafts from the prompt (n-grams), which take no GPU memory."""
    model: str | None = None
    """Path of the draft, as stated; None if it has none."""

    @property
    def lookahead(self) -> int:
        """Tokens for which a request holds KV blocks beyond its own (vLLM's num_lookahead_tokens)."""
        return self.tokens if self.draft is not None else 0


def mtp_draft(target: ModelShape) -> ModelShape:
    """Returns the model's own layers of multi-token prediction, which share embeddings and head with it.

    Raises UnsupportedModelError if it has none, or none whose layout is known.
    """
    if not target.mtp_layers:
        raise UnsupportedModelError(
            f"This config.json ({target.model_type}) has no layers of multi-token prediction that are known."
        )
    return _draft(target, layers=target.mtp_layers, after=())


def eagle3_draft(config: Mapping[str, object], target: ModelShape) -> ModelShape:
    """Builds an EAGLE-3 draft of Llama's kind from its config.json (vLLM's llama_eagle3).

    Its first layer reads the embedding beside the hidden state, and a projection joins hidden states of the
    target. It shares the target's embeddings where both have the same width, and has a head of its own.
    """
    shape = parse_config(config)
    if shape.model_type != "llama":
        raise UnsupportedModelError(f"An EAGLE-3 draft of the type {shape.model_type!r} is not supported.")
    hidden, first = shape.hidden_size, shape.layers[0]
    reading = [
        replace(tensor, columns=2 * hidden)
        if tensor.name.endswith(("q_proj", "k_proj", "v_proj"))
        else tensor
        for tensor in first.tensors
    ]
    norm = Tensor(name="hidden_norm", rows=hidden)
    joined = _integer(config, "target_hidden_size", target.hidden_size) * _auxiliary_states(config)
    head = _integer(config, "draft_vocab_size", shape.vocab_size)
    after = (
        Tensor(name="fc", rows=hidden, columns=joined),
        Tensor(name="norm", rows=hidden),
        Tensor(name="draft_head", rows=head, columns=hidden, shards=ANY_SHARDS),
    )
    own = shape.before if hidden != target.hidden_size else ()
    layers = (replace(first, tensors=(*reading, norm)), *shape.layers[1:])
    return _draft(shape, layers=layers, after=(*own, *after))


def _draft(shape: ModelShape, *, layers: tuple[Layer, ...], after: tuple[Tensor, ...]) -> ModelShape:
    """Returns a shape with the quantisation of `shape` and the given layers, without embeddings and rotary
    tables, which vLLM shares with the target."""
    return replace(shape, layers=layers, before=(), after=after, tie_word_embeddings=False, rotary_elements=0)


def _integer(config: Mapping[str, object], name: str, default: int) -> int:
    value = config.get(name)
    return value if type(value) is int and value > 0 else default


def _auxiliary_states(config: Mapping[str, object]) -> int:
    eagle = config.get("eagle_config")
    layers = eagle.get("eagle_aux_hidden_state_layer_ids") if isinstance(eagle, Mapping) else None
    stated = len(layers) if isinstance(layers, Sequence) and layers else _AUXILIARY_STATES
    return _integer(config, "num_aux_hidden_states", stated)

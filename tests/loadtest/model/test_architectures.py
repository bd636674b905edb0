"""Parameters of real architectures against the counts of the models' own code.

Configurations are facts of the published config.json files, without what memory does not depend on. Counts
are those of transformers 5.19, no weights made, with the correction biases of routers, which vLLM loads. For
ChatGLM, InternLM2, Baichuan, EXAONE 3.5 and Qwen 1, whose code is not part of transformers, they are those of
the published checkpoints.
"""

import json

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.kv_cache import cache_kinds, kv_bytes_per_token, kv_layout
from loadtest.model.quantisation import UnsupportedModelError
from loadtest.model.weights import parameter_count
from testing.processes import ROOT

MODELS = json.loads((ROOT / "tests" / "data" / "architectures.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_exactly_those_of_the_models_own_code(name: str) -> None:
    shape = parse_config(MODELS[name]["config"])
    assert parameter_count(shape) == MODELS[name]["parameters"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("minimax-m2", 10),  # MiniMax-M2: 10 B activated
        ("qwen3.5-397b-a17b", 17),
        ("glm-4.5-air", 12),
        ("nemotron-3-nano-30b-a3b", 3.2),
        ("deepseek-v3", 37),
    ],
)
def test_active_parameters_are_those_of_the_model_card(name: str, billions: float) -> None:
    assert parse_config(MODELS[name]["config"]).active_parameters / 1e9 == pytest.approx(billions, rel=0.08)


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("starcoder", 40 * 2 * 128 * 2),  # multi-query: one head of keys and values
        ("falcon-7b", 32 * 2 * 64 * 2),
        ("falcon-40b", 60 * 2 * 8 * 64 * 2),
        ("mpt-7b", 32 * 2 * 4096 * 2),
        ("glm-4.7-flash", 47 * 576 * 2),  # latent attention
        ("nemotron-nano-9b-v2", 4 * 2 * 8 * 128 * 2),  # four of 56 layers have attention
    ],
)
def test_kv_bytes_follow_the_familys_heads(name: str, bytes_per_token: int) -> None:
    assert kv_bytes_per_token(parse_config(MODELS[name]["config"]), dtype="bfloat16") == bytes_per_token


@pytest.mark.parametrize(("kv_dtype", "latent"), [("auto", 576 * 2), ("fp8", 656)])
def test_sparse_attention_keeps_an_index_beside_the_latent_vector(kv_dtype: str, latent: int) -> None:
    shape = parse_config(MODELS["deepseek-v3.2"]["config"])
    whole, half = (kv_layout(shape, kv_dtype=kv_dtype, pp=pp) for pp in (1, 2))
    assert whole.bytes_per_block == 16 * 61 * (latent + 132)
    assert half.bytes_per_block == 16 * 31 * (latent + 132)
    assert whole.uniform
    assert cache_kinds(shape) == ["61 x latent attention (MLA)", "61 x index of sparse attention"]


def test_layers_that_share_keys_and_values_have_no_cache() -> None:
    shape = parse_config(MODELS["gemma-3n-e4b"]["config"])
    assert cache_kinds(shape) == ["16 x sliding window", "4 x full attention"]
    assert [len(layer.caches) for layer in shape.layers] == [1] * 20 + [0] * 15


def test_layers_that_share_an_index_have_none_of_their_own() -> None:
    config = MODELS["glm-5"]["config"]
    every, fourth = (parse_config(config | {"index_topk_freq": freq}) for freq in (1, 4))
    saved = (kv_bytes_per_token(every) or 0) - (kv_bytes_per_token(fourth) or 0)
    assert saved == 132 * sum(max(layer - 1, 0) % 4 != 0 for layer in range(78))
    assert parameter_count(every) > parameter_count(fourth)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("opt-6.7b", {"do_layer_norm_before": False}, "norms after the layers"),
        ("mpt-7b", {"no_bias": False}, "biases"),
        ("nemotron-nano-9b-v2", {"hybrid_override_pattern": "M*"}, "one letter for each layer"),
        ("starcoder", {"n_embd": None}, "lacks hidden_size"),
    ],
)
def test_a_variant_that_is_laid_out_otherwise_is_refused(
    name: str, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse_config(MODELS[name]["config"] | change)


def test_experts_that_are_not_chosen_are_not_active() -> None:
    shape = parse_config(MODELS["gpt-oss-20b"]["config"])
    # The model card: 3.6 B active parameters, embeddings counted once.
    assert shape.active_parameters / 1e9 == pytest.approx(3.6, abs=0.05)

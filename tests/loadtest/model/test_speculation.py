"""Drafts of speculative decoding: their parameters against published counts, and their KV cache."""

import json

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.kv_cache import kv_layout
from loadtest.model.quantisation import UnsupportedModelError
from loadtest.model.speculation import Speculation, eagle3_draft, mtp_draft
from loadtest.model.weights import parameter_count
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B
from testing.processes import ROOT

MODELS = json.loads((ROOT / "tests" / "data" / "architectures.json").read_text())
EAGLE3 = LLAMA31_8B | {"num_hidden_layers": 1, "draft_vocab_size": 32000}


def test_the_mtp_layer_of_deepseek_v3_has_the_published_parameters() -> None:
    config = MODELS["deepseek-v3"]["config"] | {"num_nextn_predict_layers": 1}
    # Its README: 11.5 B unique parameters, without the shared embedding and head.
    assert parameter_count(mtp_draft(parse_config(config))) / 1e9 == pytest.approx(11.5, abs=0.15)


def test_glm_with_its_mtp_layer_is_as_large_as_the_checkpoint() -> None:
    shape = parse_config(MODELS["glm-4.5-air"]["config"])
    shared = 2 * shape.vocab_size * shape.hidden_size  # the checkpoint stores embedding and head twice
    total = parameter_count(shape) + parameter_count(mtp_draft(shape)) + shared
    assert total / 1e9 == pytest.approx(110.47, abs=0.01)


def test_an_eagle3_draft_has_the_parameters_of_the_published_one() -> None:
    # EAGLE3-LLaMA3.1-Instruct-8B: 850 MB in 16 bits, without embeddings.
    draft = eagle3_draft(EAGLE3, parse_config(LLAMA31_8B))
    assert parameter_count(draft) / 1e6 == pytest.approx(425, abs=1)


def test_an_eagle3_draft_of_another_width_has_embeddings_of_its_own() -> None:
    target = parse_config(QWEN3_1_7B)
    narrow, same = EAGLE3 | {"target_hidden_size": 2048}, EAGLE3 | {"hidden_size": 2048, "head_dim": 64}
    assert any("embed" in tensor.name for tensor in eagle3_draft(narrow, target).after)
    assert not any("embed" in tensor.name for tensor in eagle3_draft(same, target).after)


def test_a_model_without_mtp_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="multi-token prediction"):
        mtp_draft(parse_config(LLAMA31_8B))


def test_a_draft_adds_its_layers_to_every_block_and_its_tokens_to_every_request() -> None:
    target = parse_config(LLAMA31_8B)
    draft = eagle3_draft(EAGLE3, target)
    alone = kv_layout(target)
    drafted = kv_layout(target, speculation=Speculation(method="eagle3", tokens=5, draft=draft))
    assert drafted.bytes_per_block == alone.bytes_per_block * 33 // 32
    assert [layout.blocks(12) for layout in (alone, drafted)] == [1, 2]
    assert [layout.blocks(11) for layout in (alone, drafted)] == [1, 1]


def test_a_draft_model_of_other_heads_shares_blocks_by_bytes() -> None:
    target, draft = parse_config(LLAMA31_8B), parse_config(QWEN3_1_7B)
    layout = kv_layout(target, speculation=Speculation(method="draft_model", tokens=3, draft=draft))
    assert layout.bytes_per_block == kv_layout(target).bytes_per_block + kv_layout(draft).bytes_per_block
    assert layout.uniform


def test_each_drafted_token_of_a_hybrid_holds_a_block_of_state() -> None:
    shape = parse_config(MODELS["qwen3-next"]["config"])
    alone = kv_layout(shape)
    drafted = kv_layout(shape, speculation=Speculation(method="mtp", tokens=2, draft=mtp_draft(shape)))
    states = alone.fixed_blocks
    assert drafted.fixed_blocks == 3 * states > 0
    assert drafted.block_size >= alone.block_size  # a state holds two more inputs of its convolution


def test_drafts_from_the_prompt_take_no_memory() -> None:
    target = parse_config(LLAMA31_8B)
    alone, drafted = (
        kv_layout(target, speculation=speculation)
        for speculation in (None, Speculation(method="ngram", tokens=4))
    )
    assert drafted.bytes_per_block == alone.bytes_per_block
    assert [drafted.blocks(tokens) for tokens in (1, 16, 17)] == [1, 1, 2]

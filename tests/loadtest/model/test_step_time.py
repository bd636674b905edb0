"""Step times predicted from data sheets: what grows, what is shared, and what is assumed."""

from dataclasses import replace

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.gpus import GPU_CATALOGUE, H100, T4
from loadtest.model.step_time import (
    PredictedStepTime,
    captured_size,
    fitted_efficiency,
    predict_step_time,
    speed_bands,
)
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_30B_A3B

KV_BYTES = 128 * 1024


def _steps(**changes: object) -> PredictedStepTime:
    asked: dict[str, object] = {"kv_bytes_per_token": KV_BYTES, "version": (0, 20, 0), **changes}
    return predict_step_time(parse_config(LLAMA31_8B), H100, **asked)  # type: ignore[arg-type]


def _decode_s(steps: PredictedStepTime, sequences: float, context: float = 0.0) -> float:
    return steps.seconds(
        decodes=sequences, prefills=0, kv_tokens=sequences * context, prefill_tokens=0, pairs=0
    )


def test_a_decode_step_is_never_faster_than_weights_and_cache_can_be_read() -> None:
    read_s = (15.0e9 + 32 * 1000 * KV_BYTES) / H100.bandwidth_bytes_s
    assert read_s < _decode_s(_steps(), 32, 1000) < 2.5 * read_s


def test_a_prompt_costs_its_products_and_attention_grows_with_the_square() -> None:
    steps = _steps()

    def prompt_s(tokens: int) -> float:
        return steps.seconds(
            decodes=0, prefills=1, kv_tokens=0, prefill_tokens=tokens, pairs=tokens * (tokens + 1) / 2
        )

    flops_s = H100.flops_s * fitted_efficiency().products
    assert prompt_s(8192) > 2 * 7.5e9 * 8192 / flops_s
    assert prompt_s(16384) - 2 * prompt_s(8192) > 0.5 * steps.pair_s * 8192**2


def test_a_mixed_step_takes_less_than_its_parts_one_after_the_other() -> None:
    steps = _steps()
    mixed_s = steps.seconds(decodes=32, prefills=1, kv_tokens=0, prefill_tokens=256, pairs=0)
    prompt_s = steps.seconds(decodes=0, prefills=1, kv_tokens=0, prefill_tokens=256, pairs=0)
    assert max(_decode_s(steps, 32), prompt_s) < mixed_s < _decode_s(steps, 32) + prompt_s


def test_two_cards_read_half_the_weights_and_pay_for_their_collectives() -> None:
    one, two = _steps(), _steps(tp=2)
    assert two.dense_s == pytest.approx(one.dense_s / 2, rel=0.02)
    assert two.fixed_s > one.fixed_s
    slow = predict_step_time(
        parse_config(LLAMA31_8B), replace(H100, nvlink_bytes_s=None), tp=2, kv_bytes_per_token=KV_BYTES
    )
    assert slow.collective_token_s > two.collective_token_s
    assert slow.fixed_s > two.fixed_s


def test_old_engines_and_eager_steps_take_longer() -> None:
    assert _decode_s(_steps(version=(0, 7, 3)), 8) > _decode_s(_steps(), 8) + 1e-3
    assert _decode_s(_steps(enforce_eager=True), 8) > _decode_s(_steps(), 8) + 1e-3


def test_more_tokens_read_more_experts() -> None:
    steps = predict_step_time(parse_config(QWEN3_30B_A3B), H100, kv_bytes_per_token=KV_BYTES)
    assert steps.chosen_share == pytest.approx(8 / 128)
    assert _decode_s(steps, 64) > 1.5 * _decode_s(steps, 1)


def test_batches_are_padded_to_captured_graphs() -> None:
    sizes = [captured_size(n) for n in (1, 2, 3, 5, 9, 511, 513)]
    assert sizes == [1, 2, 4, 8, 16, 512, 513]


@pytest.mark.parametrize("config", [LLAMA31_8B, QWEN3_30B_A3B])
def test_steps_that_only_decode_take_the_same_time_by_the_faster_way(config: dict[str, object]) -> None:
    steps = predict_step_time(parse_config(config), H100, tp=2, kv_bytes_per_token=100_000)
    for decodes in (1, 7, 300, 700):
        after = steps.decode_steps(decodes)
        for tokens in (1, 12_345):
            assert after(tokens) == steps.seconds(
                decodes=decodes, prefills=0, kv_tokens=tokens, prefill_tokens=0, pairs=0
            )


def test_scaling_changes_only_the_parts_that_are_named() -> None:
    steps = _steps()
    assert _decode_s(steps.scaled(memory=2.0), 1) > 1.5 * _decode_s(steps, 1)
    halved = steps.scaled(cache=0.5)
    assert halved.kv_token_s == steps.kv_token_s / 2
    assert halved.dense_s == steps.dense_s


def test_bands_hold_the_estimate_and_are_wider_for_cards_without_measurements() -> None:
    known, unknown = speed_bands(H100), speed_bands(T4)
    assert known.known
    assert not unknown.known
    for low, high in (known.ttft, known.tpot, known.e2e, unknown.ttft, unknown.tpot, unknown.e2e):
        assert 0 < low < 1 < high
    assert unknown.tpot[1] / unknown.tpot[0] > known.tpot[1] / known.tpot[0]


def test_every_card_has_a_generation() -> None:
    assert all(gpu.generation for gpu in GPU_CATALOGUE.values())

"""Presets against their published sources."""

import pytest

from loadtest.model.step_time import fitted_efficiency
from loadtest.simulator.presets import PRESETS, find_preset


def test_presets_come_from_their_data() -> None:
    steps = find_preset("qwen3-1.7b-t4").engine_config().step_time
    assert steps is not None
    # Weights once, and 112 KiB a token, through the same share of 320 GB/s as sizing predicts.
    share = fitted_efficiency()
    bandwidth = 320e9 * share.bandwidth_turing
    assert steps.dense_s == pytest.approx(2 * 1_720_574_976 / (bandwidth * share.bandwidth), rel=1e-3)
    assert steps.kv_token_s == pytest.approx(112 * 1024 / (bandwidth * share.cache_bandwidth))
    pools = {name: preset.engine_config().pool_tokens for name, preset in PRESETS.items()}
    assert 76_000 <= pools["qwen3-1.7b-t4"] <= 89_000
    assert 43_000 <= pools["qwen1.5-1.8b-t4"] <= 51_000
    assert set(pools) == {
        *("qwen3-1.7b-t4", "qwen1.5-1.8b-t4", "qwen3-1.7b-l4", "llama-3.1-8b-a10g", "llama-3.1-8b-h100")
    }

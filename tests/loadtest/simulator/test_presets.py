"""Presets against their published sources."""

import pytest

from loadtest.simulator.presets import PRESETS, find_preset


def test_presets_come_from_their_data() -> None:
    t4 = find_preset("qwen3-1.7b-t4").engine_config()
    # Weights once through 75 % of 320 GB/s; 112 KiB a token through the same.
    assert t4.step_base_s == pytest.approx(2 * 1_720_574_976 / 240e9)
    assert t4.step_per_kv_token_s == pytest.approx(112 * 1024 / 240e9)
    pools = {name: preset.engine_config().pool_tokens for name, preset in PRESETS.items()}
    assert 76_000 <= pools["qwen3-1.7b-t4"] <= 89_000
    assert 43_000 <= pools["qwen1.5-1.8b-t4"] <= 51_000
    assert set(pools) == {
        *("qwen3-1.7b-t4", "qwen1.5-1.8b-t4", "qwen3-1.7b-l4", "llama-3.1-8b-a10g", "llama-3.1-8b-h100")
    }

"""8 slots and a pool given in bytes: the slots bind, and the bytes are known."""

from typing import Any

import pytest

from testing.vllm.commands import LENGTHS, capacity, labels, load_test
from testing.vllm.server import BLOCK_SIZE, KV_BYTES_PER_TOKEN, Vllm

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

SLOTS = 8
POOL_BYTES = 16 * 1024**2
SERVER = {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": POOL_BYTES, "max_num_seqs": SLOTS}


@pytest.fixture(scope="module")
def answer(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    reports = tmp_path_factory.mktemp("reports")
    measured = load_test(
        vllm,
        reports,
        *LENGTHS,
        "--levels",
        "4,8,10,12",
        "--level-s",
        "15",
        "--settle-s",
        "3",
        "--thinking",
        "off",
    )
    assert len(measured.rows) > 100
    return capacity(reports)


def test_blocks_follow_from_bytes(vllm: Vllm) -> None:
    told = labels(vllm, "vllm:cache_config_info")
    assert int(told["kv_cache_memory_bytes"]) == POOL_BYTES
    assert int(told["kv_cache_size_tokens"]) * KV_BYTES_PER_TOKEN == POOL_BYTES
    assert int(told["num_gpu_blocks"]) * BLOCK_SIZE * KV_BYTES_PER_TOKEN == POOL_BYTES


def test_slots_bind(answer: dict[str, Any]) -> None:
    assert answer["binding"] == "max_num_seqs"
    assert answer["estimate"] == SLOTS
    assert answer["max_users"] <= SLOTS


def test_bytes_per_token_are_those_of_the_model(answer: dict[str, Any]) -> None:
    memory = answer["memory"]
    assert memory["bytes_per_token"] == KV_BYTES_PER_TOKEN
    assert memory["pool_tokens"] * KV_BYTES_PER_TOKEN == POOL_BYTES - BLOCK_SIZE * KV_BYTES_PER_TOKEN
    assert memory["vram_bytes_per_user"] == pytest.approx(
        memory["tokens_per_user"] * KV_BYTES_PER_TOKEN, rel=0.01
    )

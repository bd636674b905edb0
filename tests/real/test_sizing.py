"""The pool arithmetic of sizing against what a real vLLM says of its own cache."""

import json
import re
import urllib.request
from pathlib import Path

import pytest

from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.kv_cache import kv_bytes_per_token, kv_layout
from loadtest.model.weights import weights_bytes
from loadtest.units import GIB
from testing.vllm.environment import vllm_home
from testing.vllm.server import BLOCK_SIZE, KV_BYTES_PER_TOKEN, MAX_MODEL_LEN, start_vllm

pytestmark = pytest.mark.real

POOL_BYTES = 300 * 1000**2
"""Not a whole number of blocks, so that rounding shows."""


def tiny_shape() -> ModelShape:
    return parse_config(json.loads((vllm_home() / "model" / "config.json").read_text()))


def test_blocks_bytes_and_concurrency_are_exactly_the_servers(tmp_path: Path) -> None:
    with start_vllm(
        num_gpu_blocks_override=None, kv_cache_memory_bytes=POOL_BYTES, log=tmp_path / "vllm.log"
    ) as server:
        page = urllib.request.urlopen(f"{server.url}/metrics", timeout=10).read().decode()
        log = server.log.read_text(errors="replace")
    line = next(line for line in page.splitlines() if line.startswith("vllm:cache_config_info"))
    said = dict(re.findall(r'(\w+)="([^"]*)"', line))
    shape = tiny_shape()
    layout = kv_layout(shape, dtype="float32", block_size=BLOCK_SIZE)
    blocks = POOL_BYTES // layout.bytes_per_block
    assert kv_bytes_per_token(shape, dtype="float32") == KV_BYTES_PER_TOKEN
    assert int(said["num_gpu_blocks"]) == blocks
    assert int(said["kv_cache_size_tokens"]) == blocks * layout.block_size
    concurrency = blocks / layout.max_blocks(MAX_MODEL_LEN, in_flight=2048)
    assert float(said["kv_cache_max_concurrency"]) == pytest.approx(concurrency, abs=1e-9)
    loaded = re.search(r"Model loading took ([\d.]+) GiB", log)
    if loaded:  # the CPU build does not always say
        assert float(loaded[1]) == pytest.approx(weights_bytes(shape, dtype="float32") / GIB, abs=0.02)

"""512 blocks and 256 slots: four times the memory holds more than four times the users."""

from pathlib import Path

import pytest

from testing.vllm.commands import LENGTHS, capacity, load_test
from testing.vllm.memory_reference import ReferenceBlocks
from testing.vllm.server import Vllm

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

BLOCKS = 512
SMALL_BLOCKS = 128
SERVER = {"num_gpu_blocks_override": BLOCKS, "max_num_seqs": 256}


def test_memory_wall_grows_faster_than_the_pool(vllm: Vllm, tmp_path: Path) -> None:
    measured = load_test(
        vllm, tmp_path, *LENGTHS, "--levels", "32,64,72", "--level-s", "25", "--thinking", "off"
    )
    answer = capacity(tmp_path)
    reference = ReferenceBlocks.of(*measured.lengths())
    (wall,) = (bound["users"] for bound in answer["bounds"] if bound["name"] == "kv_cache")
    assert wall == pytest.approx(reference.wall(BLOCKS - 1), rel=0.05)
    assert wall > 4 * reference.wall(SMALL_BLOCKS - 1)

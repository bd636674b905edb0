"""A recommendation of `analysis.tune` followed on a real vLLM: with its flags the server holds more users."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testing.processes import ROOT, clean_environment
from testing.vllm.commands import LENGTHS, Measured, capacity, load_test
from testing.vllm.server import Vllm, start_vllm

LONG = "SEATCOUNT_LONG"
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    # Two load tests on two servers: too long for every run of `make test`.
    pytest.mark.skipif(LONG not in os.environ, reason=f"takes five minutes; {LONG}=1 runs it"),
]

SLOTS, BLOCKS = 6, 128
SERVER = {"num_gpu_blocks_override": BLOCKS, "max_num_seqs": SLOTS}
LEVEL = ("--level-s", "20", "--settle-s", "3", "--thinking", "off")


@pytest.fixture(scope="module")
def before(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A small sweep past the slots; the pool of the server holds about 17 users."""
    return load_test(vllm, tmp_path_factory.mktemp("before"), *LENGTHS, "--levels", "1,4,6,7,8", *LEVEL)


@pytest.fixture(scope="module")
def tuned(before: Measured) -> dict[str, Any]:
    flags = ["--measured-max-num-seqs", str(SLOTS), "--no-async-scheduling", "--keep", "kv-cache-dtype"]
    done = subprocess.run(
        [sys.executable, "-m", "analysis.tune", str(before.folder), "--format", "json", *flags],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return dict(json.loads(done.stdout))


def test_the_server_started_with_the_recommended_flags_holds_the_users_that_were_predicted(
    tuned: dict[str, Any], before: Measured, tmp_path: Path
) -> None:
    found = tuned["recommended"]
    assert [change["flag"] for change in found["changes"]] == ["--max-num-seqs"]
    words = shlex.split(found["serve_command"])
    slots = int(words[words.index("--max-num-seqs") + 1])
    assert words[words.index("--num-gpu-blocks-override") + 1] == str(BLOCKS)
    test = shlex.split(found["load_test_command"])
    levels = test[test.index("--levels") + 1]
    with start_vllm(
        num_gpu_blocks_override=BLOCKS, max_num_seqs=slots, log=tmp_path / "server.log"
    ) as server:
        load_test(server, tmp_path, *LENGTHS, "--levels", levels, *LEVEL)
    after_users = capacity(tmp_path)["estimate_x"]
    before_users = capacity(before.folder.parent, "--max-num-seqs", str(SLOTS))["estimate_x"]
    low, high = found["users"]["interval"]
    assert low <= after_users <= high
    low, high = found["difference_interval"]
    assert 0 < low <= after_users - before_users <= high

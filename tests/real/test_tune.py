"""Recommendations of `analysis.tune` followed on a real vLLM: with its flags the server holds more users."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from testing.processes import ROOT, clean_environment
from testing.vllm.commands import LENGTHS, capacity, load_test
from testing.vllm.server import start_vllm

LONG = "SEATCOUNT_LONG"
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    # Two load tests on two servers each: too long for every run of `make test`.
    pytest.mark.skipif(LONG not in os.environ, reason=f"takes five minutes; {LONG}=1 runs it"),
]
LEVEL = ("--level-s", "20", "--settle-s", "3", "--thinking", "off")


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """A server with a flag that limits it, and the flag whose change should be recommended."""

    flag: str
    lengths: Sequence[str]
    levels: str
    blocks: int
    slots: int
    serve: Mapping[str, str | None] = field(default_factory=dict)
    """Flags of vLLM besides the pool and the slots, with their values; None: a switch."""
    measured: Sequence[str] = ()
    """What the user tells `analysis.tune` of the server."""
    slo: Sequence[str] = ()
    without: str = ""
    """The flag of `serve` that the recommendation replaces."""
    keep: Sequence[str] = ()


SLOTS = Bottleneck(
    flag="--max-num-seqs",
    lengths=LENGTHS,
    levels="1,4,6,7,8",
    blocks=128,  # about 17 users
    slots=6,
)
TOKEN_BUDGET = Bottleneck(
    flag="--max-num-batched-tokens",
    lengths=("--prompt-tokens", "lognormal:600,0.3", "--output-tokens", "lognormal:30,0.4"),
    levels="1,4,8,12,16",
    blocks=2048,
    slots=64,
    serve={"--max-num-batched-tokens": "64"},
    measured=("--measured-max-num-batched-tokens", "64"),
    slo=("--slo-ttft-p95-s", "0.3"),
    without="--max-num-batched-tokens",
)
PREFIX_CACHING = Bottleneck(
    flag="--enable-prefix-caching",
    lengths=("--prompt-tokens", "200", "--output-tokens", "lognormal:30,0.4", "--turns", "7"),
    levels="1,4,8,12,16",
    blocks=4096,
    slots=64,
    serve={"--no-enable-prefix-caching": None},
    slo=("--slo-ttft-p95-s", "0.4"),
    without="--no-enable-prefix-caching",
    keep=("max-num-batched-tokens",),
)


def tuned(run: Path, case: Bottleneck) -> dict[str, Any]:
    kept = [word for name in ("kv-cache-dtype", *case.keep) for word in ("--keep", name)]
    flags = [
        "--measured-max-num-seqs",
        str(case.slots),
        "--no-async-scheduling",
        *kept,
        *case.measured,
        *case.slo,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "analysis.tune", str(run), "--format", "json", *flags],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return dict(json.loads(done.stdout))


def words_of(flags: Mapping[str, str | None]) -> list[str]:
    return [word for name, value in flags.items() for word in (name, value) if word is not None]


@pytest.mark.parametrize(
    "case", [SLOTS, TOKEN_BUDGET, PREFIX_CACHING], ids=["slots", "token budget", "prefix caching"]
)
def test_the_server_started_with_the_recommended_flags_holds_the_users_that_were_predicted(
    case: Bottleneck, vllm_made: None, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    with start_vllm(
        num_gpu_blocks_override=case.blocks,
        max_num_seqs=case.slots,
        extra=words_of(case.serve),
        log=tmp_path / "before.log",
    ) as server:
        run = load_test(server, before, *case.lengths, "--levels", case.levels, *LEVEL, *case.slo)
    found = tuned(run.folder, case)["recommended"]
    assert [change["flag"] for change in found["changes"]] == [case.flag]
    serve = shlex.split(found["serve_command"])
    assert serve[serve.index("--num-gpu-blocks-override") + 1] == str(case.blocks)
    slots = int(serve[serve.index("--max-num-seqs") + 1])
    changed = {name: value for name, value in case.serve.items() if name != case.without}
    for change in found["changes"]:
        if change["flag"] != "--max-num-seqs":
            changed[change["flag"]] = None if change["to"] == "True" else change["to"]
    test = shlex.split(found["load_test_command"])
    levels = test[test.index("--levels") + 1]
    with start_vllm(
        num_gpu_blocks_override=case.blocks,
        max_num_seqs=slots,
        extra=words_of(changed),
        log=tmp_path / "after.log",
    ) as server:
        load_test(server, after, *case.lengths, "--levels", levels, *LEVEL, *case.slo)
    after_users = capacity(after)["estimate_x"]
    before_users = capacity(before, "--max-num-seqs", str(case.slots))["estimate_x"]
    print(f"{case.flag}: {before_users} users before, {after_users} after; predicted {found['users']}")
    low, high = found["users"]["interval"]
    assert low <= after_users <= high
    low, high = found["difference_interval"]
    assert 0 < low <= after_users - before_users <= high

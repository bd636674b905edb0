"""`python -m benchmarks NAME`: the names that README.md and docs/ quote."""

import subprocess
import sys

from testing.processes import ROOT, clean_environment

NAMES = (
    "client, analysis, peers, sizing, simulator, coverage, field, fidelity, gate, gpu, held_out, "
    "prefix_cache, real_truth, real_ttft, search_cost"
)


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"No benchmark is called nothing; there are: {NAMES}.\n"

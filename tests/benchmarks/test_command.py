"""`python -m benchmarks NAME`: the names that README.md and docs/ quote."""

import json
import subprocess
import sys
from pathlib import Path

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


PUBLISHED: dict[str, object] = {
    "source": "test",
    "engine": "vllm",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "tp": 1,
    "max_num_seqs": None,
    "max_num_batched_tokens": 2048,
    "input_mean": 500,
    "output_mean": 200,
    "output_law": "fixed",
    "concurrency": None,
    "request_rate": 2.0,
    "ttft_ms": {"mean": 30.0, "p50": None},
    "tpot_ms": {"mean": 8.0, "p50": None},
    "e2e_ms": {"mean": 1622.0, "p50": None},
    "load_kind": "steady",
    "consistent": True,
}


def test_published_rows_that_cannot_tell_are_left_out_by_rule_and_counted(tmp_path: Path) -> None:
    cards = [{"gpu": gpu, "deployment_id": f"{gpu}/tp1/vllm/test"} for gpu in ("H100-SXM-80GB", "L40S")]
    good = [PUBLISHED | card | {"request_rate": rate} for card in cards for rate in (1.0, 2.0)]
    closed = {"concurrency": 8, "request_rate": None}
    wrong = [
        {"engine": "tgis"},
        {"load_kind": "static_batch"},
        {"consistent": False},
        {"request_rate": None},
        {"model": "somebody/Unknown-1B"},
    ]
    rows = [*good, PUBLISHED | cards[0] | closed, *(PUBLISHED | cards[0] | change for change in wrong)]
    path = tmp_path / "published.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu"],
        cwd=ROOT,
        env=clean_environment(SEATCOUNT_GPU=str(path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gpu: 5 conditions of 2 deployments" in done.stdout
    assert done.stdout.count("left out: 1 rows") == len(wrong)
    assert "gpu: left out by card" in done.stdout
    assert "plain roofline" in done.stdout

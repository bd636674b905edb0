"""`python -m benchmarks NAME`: the names that README.md and docs/ quote."""

import json
import platform
import subprocess
import sys
from pathlib import Path

from testing.processes import ROOT, clean_environment

NAMES = (
    "client, analysis, peers, sizing, simulator, coverage, field, fidelity, gate, gpu, held_out, "
    "mixes, prefix_cache, real_truth, real_ttft, search_cost, stalls"
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


def gpu_benchmark(rows: list[dict[str, object]], folder: Path) -> str:
    """Runs the benchmark on these rows, with the tools' environments in `folder`. Returns what it printed."""
    path = folder / "published.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu"],
        cwd=ROOT,
        env=clean_environment(SEATCOUNT_GPU=str(path), SEATCOUNT_PEERS_HOME=str(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    said = gpu_benchmark(rows, tmp_path)
    assert "gpu: 5 conditions of 2 deployments" in said
    assert said.count("left out: 1 rows") == len(wrong)
    assert "gpu: left out by card" in said
    assert "plain roofline" in said
    assert "aiconfigurator==0.12.0 is not installed, so it is not compared; `python -m benchmarks gpu" in said


STAND_IN = """
import json
from pathlib import Path
from types import SimpleNamespace as EstimateResult

def cli_estimate(model_path, system_name, *, batch_size, **given):
    config = json.loads((Path(model_path) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["num_hidden_layers"] == 32
    assert system_name in ("h100_sxm", "l40s")
    assert given == {"mode": "agg", "backend_name": "vllm", "backend_version": "current", "isl": 500,
                     "osl": 200, "prefix": 0, "ctx_tokens": 500, "tp_size": 1}
    raw = {"request_rate": batch_size / (0.03 + 0.199 * (4 + batch_size))}
    return EstimateResult(ttft=30.0, tpot=4.0 + batch_size, raw=raw, kv_cache_warning=None)
"""
"""In place of aiconfigurator.cli.api: a server with 30 ms of TTFT, whose steps take 4 ms + 1 ms a request."""


def test_rows_reach_aiconfigurator_in_its_terms(tmp_path: Path) -> None:
    """By Little's law, 2 requests a second are 2.74 in that server at once."""
    package = tmp_path / "stand_in" / "aiconfigurator" / "cli"
    package.mkdir(parents=True)
    (package / "api.py").write_text(STAND_IN)
    program = tmp_path / "aiconfigurator" / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "stand_in"} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    ready = f"aiconfigurator==0.12.0, Python {platform.python_version()}"
    (tmp_path / "aiconfigurator" / "ready").write_text(ready)

    tpot_ms = 4 + (0.06 + 0.398 * 4) / (1 - 0.398)
    opened = PUBLISHED | {"tpot_ms": {"mean": tpot_ms}, "e2e_ms": {"mean": 30 + 199 * tpot_ms}}
    closed = opened | {"concurrency": 8, "replicas": 2, "request_rate": None}
    closed |= {"tpot_ms": {"mean": 8.0}, "e2e_ms": {"mean": 30 + 199 * 8}}
    at = {
        gpu: {"gpu": gpu, "deployment_id": f"{gpu}/tp1/vllm/test"} for gpu in ("H100-SXM-80GB", "L40S", "L4")
    }
    rows = [
        opened | at["H100-SXM-80GB"],
        closed | at["H100-SXM-80GB"],
        opened | at["L40S"],
        opened | at["L4"],
    ]
    said = gpu_benchmark(rows, tmp_path)
    assert "  3 rows of 2 deployments" in said
    assert "  1 closed loops of 1 deployments" in said
    assert "not in its terms: 1 rows: it has no kernel times of vLLM on the card: NVIDIA L4" in said
    theirs = [line for line in said.splitlines() if line.strip().startswith("aiconfigurator")]
    assert len(theirs) == 4
    assert [line.count(" 0 % by row, 0 % by deployment") for line in theirs] == [3] * 4, theirs

"""Builds planned deployments and workloads for tests of sizing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.workload import PlannedWorkload, draw_workload
from loadtest.model.architectures import parse_config
from loadtest.model.gpus import find_gpu
from loadtest.record import Slo, UserClass
from testing.processes import ROOT, clean_environment


def planned_deployment(config: dict[str, object], *, gpu: str = "T4", **changes: object) -> PlannedDeployment:
    shape = parse_config(config)
    found = PlannedDeployment(
        model="model",
        shape=shape,
        gpu=find_gpu(gpu),
        version=(0, 32, 0),
        utilization=0.92,
        max_model_len=8192,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        dtype="float16",
    )
    return replaced(found, changes)


def replaced(found: PlannedDeployment, changes: dict[str, object]) -> PlannedDeployment:
    return replace(found, **changes)  # type: ignore[arg-type]


def planned_workload(
    *, think: str = "0", prompt: str = "lognormal:512,0.6", max_model_len: int = 8192
) -> PlannedWorkload:
    users = UserClass(name="", prompt_tokens=prompt, output_tokens="lognormal:256,0.8", think_s=think)
    return draw_workload([users], slo=Slo(), max_model_len=max_model_len)


def config_file(folder: Path, config: dict[str, object]) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def sized(*flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `python -m analysis.sizing`, which must end with `code` and print no traceback."""
    return answered("analysis.sizing", *flags, code=code)


def answered(module: str, *flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `python -m MODULE`, which must end with `code` and print no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done

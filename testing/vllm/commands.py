"""Plain requests to a real vLLM, its metrics, and the commands of the load test and the analysis."""

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from testing.processes import ROOT
from testing.vllm.server import Vllm

COMMAND_TIMEOUT_S = 300
LENGTHS = ("--prompt-tokens", "lognormal:124,0.6", "--output-tokens", "lognormal:96,0.6")


def metrics_page(server: Vllm) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def metric(server: Vllm, name: str) -> float:
    """Reads a metric, summed over all labels. Raises KeyError if the server does not have it."""
    samples = _samples(metrics_page(server), name)
    return float(sum(sample.value for sample in samples))


def labels(server: Vllm, name: str) -> dict[str, str]:
    return dict(_samples(metrics_page(server), name)[0].labels)


def _samples(page: str, name: str) -> list[Any]:
    families = text_string_to_metric_families(page)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    if not samples:
        raise KeyError(name)
    return samples


def ask(server: Vllm, text: str, max_tokens: int) -> dict[str, int]:
    """Requests an answer of exactly `max_tokens` tokens. Returns the usage that the server reports."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.loads(answer.read())["usage"])


@dataclass(frozen=True)
class Measured:
    """A finished load test: its run folder, its request rows and its server samples."""

    folder: Path
    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns prompt and output tokens of the requests that succeeded, each of shape (n,)."""
        pairs = [(row["prompt_tokens"], row["output_tokens"]) for row in self.rows if row["outcome"] == "ok"]
        prompt, output = np.array(pairs).T
        return prompt, output


def load_test(server: Vllm, reports: Path, *flags: str, scenario: str = "chat") -> Measured:
    """Runs `locust -f scenarios/SCENARIO.py --headless` and reads the files that it wrote."""
    locust = str(Path(sys.executable).with_name("locust"))
    _command(
        locust,
        "-f",
        f"scenarios/{scenario}.py",
        "--headless",
        "--host",
        server.url,
        "--reports-dir",
        str(reports),
        *flags,
    )
    (folder,) = (path.parent for path in reports.glob("*/run.json"))
    return Measured(folder, _lines(*folder.glob("requests-*.jsonl")), _lines(folder / "server.jsonl"))


def capacity(reports: Path, *flags: str) -> dict[str, Any]:
    """Runs `python -m analysis.capacity REPORTS`. Returns the only model in capacity.json."""
    _command(sys.executable, "-m", "analysis.capacity", str(reports), *flags)
    (model,) = json.loads((reports / "capacity.json").read_text())["models"]
    print(json.dumps({key: value for key, value in model.items() if key != "levels"}))
    return dict(model)


def _command(*words: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LOADTEST_")}
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}"


def _lines(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

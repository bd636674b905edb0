"""The real side of the benchmark: servers, load tests and their run folders."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from analysis.reading.runs import Run, find_runs, read_run
from benchmarks.proofs.fidelity.conditions import CONDITION_S, Condition, VllmFlags
from loadtest.workload.traces import read_trace
from testing.processes import ROOT
from testing.vllm.server import start_vllm


class Lab:
    """Starts servers, runs load tests against them, and keeps the runs in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = 0

    def twice(self, conditions: Sequence[Condition]) -> dict[str, list[Run]]:
        """Runs all conditions twice, one round after the other, on one server. Returns runs by condition."""
        wanted = [(one, f"{one.name} {number}") for number in (1, 2) for one in conditions]
        found: dict[str, list[Run]] = {condition.name: [] for condition in conditions}
        with self.server(conditions[0].server, needed=not all(self.kept(name) for _, name in wanted)) as url:
            for condition, name in wanted:
                found[condition.name].append(self.measure(url, name, self._flags(condition)))
                print(f"  {name}: {len(found[condition.name][-1].requests)} requests", flush=True)
        return found

    def kept(self, name: str) -> bool:
        """Whether a run of this name is in the folder."""
        return any((self.folder / name).glob("*/run.json"))

    def due(self, condition: Condition) -> list[tuple[int, ...]]:
        """Reads the prefix blocks of each request from the condition's trace."""
        return [arrival.prefix_blocks for arrival in read_trace(self._trace(condition), speed=1.0)]

    def _trace(self, condition: Condition) -> Path:
        assert condition.trace is not None
        lines = condition.trace(random.Random(condition.name))
        path = self.folder / f"{condition.name.replace(' ', '-')}.{'jsonl' if lines[0][0] == '{' else 'csv'}"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _flags(self, condition: Condition) -> list[str]:
        if condition.trace is not None:
            return ["--trace", str(self._trace(condition))]
        return self.closed(condition.users, condition.load, seed=1)

    @staticmethod
    def closed(users: int, load: Sequence[str], seed: int) -> list[str]:
        """Returns the flags of one level of a closed loop."""
        level = [
            "--levels",
            str(users),
            "--level-s",
            f"{CONDITION_S:g}",
            "--settle-s",
            "6",
            "--seed",
            str(seed),
        ]
        return [*level, *load]

    @contextmanager
    def server(self, server: VllmFlags, *, needed: bool = True) -> Iterator[str]:
        """Starts a real vLLM and yields its address; yields an empty string if not `needed`."""
        if not needed:
            yield ""
            return
        self._started += 1
        with start_vllm(
            num_gpu_blocks_override=server.blocks,
            max_num_seqs=server.slots,
            extra=[
                *("--max-num-batched-tokens", str(server.budget), "--enable-prompt-tokens-details"),
                # Without this flag vLLM refuses a token budget below max_model_len.
                "--enable-chunked-prefill",
            ],
            log=self.folder / f"vllm-{self._started}.log",
        ) as started:
            yield started.url

    def measure(self, url: str, name: str, flags: Sequence[str]) -> Run:
        """Returns the run of that name, from the folder or else from a new load test. Raises RuntimeError."""
        reports = self.folder / name
        if not self.kept(name):
            locust = str(Path(sys.executable).with_name("locust"))
            command = [locust, "-f", "scenarios/chat.py", "--headless", "--host", url, "--thinking", "off"]
            command += ["--sample-s", "0.25", "--reports-dir", str(reports), *flags]
            clean = {key: value for key, value in os.environ.items() if not key.startswith("LOADTEST_")}
            done = subprocess.run(
                command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=400, check=False
            )
            if done.returncode:
                shutil.rmtree(reports, ignore_errors=True)
                raise RuntimeError(
                    f"The load test {name} ended with {done.returncode}: {done.stderr[-2000:]}"
                )
        (folder,) = find_runs(reports)
        return read_run(folder)

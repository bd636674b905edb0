"""Two replicas behind a round-robin router, real and in the twin."""

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import msgspec
import numpy as np

from analysis.twin.calibration import ServiceFit
from analysis.twin.chatting import chatting_of
from analysis.virtual.run import VirtualRun, simulate_users
from analysis.virtual.service import Service
from benchmarks.proofs.fidelity.conditions import CHAT_LENGTHS, OBJECTIVES, REPLICA_USERS, VllmFlags
from benchmarks.proofs.fidelity.figures import (
    TwinFigures,
    closed_loop_evidence,
    closed_loop_figures,
    twin_figures,
)
from benchmarks.proofs.fidelity.lab import Lab
from benchmarks.proofs.fidelity.tables import print_table
from benchmarks.proofs.fidelity.twins import at_speed_of
from loadtest.record import ServerSample
from loadtest.server.vllm import read_server_samples
from loadtest.simulator.routers import round_robin
from testing.processes import ROOT
from testing.vllm.server import TINY_MODEL


def measure_two_replicas(lab: Lab, calibration: ServiceFit) -> None:
    """Prints figures of two real replicas beside the twin's.

    The replicas share two cores with router and client, so they are slower than in the calibration. Their
    speed and the delay to the client are therefore taken from this run; routing, KV usage, preemptions and
    queues are what the table compares.
    """
    with ExitStack() as stack:
        urls = [stack.enter_context(lab.server(VllmFlags())) for _ in range(2)]
        watch = stack.enter_context(_watched(urls))
        url = stack.enter_context(_router(urls))
        run = lab.measure(url, f"two replicas {time.time():.0f}", lab.closed(REPLICA_USERS, CHAT_LENGTHS, 7))
    evidence, level = closed_loop_evidence(run)
    window = level.window
    real = closed_loop_figures(run, level) | watch.means(window.begin_unix_s, window.end_unix_s)
    real["preempted_fraction"] = sum(watch.preemptions()) / len(run.requests)
    service = replace(calibration.service, chatting=chatting_of(evidence, [level]))
    side = _play_both(service)
    faster = _play_both(at_speed_of(service, real, side))
    scaled = _play_both(_delayed(faster, real))
    print(
        f"\ntwo replicas behind a round robin, {REPLICA_USERS} users (server figures: mean of one replica)\n"
    )
    print_table(
        [real] * 2,
        [twin_figures(side.figures(OBJECTIVES))] * 2,
        [twin_figures(scaled.figures(OBJECTIVES))] * 2,
    )


def _delayed(played: VirtualRun, real: TwinFigures) -> Service:
    """Sets the delay between engine and client so that the twin has the run's median TTFT."""
    service = played.service
    engine_s = played.figures(OBJECTIVES).ttft_p50_s - service.overhead_at(played.users / len(played.traces))
    return replace(service, overhead_s=max(real["ttft_p50_s"] - engine_s, 0.0), overhead_per_user_s=0.0)


def _play_both(service: Service) -> VirtualRun:
    return simulate_users(service, REPLICA_USERS, requests=8000, replicas=2, route=round_robin())


@contextmanager
def _router(urls: Sequence[str]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.proofs.round_robin", str(port), *urls]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait(url: str) -> None:
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer.")


class _Watch(threading.Thread):
    """Scrapes the gauges of several servers four times a second."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.urls = urls
        self.rows: list[ServerSample] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.25):
            for place, url in enumerate(self.urls):
                with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                    page = answer.read().decode()
                for row in read_server_samples(page, model=TINY_MODEL, unix_s=time.time()):
                    self.rows.append(msgspec.structs.replace(row, engine=str(place)))

    def means(self, begin: float, end: float) -> TwinFigures:
        """Returns the gauges, averaged over the replicas and the window (Unix seconds)."""
        inside = [row for row in self.rows if begin <= row.unix_s <= end]
        return {
            "kv_usage": float(np.mean([row.kv_cache_usage for row in inside])),
            "running": float(np.mean([row.running for row in inside])),
            "waiting": float(np.mean([row.waiting for row in inside])),
        }

    def preemptions(self) -> list[float]:
        """Counts the preemptions of each replica while it was watched."""
        by = [
            [row.preemptions_total or 0.0 for row in self.rows if row.engine == str(place)]
            for place in range(len(self.urls))
        ]
        return [counts[-1] - counts[0] for counts in by]


@contextmanager
def _watched(urls: Sequence[str]) -> Iterator[_Watch]:
    watch = _Watch(urls)
    watch.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        watch.join()

"""How much CPU a token costs the load generator, compared with plain Locust, and how exact its times are."""

import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from testing.processes import LOCUST, scripted_server

_STREAMS = 400
TTFT_S, GAP_S, ANSWER_TOKENS = 0.2, 0.02, 100
TIMES = ("--ttft-s", str(TTFT_S), "--gap-s", str(GAP_S))
"""Flags of the scripted server."""
_WARM_S, MEASURE_S, _ROUNDS = 10.0, 14.0, 5
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Prints CPU a token of both clients in each round, and our errors against the server's log."""
    print(f"client: {_STREAMS} streams of {1 / GAP_S:.0f} tokens/s, {ANSWER_TOKENS} tokens each, one process")
    ratios: list[float] = []
    errors: dict[str, list[float]] = {"TTFT": [], "first-to-last span": []}
    for number in range(_ROUNDS):
        plain, _ = _measure(["-f", "benchmarks/instrument/plain_http_user.py"])
        with tempfile.TemporaryDirectory() as reports:
            flags = ["--reports-dir", reports, "--output-tokens", str(ANSWER_TOKENS), "--prompt-tokens", "20"]
            ours, log = _measure(["-f", "scenarios/chat.py", *flags])
            for name, values in request_errors(log, Path(reports)).items():
                errors[name] += values
        ratios.append(ours / plain)
        costs = f"plain HttpUser {plain * 1e6:.1f} us, Seatcount {ours * 1e6:.1f} us"
        print(f"  round {number + 1}: CPU a token: {costs}: ratio {ratios[-1]:.2f}", flush=True)
    print(f"  ratio, median of {_ROUNDS} rounds: {statistics.median(ratios):.2f}")
    for name, values in errors.items():
        cuts = statistics.quantiles(values, n=100)
        p50_ms, p99_ms = cuts[49] * 1e3, cuts[98] * 1e3
        print(f"  {name} error: p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms ({len(values)} requests)")


def _measure(locust: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """Returns CPU seconds a token in the steady part of one load test, and the server's log."""
    with scripted_server(*TIMES) as url:
        return _load(locust, url)


def _load(locust: list[str], url: str) -> tuple[float, list[dict[str, Any]]]:
    limit = f"{_WARM_S + MEASURE_S + 3:.0f}s"
    command = [
        str(LOCUST),
        *locust,
        "--headless",
        "--host",
        url,
        "-u",
        str(_STREAMS),
        "-r",
        "100",
        "-t",
        limit,
    ]
    with subprocess.Popen(
        [*command, "--only-summary"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as client:
        time.sleep(_WARM_S)
        cpu_s, tokens = _cpu_s(client.pid), get(url, "/tokens")["tokens"]
        time.sleep(MEASURE_S)
        cpu_s, tokens = _cpu_s(client.pid) - cpu_s, get(url, "/tokens")["tokens"] - tokens
        client.wait(60)
    return cpu_s / tokens, get(url, "/log")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def get(url: str, path: str) -> Any:
    """Reads a page of the scripted server."""
    with urllib.request.urlopen(url + path, timeout=60) as answer:
        return json.loads(answer.read())


def request_errors(log: list[dict[str, Any]], reports: Path) -> dict[str, list[float]]:
    """Returns the errors of our times, request by request, in seconds: signed for TTFT, else absolute."""
    true = {entry["request_id"]: entry for entry in log}
    rows = [json.loads(line) for path in reports.glob("*/requests-*.jsonl") for line in path.open()]
    ttft, span = [], []
    for row in rows:
        entry = true.get(row["request_id"])
        if row["outcome"] != "ok" or entry is None:
            continue
        sent = entry["sent"]
        ttft.append((row["chunk_s"][0] - row["sent_s"]) - (sent[0] - entry["received"]))
        span.append((row["chunk_s"][-1] - row["chunk_s"][0]) - (sent[-1] - sent[0]))
    return {"TTFT": ttft, "first-to-last span": [abs(value) for value in span]}

"""How exact and how cheap the load generators are, each against the same scripted server.

An error is the quantile that a tool publishes minus the same quantile of the server's log. The log has the
true times, so a late server (it shares the processor with the tool) does not count as an error of the tool.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import UnavailableError
from benchmarks.instrument.client import ANSWER_TOKENS, GAP_S, TICKS, TIMES, TTFT_S, get, request_errors
from benchmarks.instrument.peer_tools import (
    BARE,
    LOCKSTEP,
    PEERS,
    RAMP_S,
    SEATCOUNT,
    TWO_WORKERS,
    Figures,
    Load,
    Tool,
    quantile_figures,
)
from testing.processes import scripted_server, session_members

OWN_VARIANTS = (LOCKSTEP, TWO_WORKERS)
_WARM_S, _STEADY_S = 4.0, 6.0
"""Seconds to wait after half of the streams are open, and seconds in which CPU is then counted."""
POLL_S = 2.0
"""Seconds between two looks at the tool's processes; each look takes about 10 ms of CPU."""
LIMIT_S = 150.0
"""Seconds after which a tool that still runs is ended."""


@dataclass(kw_only=True)
class Result:
    """The figures of one run of a tool. None means that the run gave no such figure."""

    tool: Tool
    streams: int
    problem: str | None = None
    published: Figures | None = None
    true: Figures | None = None
    cpu_s: float | None = None
    """CPU seconds a token, user and system time, of all processes of the tool."""
    server_cores: float = 0.0
    other_cores: float = 0.0
    """CPU cores that other processes used: near 0 on a quiet machine."""
    peak_bytes: int = 0
    errors: dict[str, list[float]] = field(default_factory=dict)
    """Errors of each request in seconds, by figure. Empty for tools that write no request ids."""


def main() -> None:
    """Runs all tools at 100 and 400 streams, some of our own also at 1000, and prints two tables."""
    tools = [SEATCOUNT, *PEERS, BARE]
    plan = [(tool, streams) for streams in (100, 400) for tool in tools]
    plan += [(SEATCOUNT, 1000), (BARE, 1000), (LOCKSTEP, 400), (TWO_WORKERS, 400)]
    print(
        f"peers: streams of {1 / GAP_S:.0f} tokens/s, TTFT {TTFT_S * 1e3:.0f} ms, "
        f"{ANSWER_TOKENS} tokens a request"
    )
    results = []
    for tool, streams in plan:
        results.append(_measure(tool, streams))
        print(f"  {streams} streams, {tool.name}: {_progress(results[-1])}", flush=True)
    _print_comparison([result for result in results if result.tool not in OWN_VARIANTS])
    _print_own_errors(results)


def _progress(result: Result) -> str:
    cores = f"the server took {result.server_cores:.2f} cores, others {result.other_cores:.2f}"
    return result.problem or f"done ({cores})"


def _measure(tool: Tool, streams: int) -> Result:
    result = Result(tool=tool, streams=streams)
    try:
        tool.prepare()
        with tempfile.TemporaryDirectory() as folder, scripted_server(*TIMES) as url:
            _run_tool(result, Load(url=url, streams=streams, folder=Path(folder)))
    except (UnavailableError, OSError) as error:
        result.problem = str(error)
    return result


def _run_tool(result: Result, load: Load) -> None:
    output = load.folder / "output.txt"
    with _process(result.tool, load, output) as process:
        _watch(process, result, load.url)
    if process.returncode:
        last = output.read_text(errors="replace").strip().splitlines()[-1:]
        raise UnavailableError(f"It ended with exit status {process.returncode}: {' '.join(last)[:200]}")
    log = get(load.url, "/log")
    result.true, result.published = _true(log), result.tool.figures(load.folder)
    result.errors = request_errors(log, load.folder)


@contextmanager
def _process(tool: Tool, load: Load, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the tool in its own session, so that all its processes can be counted and ended."""
    environment = os.environ | tool.environment(load.folder)
    with output.open("wb") as file:
        process = subprocess.Popen(
            tool.command(load),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for pid in session_members(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _watch(process: subprocess.Popen[bytes], result: Result, url: str) -> None:
    """Waits for the tool's end and notes its CPU and peak memory. Raises UnavailableError after LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    steady: _Spent | None = None
    loaded_s: float | None = None
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise UnavailableError(f"It was not done after {LIMIT_S:.0f} s, and was ended.")
        spent, streams = _look(process.pid, url)
        if loaded_s is None and streams >= result.streams / 2:
            loaded_s = spent.at_s
        if loaded_s is not None and steady is None and spent.at_s >= loaded_s + _WARM_S:
            steady = spent
        if steady is not None and result.cpu_s is None and spent.at_s >= steady.at_s + _STEADY_S:
            _note_cpu(result, steady, spent)
        result.peak_bytes = max(result.peak_bytes, _memory_bytes(process.pid))
        time.sleep(POLL_S)


@dataclass(frozen=True, kw_only=True)
class _Spent:
    """Seconds of CPU used so far by the tool, the server and the machine, and the tokens sent."""

    at_s: float
    tokens: int
    tool_s: float
    server_s: float
    machine_s: float


def _look(session: int, url: str) -> tuple[_Spent, int]:
    """Returns the CPU used so far and the number of open streams."""
    page = get(url, "/tokens")
    spent = _Spent(
        at_s=time.monotonic(),
        tokens=page["tokens"],
        tool_s=_cpu_s(session),
        server_s=page["cpu_s"],
        machine_s=_machine_s(),
    )
    return spent, page["open"]


def _note_cpu(result: Result, begin: _Spent, end: _Spent) -> None:
    took_s = end.at_s - begin.at_s
    tool_s, server_s = end.tool_s - begin.tool_s, end.server_s - begin.server_s
    result.cpu_s = tool_s / max(1, end.tokens - begin.tokens)
    result.server_cores = server_s / took_s
    result.other_cores = (end.machine_s - begin.machine_s - tool_s - server_s) / took_s


def _machine_s() -> float:
    """Returns CPU seconds of all processes and the kernel since boot."""
    user, nice, system, _, _, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / TICKS


def _cpu_s(session: int) -> float:
    """Returns CPU seconds of a session's living processes and of their children that have ended."""
    return (
        sum(sum(map(int, fields[11:15])) for fields in map(_stat, session_members(session)) if fields) / TICKS
    )


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended while we looked
        return []


def _memory_bytes(session: int) -> int:
    """Returns the proportional set size of a session: memory that its processes share counts once."""
    return sum(_pss_bytes(pid) for pid in session_members(session))


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended while we looked
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _true(log: list[dict[str, Any]]) -> Figures:
    """Computes the true quantiles from the server's log, over the requests that were answered to the end."""
    whole = [entry for entry in log if len(entry["sent"]) == ANSWER_TOKENS]
    if not whole:
        raise UnavailableError("It ended without one answered request.")
    ttft = [entry["sent"][0] - entry["received"] for entry in whole]
    return quantile_figures(ttft, np.concatenate([np.diff(entry["sent"]) for entry in whole]))


def _print_comparison(results: list[Result]) -> None:
    print("\nErrors against the server's own log, CPU a token and peak memory of all the tool's processes:\n")
    print("| streams | tool | TTFT p50, ms | TTFT p99, ms | gap p99, ms | CPU a token, us | memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        print(f"| {result.streams} | {result.tool.name} | {' | '.join(_cells(result))} |")
    print(f"\nStarts are spread over {RAMP_S:.0f} s where a tool can. What each tool's gap figure is:")
    for tool in dict.fromkeys(result.tool.name for result in results):
        gap = next(result.tool.gap for result in results if result.tool.name == tool)
        print(f"- {tool}: {gap}")


def _cells(result: Result) -> list[str]:
    published, true = result.published, result.true
    if published is None or true is None:
        return [result.problem or "-", "", "", "", ""]
    return [
        _ms(published.ttft_p50_s - true.ttft_p50_s),
        _ms(published.ttft_p99_s - true.ttft_p99_s),
        _ms(published.gap_p99_s - true.gap_p99_s),
        "-" if result.cpu_s is None else f"{result.cpu_s * 1e6:.1f}",
        f"{result.peak_bytes / 2**20:.0f}",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:+.2f}"


def _print_own_errors(results: list[Result]) -> None:
    """Prints Seatcount's errors over single requests, and its CPU in multiples of the bare client's."""
    limits = {result.streams: result.cpu_s for result in results if result.tool is BARE}
    print("\nSeatcount, request by request against the log, and its CPU against the bare protocol:\n")
    print("| streams | TTFT p50, ms | TTFT p99, ms | first to last token, p99, ms | CPU, times the limit |")
    print("|---|---|---|---|---|")
    for result in results:
        if result.tool in (SEATCOUNT, *OWN_VARIANTS) and result.errors:
            start = result.tool.name.partition(", ")[2] or "staggered"
            ttft, span = result.errors["TTFT"], result.errors["first-to-last span"]
            cells = [_ms(np.percentile(ttft, 50)), _ms(np.percentile(ttft, 99)), _ms(np.percentile(span, 99))]
            cells.append(_times(result.cpu_s, limits.get(result.streams)))
            print(f"| {result.streams}, {start} | {' | '.join(cells)} |")


def _times(ours: float | None, limit: float | None) -> str:
    return "-" if ours is None or limit is None else f"{ours / limit:.2f}"

"""How long `python -m analysis.capacity` takes for 100,000 requests of 200 chunks, and how much memory."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from loadtest.record import Outcome, RequestRecord, RunInfo, ServerInfo, ServerSample, encode_line
from loadtest.run.sink import write_run_info

CHUNKS = 200
_LEVELS, _LEVEL_S = (100, 200, 300, 400), 300.0
"""Users of each level, who ask without a pause, and seconds of a level. Together about 100,000 requests."""


def main() -> None:
    """Writes a run, analyses it in another process, and prints the time and peak memory of that process."""
    with tempfile.TemporaryDirectory() as folder:
        count = _write(Path(folder))
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "analysis.capacity", folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        answer = json.loads((Path(folder) / "capacity.json").read_text())["models"][0]
    what = "refused" if answer["refused"] else f"{answer['max_users']} users"
    code = os.waitstatus_to_exitcode(status)
    print(f"analysis: {count:,} requests of {CHUNKS} chunks (exit code {code}, {what})")
    print(f"  {took:.1f} s, {usage.ru_maxrss / 1024:.0f} MiB at most")


def _write(folder: Path) -> int:
    """Writes the run into the folder. Returns the number of requests."""
    rng = random.Random(0)
    start = 1.8e9
    schedule = [(start + i * _LEVEL_S, start + (i + 1) * _LEVEL_S, users) for i, users in enumerate(_LEVELS)]
    server = ServerInfo(num_gpu_blocks=16385, block_size=16, max_model_len=8192)
    info = RunInfo(
        run_id="big", model="m", scenario="chat", host="http://h", started_unix_s=start, settings={},
        server=server, schedule=schedule, ended_unix_s=schedule[-1][1],
    )  # fmt: skip
    write_run_info(folder, info)
    count = 0
    with (folder / "requests-0.jsonl").open("wb") as rows:
        for begin, end, users in schedule:
            for row in _level(begin, end, users, rng):
                rows.write(encode_line(row))
                count += 1
    with (folder / "server.jsonl").open("wb") as samples:
        for second in range(int(len(_LEVELS) * _LEVEL_S)):
            samples.write(encode_line(_sample(start + second, schedule)))
    return count


def _level(begin: float, end: float, users: int, rng: random.Random) -> Iterator[RequestRecord]:
    for user in range(users):
        at = begin + rng.uniform(0, 2)
        while at < end:
            row = _row(at, user, users, rng)
            yield row
            at += row.end_s


def _row(at: float, user: int, users: int, rng: random.Random) -> RequestRecord:
    gap = 0.01 * (1 + users / 640) * rng.uniform(0.8, 1.2)
    chunks = [0.1 + gap * i * rng.uniform(0.99, 1.01) for i in range(CHUNKS)]
    return RequestRecord(
        request_id=f"{user}-{at}", model="m", scenario="chat", worker="0", user=user, turn=0,
        level_users=users, start_unix_s=at, sent_s=0.001, headers_s=0.002,
        chunk_s=sorted(chunks), first_answer_s=chunks[0], end_s=max(chunks) + 0.001, chunk_kinds="c" * CHUNKS,
        prompt_tokens=rng.randint(50, 500), output_tokens=CHUNKS, max_tokens=CHUNKS, finish_reason="length",
        outcome=Outcome.OK, http_status=200,
    )  # fmt: skip


def _sample(unix_s: float, schedule: list[tuple[float, float, int]]) -> ServerSample:
    users = next(users for begin, end, users in schedule if begin <= unix_s < end)
    return ServerSample(
        unix_s=unix_s, engine="0", running=float(users), waiting=0.0, waiting_capacity=0.0,
        kv_cache_usage=users * 380 / 262144, preemptions_total=0.0,
    )  # fmt: skip

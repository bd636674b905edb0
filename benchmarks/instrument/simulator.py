"""How many streams the embedded server carries on one core: CPU a token, and how late its tokens are."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from functools import partial

import uvloop

_STREAMS = (500, 1000, 2000)
_TOKENS = 400
_WARM_S, _STEADY_S = 8.0, 10.0
_TICKS = os.sysconf("SC_CLK_TCK")
ENGINE = ("--preset", "llama-3.1-8b-h100", "--max-num-seqs", "2000", "--max-num-batched-tokens", "8192")
LATENESS = re.compile(r"^seatcount_simulator_lateness_seconds(?:\{\})? (\S+)", re.MULTILINE)
MADE = re.compile(r"^vllm:generation_tokens_total\{.*\} (\S+)", re.MULTILINE)


def main() -> None:
    """Prints a line for each number of streams."""
    print("simulator: open streams, one server process")
    for streams in _STREAMS:
        command = [sys.executable, "-m", "loadtest.simulator", "--port", "0", *ENGINE]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = re.search(r"http://\S+", server.stdout.readline())
                assert url is not None
                found = uvloop.run(_load(url[0], server.pid, streams))
            finally:
                server.terminate()
        print(f"  {streams} streams: {found.line(streams)}", flush=True)


@dataclass
class _SimulatorLoad:
    """The embedded server's figures in the last _STEADY_S seconds of a load: cores, tokens, lateness."""

    cores: float = 0.0
    tokens: float = 0.0
    late_s: list[float] = field(default_factory=list)

    def line(self, streams: int) -> str:
        rate = self.tokens / _STEADY_S
        late_ms = sorted(1e3 * late_s for late_s in self.late_s)
        return (
            f"{rate / streams:.1f} tokens/s each, {self.cores:.2f} of a core, "
            f"{1e6 * self.cores / rate:.1f} us a token, late by {late_ms[len(late_ms) // 2]:.0f} ms "
            f"(median of seconds; at most {late_ms[-1]:.0f})"
        )


class _Stream(asyncio.Protocol):
    """Sends one request after another on one connection and discards the answers."""

    def __init__(self, number: int) -> None:
        content = f"{number} " + "word " * 40
        body = json.dumps(
            {
                "messages": [{"role": "user", "content": content}],
                "max_tokens": _TOKENS,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: simulator\r\ncontent-type: application/json\r\n"
        self._request = head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"0\r\n\r\n"):  # the end of a chunked answer, whether alone in this read or not
            self._transport.write(self._request)


async def _load(url: str, pid: int, streams: int) -> _SimulatorLoad:
    host, port = url.removeprefix("http://").split("/")[0].split(":")
    loop = asyncio.get_running_loop()
    for number in range(streams):
        await loop.create_connection(partial(_Stream, number), host, int(port))
        await asyncio.sleep(_WARM_S / 2 / streams)
    await asyncio.sleep(_WARM_S / 2)
    found, cpu_s, made, began = _SimulatorLoad(), _cpu_s(pid), (await _page(url))[1], time.monotonic()
    while time.monotonic() < began + _STEADY_S:
        await asyncio.sleep(1)
        found.late_s.append((await _page(url))[0])
    found.cores = (_cpu_s(pid) - cpu_s) / (time.monotonic() - began)
    found.tokens = ((await _page(url))[1] - made) * _STEADY_S / (time.monotonic() - began)
    return found


async def _page(url: str) -> tuple[float, float]:
    """Reads /metrics. Returns the largest lateness (seconds) and the number of tokens made so far."""

    def read() -> str:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(read)
    late, made = LATENESS.search(text), MADE.search(text)
    assert late is not None
    assert made is not None
    return float(late[1]), float(made[1])


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS

"""A bare asyncio protocol that sends requests and notes the time of each read: the limit for every client.

It parses nothing during the run. It knows the length of each event of the scripted server, and finds
afterwards which read brought which token.

    python -m benchmarks.instrument.bare_client --url URL --streams 400 --seconds 20 --result FILE
"""

import argparse
import asyncio
import json
import os
import random
import time
from array import array
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import uvloop

from testing.servers.scripted import HEAD, ROLE, SCRIPTED_MODEL, TOKEN, TOKENS

ASKED = {
    "model": SCRIPTED_MODEL,
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": TOKENS,
    "stream": True,
}
BODY = json.dumps(ASKED).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: scripted\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"


class Reads(NamedTuple):
    """A finished request: when it was sent (s), and the time (s) and length (bytes) of each read."""

    sent: float
    times: "array[float]"
    lengths: "array[int]"


class _Stream(asyncio.Protocol):
    """Sends one request after another on one connection, while `going_on` is true."""

    def __init__(self, finished: list[Reads]) -> None:
        self._finished = finished
        self._now = time.perf_counter
        self._socket = -1
        self.going_on = True
        self._reads: Reads

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = transport.get_extra_info("socket").fileno()
        self._ask()

    def _ask(self) -> None:
        self._reads = Reads(self._now(), array("d"), array("L"))
        os.write(self._socket, REQUEST)  # at once; the transport would wait for the end of the loop's turn

    def data_received(self, data: bytes) -> None:
        self._reads.times.append(self._now())
        self._reads.lengths.append(len(data))
        if data.endswith(_END):
            self._finished.append(self._reads)
            if self.going_on:
                self._ask()


async def load(url: str, *, streams: int, ramp_s: float, seconds: float) -> list[Reads]:
    """Holds `streams` streams and returns the finished requests. The starts are spread over `ramp_s`."""
    host, port = urlsplit(url).netloc.split(":")
    finished: list[Reads] = []
    rng = random.Random(0)

    async def start() -> _Stream:
        await asyncio.sleep(rng.uniform(0, ramp_s))
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: _Stream(finished), host, int(port)))[1]

    begun = await asyncio.gather(*(start() for _ in range(streams)))
    await asyncio.sleep(seconds - ramp_s)
    for stream in begun:
        stream.going_on = False
    await asyncio.sleep(3)  # for the answers under way
    return finished


def _figures(finished: list[Reads]) -> dict[str, float]:
    """Computes quantiles of TTFT and gaps, in seconds. A token arrives when its first byte is read."""
    begins = len(HEAD) + len(ROLE) + len(TOKEN) * np.arange(TOKENS)
    ttft, gaps = [], []
    for reads in finished:
        read = np.searchsorted(np.cumsum(reads.lengths), begins, side="right")
        arrivals = np.asarray(reads.times)[read]
        ttft.append(arrivals[0] - reads.sent)
        gaps.append(np.diff(arrivals))
    return {
        "ttft_p50_s": float(np.percentile(ttft, 50)),
        "ttft_p99_s": float(np.percentile(ttft, 99)),
        "gap_p99_s": float(np.percentile(np.concatenate(gaps), 99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--ramp-s", type=float, default=4)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    finished = uvloop.run(
        load(options.url, streams=options.streams, ramp_s=options.ramp_s, seconds=options.seconds)
    )
    options.result.write_text(json.dumps(_figures(finished)))


if __name__ == "__main__":
    main()

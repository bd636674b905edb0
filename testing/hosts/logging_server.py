"""Runs the scripted server on any address: `python -m testing.hosts.logging_server ADDRESS PORT LOG`."""

import asyncio
import json
import signal
import sys
from pathlib import Path

from testing.servers.scripted import Connection, Script


async def _serve(address: str, port: int, log: Path) -> None:
    """Serves until SIGTERM, then writes the log as JSON."""
    script = Script(ttft_s=0.1, gap_s=0.02)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_server(lambda: Connection(script), address, port)
    await ended.wait()
    server.close()
    log.write_text(json.dumps(script.log))  # noqa: ASYNC240 (the server is closed)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))

"""Which GPUs are the server's: the processes are real, the figures of the driver are given."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.server.gpus import LARGE_BYTES, Listener, cards_of_server, find_listener
from testing.processes import free_port, simulator

FORWARDER = """
import asyncio, sys
async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
async def forward(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))
async def main():
    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextmanager
def tunnel(port: int) -> Iterator[tuple[int, int]]:
    """Starts a process that forwards connections to a port, and yields its own port and its process id."""
    command = [sys.executable, "-c", FORWARDER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


def test_the_process_that_listens_is_found_and_a_tunnel_is_not_the_server_behind_it() -> None:
    with simulator() as url:
        port = int(url.rpartition(":")[2])
        server = find_listener(port)
        assert server is not None
        assert f"(process {min(server.pids)})" in server.name
        with tunnel(port) as (forwarded, pid):
            seen = find_listener(forwarded)
            assert seen is not None
            assert seen.pids == {pid}
            assert seen.pids.isdisjoint(server.pids)


def test_children_of_the_listening_process_serve_too() -> None:
    program = (
        "import socket, subprocess, sys\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(listener.getsockname()[1], child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        port, child = map(int, parent.stdout.readline().split())
        found = find_listener(port)
        parent.communicate("")
    assert found is not None
    assert found.pids == {parent.pid, child}


def test_nobody_listens_is_nobody() -> None:
    assert find_listener(free_port()) is None


OWN = os.getpid()
HERE = Listener(frozenset({OWN}), "server")


def on_this_machine(pid: int) -> bool:
    return pid < 1000 or pid == OWN


def test_only_the_cards_of_the_serving_process_count() -> None:
    cards = [{7: LARGE_BYTES}, {OWN: 5}, {}, {OWN: None, 7: 1}]
    assert cards_of_server(cards, HERE, exists=on_this_machine) == [1, 3]


def test_a_tunnel_has_no_card_though_another_process_fills_one() -> None:
    assert cards_of_server([{7: 40 * LARGE_BYTES}], HERE, exists=on_this_machine) == []
    assert cards_of_server([{}], HERE, exists=on_this_machine) == []


def test_where_the_process_cannot_be_seen_much_memory_decides() -> None:
    cards = [{7: LARGE_BYTES - 1}, {7: LARGE_BYTES}, {8: None}, {}]
    assert cards_of_server(cards, None, exists=on_this_machine) == [1, 2]
    foreign = [{50_000_000: LARGE_BYTES}, {50_000_001: 5}]  # ids of the machine outside of this container
    assert cards_of_server(foreign, HERE, exists=on_this_machine) == [0]

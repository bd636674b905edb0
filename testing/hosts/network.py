"""Simulates several machines on one: network namespaces on a bridge, each with its own working folder.

Needs root on Linux.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from testing.processes import LOCUST, ROOT, clean_environment

HUB = "10.77.0.1"
"""Address of the first machine, where the server runs."""


class HostsUnavailableError(Exception):
    """Network namespaces cannot be made on this platform. The message says why."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def network(*names: str) -> Iterator[dict[str, "Host"]]:
    """Makes a namespace for each name, all on one bridge, and yields them by name. The first is the hub.

    Raises HostsUnavailableError.
    """
    prefix = f"sc{os.getpid() % 10000}"
    try:
        made = {name: Host(name, f"{prefix}-{name}", f"10.77.0.{i}") for i, name in enumerate(names, start=1)}
        hub = next(iter(made.values()))
        for host in made.values():
            _ip("netns", "add", host.namespace)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("-n", hub.namespace, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub.namespace, "address", "add", f"{hub.address}/24", "dev", "bridge")
        _ip("-n", hub.namespace, "link", "set", "bridge", "up")
        for host in list(made.values())[1:]:
            _plug_in(host, hub)
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(prefix, names)
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        raise HostsUnavailableError(f"No network namespaces here ({str(said).strip()}).") from None
    try:
        yield made
    finally:
        _remove(prefix, names)


def _plug_in(host: "Host", hub: "Host") -> None:
    port = f"to-{host.name}"
    _ip(
        "-n",
        hub.namespace,
        "link",
        "add",
        port,
        "type",
        "veth",
        "peer",
        "name",
        "net",
        "netns",
        host.namespace,
    )
    _ip("-n", hub.namespace, "link", "set", port, "master", "bridge", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "net")
    _ip("-n", host.namespace, "link", "set", "net", "up")


def _remove(prefix: str, names: tuple[str, ...]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", f"{prefix}-{name}"], check=False, capture_output=True)


class Host:
    """A simulated machine: a namespace with an address."""

    def __init__(self, name: str, namespace: str, address: str) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address

    def start(
        self, command: list[str], *, folder: Path, hidden: list[Path], log: Path
    ) -> "subprocess.Popen[str]":
        """Starts a command in `folder` with its output in `log`. Folders in `hidden` look empty to it."""
        folder.mkdir(parents=True, exist_ok=True)
        mounts = [f"mount -t tmpfs hidden '{path}'" for path in hidden]
        script = " && ".join([*mounts, f"cd '{folder}'", 'exec "$@"'])
        with log.open("w") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "sh", "-c", script, "sh", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                env=clean_environment(PYTHONPATH=str(ROOT)),
            )

    def cut_off_from(self, other: "Host") -> None:
        """Drops packets to the other machine, as a broken route does."""
        _ip("-n", self.namespace, "route", "add", "blackhole", f"{other.address}/32")

    def reach_again(self, other: "Host") -> None:
        _ip("-n", self.namespace, "route", "delete", "blackhole", f"{other.address}/32")


def locust(*flags: str) -> list[str]:
    """Returns the command of a load test, with paths that are valid on every machine."""
    return [str(LOCUST), "-f", str(ROOT / "scenarios" / "chat.py"), "--headless", *flags]


def server_command(log: Path) -> list[str]:
    return [sys.executable, "-m", "testing.hosts.logging_server", HUB, "8000", str(log)]

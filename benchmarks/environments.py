"""Makes environments of foreign Python tools, each with pinned versions, in the user's cache folder.

An environment is made once. A marker file is written last, so an interrupted installation is detected and
made again.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class UnavailableError(Exception):
    """The tool cannot be installed, or it published no figures. The message is one sentence."""


def peers_home() -> Path:
    """Returns the folder of the tools' environments."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SEATCOUNT_PEERS_HOME") or cache / "seatcount" / "peers").resolve()


def is_made(tool: str, pins: Sequence[str]) -> bool:
    """Whether the tool's environment was made to the end, with these versions and this Python."""
    marker = peers_home() / tool / "ready"
    return marker.exists() and marker.read_text() == _key(pins)


def make_environment(tool: str, pins: Sequence[str]) -> None:
    """Makes the tool's environment with the pinned packages where it is missing. Raises UnavailableError."""
    if is_made(tool, pins):
        return
    folder = peers_home() / tool
    print(f"Making the environment of {tool} (once, one or two minutes) ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [program_of(tool, "python"), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(folder / "env")], folder / "install.log")
    _run([*pip, "install", "--no-compile", *pins], folder / "install.log")
    (folder / "ready").write_text(_key(pins))


def program_of(tool: str, name: str) -> str:
    """Returns the path of a program in the tool's environment."""
    return str(peers_home() / tool / "env" / "bin" / name)


def _key(pins: Sequence[str]) -> str:
    return f"{' '.join(pins)}, Python {platform.python_version()}"


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise UnavailableError(f"Its environment could not be made; {log.name} in its folder says why.")

"""The load test as a user runs it: its command line, its output and its run folder.

This module never imports Locust, because Locust patches sockets.
"""

import json
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.processes import LOCUST, free_port


class Finished:
    """A finished load test: its exit code, its output, and the folder with its run folder."""

    def __init__(self, code: int, said: str, reports: Path) -> None:
        self.code = code
        self.said = said
        self.reports = reports

    @property
    def folder(self) -> Path:
        (folder,) = (path for path in self.reports.iterdir() if path.is_dir())
        return folder

    @property
    def info(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "run.json").read_text()))

    @property
    def levels(self) -> list[int]:
        """Users of the levels. A level that was held again, because this machine was busy, counts once."""
        users = [users for _, _, users in self.info["schedule"]]
        return [one for one, before in zip(users, [None, *users], strict=False) if one != before]

    def rows(self, pattern: str = "requests-*.jsonl") -> list[dict[str, Any]]:
        lines = [line for path in self.folder.glob(pattern) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]


QUICK = {"--prompt-tokens": "40", "--output-tokens": "8", "--settle-s": "0.5"}


def locust_command(
    reports: Path, host: str | None, *flags: str, scenario: str = "chat", **changes: str
) -> list[str]:
    level = {"--level-s": "2"} if scenario == "chat" else {}
    settings = {**QUICK, **level, **{f"--{k.replace('_', '-')}": v for k, v in changes.items()}}
    words = [word for pair in settings.items() for word in pair]
    target = ["--host", host] if host else []
    return [
        str(LOCUST),
        "-f",
        f"scenarios/{scenario}.py",
        "--headless",
        *target,
        "--reports-dir",
        str(reports),
        *words,
        *flags,
    ]


def two_processes() -> list[str]:
    """Returns the flags for two workers and a master. The port is free, so tests can run side by side."""
    port = str(free_port())
    ports = ["--master-bind-port", port, "--master-port", port]
    return ["--processes", "2", "--master-bind-host", "127.0.0.1", *ports]


RunLocust = Callable[..., Finished]


def post(url: str, **form: str) -> None:
    data = urllib.parse.urlencode(form).encode()
    urllib.request.urlopen(url, data, timeout=10).read()

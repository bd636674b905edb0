"""The user's own commands, as processes: the load test and its analysis."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testing.load_tests import Finished, RunLocust, locust_command
from testing.processes import ROOT, clean_environment, until

LOAD_TEST_S, COMMAND_LIMIT_S = 150, 60
"""Seconds after which a load test, and an analysis, is ended as hanging."""

Meanwhile = Callable[[Finished], None]


def user_load(
    folder: Path,
    host: str | None,
    *,
    before: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    meanwhile: Meanwhile | None = None,
    locustfile: Path | None = None,
) -> RunLocust:
    """Returns a function that runs a load test into `folder/reports` and waits for its end. It takes flags,
    and settings by name.

    `before` is put before the command. `meanwhile` is called once the load test runs, with what there is of
    it; if it raises, so does the load test.
    """

    def run(*flags: str, **changes: str) -> Finished:
        folder.mkdir(parents=True, exist_ok=True)
        words = [*before, *locust_command(folder / "reports", host, *flags, **changes)]
        if locustfile is not None:
            words[words.index("scenarios/chat.py")] = str(locustfile)
        return _finish(
            words, clean_environment(PYTHONPATH=str(ROOT), **(environment or {})), folder, meanwhile
        )

    return run


def _finish(
    words: list[str], environment: dict[str, str], folder: Path, meanwhile: Meanwhile | None
) -> Finished:
    reports, raised = folder / "reports", list[BaseException]()
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        acting = threading.Thread(target=_act, args=(meanwhile, Finished(-1, "", reports), raised))
        acting.start()
        try:
            said = process.communicate(timeout=LOAD_TEST_S)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"{process.communicate()[0]}\n(it did not end within {LOAD_TEST_S} s)"
        acting.join()
    (folder / "load.log").write_text(said)
    if raised:
        raise raised[0]
    return Finished(process.returncode, said, reports)


def _act(meanwhile: Meanwhile | None, run: Finished, raised: list[BaseException]) -> None:
    if meanwhile is None:
        return
    try:
        meanwhile(run)
    except BaseException as error:  # noqa: BLE001 (raised again by the caller, in its own thread)
        raised.append(error)


def wait_for_level(run: Finished, number: int, *, seconds: float = 60) -> None:
    """Waits until the level of this number has begun; the first is 1."""

    def begun() -> bool:
        folders = [path for path in run.reports.glob("*") if (path / "run.json").exists()]
        return bool(folders) and len(json.loads((folders[0] / "run.json").read_text())["schedule"]) >= number

    until(seconds, begun)


@dataclass(frozen=True)
class Analysed:
    """What a command of the analysis printed, its exit code, and the model in `capacity.json`, if any."""

    code: int
    said: str
    model: dict[str, Any]

    @property
    def first_lines(self) -> str:
        """The lines before the first table."""
        return self.said.partition("───")[0]

    def says(self, *words: str) -> bool:
        """Whether all these words are said, in any case."""
        said = " ".join(self.said.lower().split())
        return all(word.lower() in said for word in words)

    @property
    def no_wall(self) -> str:
        """What the answer says was no wall; empty if it says nothing of that."""
        return re.split(r"Not observable|\n", self.said.partition("No wall")[2], maxsplit=1)[0]

    @property
    def brief(self) -> str:
        """The answer in a few words."""
        model = self.model
        if not model:
            return f"exit {self.code}: {(self.said.strip().splitlines() or ['nothing said'])[-1]}"
        if model["refused"]:
            return f"refused: {' '.join(model['reasons'])}"
        if model["at_least"]:
            return f"at least {model['max_users']} users"
        low, high = model["interval_x"]
        limit = f"limit {model['estimate_x']:.1f} ({low:.1f} to {high:.1f})"
        return f"{model['max_users']} users, {model['binding']}, {limit}"


def analyse_run(folder: Path, *flags: str) -> Analysed:
    """Runs the analysis of all runs in `folder/reports`."""
    reports = folder / "reports"
    done = command("analysis.capacity", str(reports), *flags)
    written = reports / "capacity.json"
    models = json.loads(written.read_text())["models"] if written.exists() else [{}]
    (folder / "analysis.log").write_text(done.stdout)
    return Analysed(done.returncode, done.stdout, models[0])


def command(
    module: str, *words: str, timeout_s: float = COMMAND_LIMIT_S
) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m MODULE ...` and returns it, with all that it printed in `stdout`."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=clean_environment(COLUMNS="200"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )

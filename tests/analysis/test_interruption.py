"""Ctrl-C while a command of the analysis still imports its modules."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testing.processes import ROOT, clean_environment


@pytest.mark.parametrize("command", ["capacity", "compare", "sizing", "twin"])
def test_ctrl_c_during_the_imports_is_a_sentence_and_130(command: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", f"analysis.{command}", "no-such-folder"],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        loaded = Path(f"/proc/{process.pid}/maps")
        while "msgspec" not in loaded.read_text():  # one of the first modules; the others take far longer
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[0]
    assert process.returncode == 130, said
    assert said.strip() == "Interrupted before the answer was ready: the run is as it was, ask again."

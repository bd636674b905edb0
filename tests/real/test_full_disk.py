"""A disk that fills up in the middle of a load test: what fits is readable, the rest is counted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from testing.load_tests import locust_command
from testing.processes import ROOT, clean_environment, simulator

pytestmark = pytest.mark.real
SIZE = "160k"


def test_what_fits_on_a_full_disk_is_readable_and_the_rest_is_counted(tmp_path: Path) -> None:
    reports, kept = tmp_path / "reports", tmp_path / "kept"
    reports.mkdir()
    script = f"mount -t tmpfs -o size={SIZE} small '{reports}' || exit 77; " + '"$@"; code=$?; '
    script += f"cp -r '{reports}' '{kept}'; exit $code"
    with simulator("--num-gpu-blocks-override", "401") as url:
        command = locust_command(reports, url, levels="4,8", level_s="8")
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *command],
            cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        if os.environ.get("CI") == "true":
            pytest.fail(f"No test ran on a full disk: {done.stderr}", pytrace=False)
        pytest.skip(f"No mount namespaces here ({done.stderr.strip()}).")
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    lost = re.findall(r"(\d+) rows of worker 0 could not be written and are lost", done.stderr)
    assert lost
    ended = re.findall(r"^SSE +chat +(\d+)", done.stderr + done.stdout, re.MULTILINE)[0]
    (folder,) = kept.iterdir()
    whole = (folder / "requests-0.jsonl").read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in whole if line.endswith(b"\n")]
    assert len(rows) > 50
    health = (folder / "client-0.jsonl").read_bytes().count(b"\n")
    assert len(rows) + int(lost[0]) >= int(ended)
    assert len(rows) + int(lost[0]) <= int(ended) + 30 + health
    analysis = [sys.executable, "-m", "analysis.capacity", str(kept)]
    said = subprocess.run(analysis, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode in (0, 3), said.stderr
    assert said.stderr == ""

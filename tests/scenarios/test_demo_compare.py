"""`make compare`: the claims beside what was measured, and its end on a signal."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from analysis.compare.__main__ import main
from loadtest.simulator.presets import find_preset
from scenarios.demo.claims import claims_beside_measurements, claims_beside_physics
from scenarios.demo.compare import CLAIMS_FILE
from testing.processes import ROOT, clean_environment
from testing.runs.virtual import write_short_run


def test_the_claims_stand_beside_what_was_measured_and_physics_answers(tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        write_short_run(tmp_path / name, seed=seed, info={"model": name})
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path)])
    found = json.loads((tmp_path / "compare.json").read_text())
    import tomllib

    claims = tomllib.loads(CLAIMS_FILE.read_text())
    text = claims_beside_measurements(found, claims)
    alone = {row["figure"]: row for row in found["rows"] if row["users"] == 1}
    ttft, decode = (
        [alone[figure][side]["value"] for side in ("a", "b")] for figure in ("ttft_p50_s", "decode_tok_s")
    )
    latency = rf"first-token latency, ms +260 ± 30 +{1e3 * ttft[0]:.0f} +320 ± 40 +{1e3 * ttft[1]:.0f}\n"
    assert re.search(latency, text)
    speed = rf"decode, tokens/s +57\.8 +{decode[0]:.1f} +44\.2 +{decode[1]:.1f}\n"
    assert re.search(speed, text)
    assert re.search(r"peak GPU memory in use, GB +3\.2 +– +3\.6 +–\n", text)
    presets = [find_preset(claim["preset"]) for claim in claims["models"]]
    said = claims_beside_physics(presets, claims["models"])
    for words in (
        "3.205 and 3.421 GiB",
        "112 and 192 KiB",
        "at most 93 and 105 tokens/s",
        "2.6 and 1.5 of 32,768",
    ):
        assert words in said


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_make_compare_leaves_nothing_behind(sent, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "scenarios.demo.compare"],
        cwd=ROOT,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert re.search(r"about \d minutes", process.stderr.readline())
        port = urlsplit(process.stderr.readline().rpartition(" on ")[2].strip()).port
        assert port is not None
        os.kill(process.pid, sent)
        assert "nothing is left running" in process.stderr.read()
    assert process.returncode == 130
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
        pytest.fail("the server still listens")

"""The wall of errors, against a server that takes only so many requests at once."""

import json
import subprocess
import sys
from pathlib import Path

from testing.load_tests import RunLocust
from testing.processes import ROOT, scripted_server

PLACES = 6


def test_errors_bind_where_the_server_begins_to_turn_requests_away(
    run_locust: RunLocust, tmp_path: Path
) -> None:
    with scripted_server("--ttft-s", "0.1", "--gap-s", "0.01", "--max-open", str(PLACES)) as url:
        run = run_locust(
            url, levels="5,6,8", level_s="10", settle_s="1", prompt_tokens="60", output_tokens="20"
        )
    assert run.code == 0, run.said
    refused = {row["level_users"] for row in run.rows() if row["http_status"] == 503} - {None}
    assert refused == {8}
    analysis = [sys.executable, "-m", "analysis.capacity", str(run.folder)]
    done = subprocess.run(analysis, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads((run.folder / "capacity.json").read_text())["models"]
    assert {level["users"]: level["errors"] > 0 for level in model["levels"]} == {5: False, 6: False, 8: True}
    assert all(level["trusted"] for level in model["levels"]), model["warnings"]
    assert model["binding"] == "errors"
    assert PLACES - 1 <= model["max_users"] <= PLACES <= model["estimate"] < 8
    assert model["interval_x"][0] < model["estimate_x"] < model["interval_x"][1] <= 8.0
    assert "errors" in done.stdout.split("What would raise")[0]

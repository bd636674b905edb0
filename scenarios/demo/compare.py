"""`make compare`: tests two small models on a simulated T4, one after the other, under the same load. Then
prints their results side by side, next to the figures that a published comparison claims."""

import json
import sys
import tomllib
from pathlib import Path

from loadtest.simulator.presets import Preset, find_preset
from scenarios.demo import embedded
from scenarios.demo.claims import claims_beside_measurements, claims_beside_physics

CLAIMS_FILE = Path(__file__).with_name("reference_claims.toml")
_REPORTS = Path("reports") / "compare"
_LEVELS, _LEVEL_S, _START_S = "1,88,108,128", 36, 12
"""Levels, seconds of a level, and seconds that a model needs to start. The first level has one user, as in
the claims, and lasts long enough for the 59 requests that a p95 needs; at the others, tokens get slow."""
_FLAGS = {
    "--levels": _LEVELS,
    "--level-s": str(_LEVEL_S),
    "--settle-s": "4",
    "--prompt-tokens": "lognormal:128,0.5",
    "--output-tokens": "lognormal:32,0.5",
}


def compare_reference_pair() -> None:
    """Runs the load test against both models, compares the two runs and prints the published claims next to
    the results. Raises ProcessFailedError if a process fails."""
    claims = tomllib.loads(CLAIMS_FILE.read_text(encoding="utf-8"))
    presets = [find_preset(claim["preset"]) for claim in claims["models"]]
    count = len(_LEVELS.split(","))
    minutes = len(presets) * (count * _LEVEL_S + _START_S) / 60
    embedded.tell(
        f"Two models with the whole memory of a T4, simulated; {count} levels of {_LEVEL_S} s each: "
        f"about {minutes:.0f} minutes."
    )
    runs = [_measured_run(preset) for preset in presets]
    embedded.finish_command(
        [sys.executable, "-m", "analysis.compare", *map(str, runs), "--output", str(_REPORTS)]
    )
    comparison = json.loads((_REPORTS / "compare.json").read_text(encoding="utf-8"))
    sys.stdout.write(
        claims_beside_measurements(comparison, claims)
        + "\n"
        + claims_beside_physics(presets, claims["models"])
    )


def _measured_run(preset: Preset) -> Path:
    """Runs all levels against one model and returns the run folder."""
    reports = _REPORTS / preset.name
    with embedded.served(preset.name) as host:
        embedded.run_chat(host, {**_FLAGS, "--reports-dir": str(reports)})
    return max(path.parent for path in reports.glob("*/run.json"))


if __name__ == "__main__":
    sys.exit(embedded.demo_exit_code(compare_reference_pair))

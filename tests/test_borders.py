"""What each module may import, even indirectly. Importing locust patches the process, so a leak would change
how the analysis runs; importing matplotlib in a load generator would cost it memory and start-up time."""

import subprocess
import sys

import pytest

from testing.processes import ROOT, clean_environment

LOCUST = {"locust", "gevent"}
SCIENCE = {"scipy", "matplotlib"}
WEB = {"aiohttp", "uvloop"}
FORBIDDEN = {
    **dict.fromkeys(
        [
            "loadtest.record",
            "loadtest.client.sse",
            "loadtest.workload.arrivals",
            "loadtest.workload.conversations",
            "loadtest.model.memory",
            "loadtest.model.architectures",
            "loadtest.model.mixers",
            "loadtest.model.quantisation",
            "loadtest.model.cards",
            "loadtest.model.startup",
            "loadtest.run.live",
            "loadtest.server.vllm",
        ],
        LOCUST | SCIENCE | WEB | {"numpy", "pydantic"},
    ),
    **dict.fromkeys(
        ["loadtest.simulator.engine.scheduler", "loadtest.simulator.virtual"], LOCUST | SCIENCE | WEB
    ),
    **dict.fromkeys(["loadtest.simulator.server", "loadtest.simulator.presets"], LOCUST | SCIENCE),
    **dict.fromkeys(
        [
            "loadtest.client.stream",
            "loadtest.server.scrape",
            "loadtest.run.sink",
            "loadtest.run.shipping",
            "loadtest.server.preflight",
        ],
        LOCUST | SCIENCE | {"numpy"},
    ),
    **dict.fromkeys(
        ["loadtest.run.loop", "loadtest.run.generator", "loadtest.run.coordinator", "loadtest.run.advisor"],
        {"locust", "analysis"} | SCIENCE | {"numpy"},
    ),
    **dict.fromkeys(
        [
            "loadtest.user",
            "loadtest.locust_plugin.shape",
            "loadtest.locust_plugin.search",
            "scenarios.chat",
            "scenarios.find_capacity",
        ],
        SCIENCE | {"numpy", "analysis"},
    ),
    **dict.fromkeys(
        [
            "analysis.reading.runs",
            "analysis.levels.definitions",
            "analysis.evidence.lengths",
            "analysis.evidence.step_time",
            "analysis.levels.measure",
            "analysis.reading.other_tools.files",
            "analysis.reading.other_tools.server_metrics",
            "analysis.reading.other_tools.results",
        ],
        LOCUST | WEB | {"matplotlib"},
    ),
    **dict.fromkeys(
        [
            "analysis.statistics.ratios",
            "analysis.compare.sides",
            "analysis.compare.gate",
            "analysis.compare",
            "analysis.twin",
        ],
        LOCUST | WEB | {"matplotlib"},
    ),
    **dict.fromkeys(
        ["scenarios.demo.__main__", "scenarios.demo.compare"], LOCUST | WEB | SCIENCE | {"analysis"}
    ),
    **dict.fromkeys(
        [
            "analysis.capacity",
            "analysis.reporting.capacity",
            "analysis.reporting.figures",
            "analysis.sizing",
            "analysis.search.advice",
            "analysis.search",
        ],
        LOCUST | WEB,
    ),
}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_module_does_not_import_what_it_must_not_know(module: str) -> None:
    program = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert module.partition(".")[0] in loaded
    assert loaded & FORBIDDEN[module] == set()

"""A real Prometheus server that scrapes the embedded server under load: its workload, and its headroom held
against the load test's own answer."""

import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analysis.headroom.__main__ import main as headroom
from analysis.workload.__main__ import main as workload
from loadtest.workload.distributions import Distribution
from testing.field.commands import Analysed, analyse_run, user_load
from testing.field.deployment import small_server
from testing.gateways.environment import GatewayUnavailableError, prepare_gateway
from testing.gateways.running import PROMETHEUS_PASSWORD, check_rules, prometheus

LOAD = {
    "prompt_tokens": "lognormal:40,0.3",
    "output_tokens": "lognormal:16,0.4",
    "settle_s": "1",
    "levels": "4,8,12",
    "level_s": "8",
}
pytestmark = pytest.mark.timeout(300)


@dataclass
class Watched:
    """A deployment after a load test, which a Prometheus server watched."""

    url: str
    """Of the Prometheus server, with its password."""
    server: str
    answer: Analysed


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    try:
        prepare_gateway("prometheus")
    except GatewayUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        print(f"NOT RUN AGAINST A REAL PROMETHEUS: {error}", file=sys.stderr)
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("watched")
    with ExitStack() as stack:
        server = stack.enter_context(small_server())
        url = stack.enter_context(prometheus([server], guarded=True))
        assert user_load(folder, server)(**LOAD).code == 0
        yield Watched(url.replace("://", f"://reader:{PROMETHEUS_PASSWORD}@"), server, analyse_run(folder))


Main = Callable[[list[str]], int]


def ran(main: Main, capsys: pytest.CaptureFixture[str], *flags: str, code: int = 0) -> tuple[str, str]:
    """Runs a command and returns what it printed, and its errors."""
    ended = main([*flags, "--range", "2m"])
    said = capsys.readouterr()
    assert ended == code, said.out + said.err
    assert PROMETHEUS_PASSWORD not in said.out + said.err
    return said.out, said.err


def test_the_workload_that_prometheus_saw_is_the_one_that_was_loaded(
    watched: Watched, tmp_path: Path
) -> None:
    output = tmp_path / "workload.toml"
    flags = ("--prometheus", watched.url, "--selector", 'job="vllm"')
    ran(workload, capsys, *flags, "--output", str(output))
    text = output.read_text()
    assert PROMETHEUS_PASSWORD not in text
    (one,) = tomllib.loads(text)["class"]
    prompt, answer = (Distribution.parse(one[name]) for name in ("prompt_tokens", "output_tokens"))
    assert prompt.mean == pytest.approx(40, rel=0.1)
    assert answer.kind == "lognormal"
    assert answer.mean == pytest.approx(16, rel=0.1)
    assert answer.b == pytest.approx(0.4, abs=0.12)


def test_the_headroom_is_that_of_the_load_test(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = tmp_path / "rule.yml"
    flags = ("--prometheus", watched.url, "--rule", str(rule), "--format", "json")
    found: dict[str, Any] = json.loads(ran(headroom, capsys, *flags)[0])
    assert found["concurrency"]["in_flight"]["peak"] == pytest.approx(12, abs=1)
    assert found["concurrency"]["in_flight"]["now"] == 0
    model = watched.answer.model
    assert model["binding"] == "kv_cache", watched.answer.brief
    (memory,) = (wall for wall in found["walls"] if wall["name"] == "kv_cache")
    low, high = memory["interval"]
    assert low <= model["interval_x"][1]
    assert model["interval_x"][0] <= high
    assert memory["x"] == pytest.approx(model["estimate_x"], rel=0.15)
    assert found["memory"]["pool_tokens"] == 640
    assert 1 <= found["target"]["in_flight_per_replica"] <= high
    assert "SUCCESS: 2 rules found" in check_rules(rule)


def test_what_prometheus_refuses_is_said_without_the_password(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = watched.url.replace(PROMETHEUS_PASSWORD, "wr0ng-p4ss")
    _, said = ran(headroom, capsys, "--prometheus", wrong, code=2)
    assert "401" in said
    assert "wr0ng" not in said
    flags = ("--prometheus", watched.url, "--selector")
    assert "parse error" in ran(headroom, capsys, *flags, "job=", code=2)[1]
    assert "has no series" in ran(headroom, capsys, *flags, 'job="other"', code=2)[1]

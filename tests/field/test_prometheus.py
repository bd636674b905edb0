"""A real Prometheus server that scrapes the embedded server under load: the workload that was loaded, and the
wall of the same engine in virtual time."""

import json
import os
import random
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.headroom.__main__ import main as headroom
from analysis.twin.maximum import find_maximum
from analysis.virtual.service import ChatBehaviour, Service
from analysis.workload.__main__ import main as workload
from loadtest.record import Slo
from loadtest.simulator.presets import DEFAULT_PRESET, find_preset
from loadtest.workload.distributions import Distribution
from loadtest.workload.prompts import PROMPT_WORDS
from testing.gateways.environment import GatewayUnavailableError, prepare_gateway
from testing.gateways.running import PROMETHEUS_PASSWORD, check_rules, prometheus
from testing.servers.simulated import SimulatedServer, chat_body, simulated_server

BLOCKS = 101
OUTPUT = Distribution("lognormal", 24, 0.4)
USERS = ((6, 10.0), (12, 16.0))
"""Users, and for how many seconds they ask. Some fifteen would fill the pool."""
pytestmark = pytest.mark.timeout(300)


@dataclass
class Watched:
    """A deployment after a load, which a Prometheus server watched."""

    url: str
    """Of the Prometheus server, with its password."""
    lengths: list[tuple[int, int]]
    """Prompt and output tokens of each request."""


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    try:
        prepare_gateway("prometheus")
    except GatewayUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        print(f"NOT RUN AGAINST A REAL PROMETHEUS: {error}", file=sys.stderr)
        pytest.skip(str(error))
    with ExitStack() as stack:
        pool = ("--num-gpu-blocks-override", str(BLOCKS), "--no-enable-prefix-caching")
        server = stack.enter_context(simulated_server(*pool))
        address = server.url.removesuffix("/v1")
        url = stack.enter_context(prometheus([address], guarded=True))
        time.sleep(2)  # a scrape before the load: counters tell by their growth
        lengths = load(server)
        time.sleep(2)
        yield Watched(url.replace("://", f"://reader:{PROMETHEUS_PASSWORD}@"), lengths)


def load(server: SimulatedServer) -> list[tuple[int, int]]:
    """Lets users ask as USERS says, and returns the lengths of their requests."""

    def ask(number: int, until_s: float) -> list[tuple[int, int]]:
        rng, asked = random.Random(number), []
        while time.monotonic() < until_s:
            words = " ".join(rng.choices(PROMPT_WORDS, k=rng.randint(30, 50)))
            usage: Any = server.answer(chat_body(words, max_tokens=OUTPUT.draw_count(rng)))["usage"]
            asked.append((usage["prompt_tokens"], usage["completion_tokens"]))
        return asked

    lengths = []
    for users, seconds in USERS:
        until_s = time.monotonic() + seconds
        with ThreadPoolExecutor(users) as executor:
            numbers = range(100 * users, 101 * users)
            for asked in executor.map(ask, numbers, [until_s] * users):
                lengths += asked
    return lengths


def true_users(lengths: list[tuple[int, int]]) -> float:
    """Returns the users that the engine of the server holds, by simulation with these lengths."""
    preset = replace(find_preset(DEFAULT_PRESET), num_gpu_blocks_override=BLOCKS)
    behaviour = ChatBehaviour(conversations=[(pair,) for pair in lengths], pauses_s=np.array([1e-3]))
    service = Service(engine=preset.engine_config(enable_prefix_caching=False), chatting=behaviour)
    found = find_maximum(service, Slo(), requests=6000)
    assert found is not None
    assert found.wall == "kv_cache"
    return found.x


Main = Callable[[list[str]], int]


def ran(main: Main, capsys: pytest.CaptureFixture[str], *flags: str, code: int = 0) -> tuple[str, str]:
    """Runs a command and returns what it printed, and its errors."""
    ended = main([*flags, "--range", "2m"])
    said = capsys.readouterr()
    assert ended == code, said.out + said.err
    assert PROMETHEUS_PASSWORD not in said.out + said.err
    return said.out, said.err


def test_the_workload_that_prometheus_saw_is_what_was_loaded(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "workload.toml"
    flags = ("--prometheus", watched.url, "--selector", 'job="vllm"')
    ran(workload, capsys, *flags, "--output", str(output))
    text = output.read_text()
    assert PROMETHEUS_PASSWORD not in text
    (one,) = tomllib.loads(text)["class"]
    prompt, answer = (Distribution.parse(one[name]) for name in ("prompt_tokens", "output_tokens"))
    asked, answered = np.array(watched.lengths).T
    assert len(asked) > 150
    assert prompt.mean == pytest.approx(asked.mean(), rel=0.05)
    assert answer.kind == "lognormal"
    assert answer.mean == pytest.approx(answered.mean(), rel=0.1)
    assert answer.b == pytest.approx(answered.std() / answered.mean(), abs=0.12)


def test_the_headroom_is_that_of_the_same_engine_in_virtual_time(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = tmp_path / "rule.yml"
    flags = ("--prometheus", watched.url, "--rule", str(rule), "--format", "json")
    found: dict[str, Any] = json.loads(ran(headroom, capsys, *flags)[0])
    in_flight = found["concurrency"]["in_flight"]
    assert in_flight["peak"] == pytest.approx(12, abs=1)
    assert in_flight["now"] == 0
    assert found["memory"]["pool_tokens"] == 16 * (BLOCKS - 1)
    (memory,) = (wall for wall in found["walls"] if wall["name"] == "kv_cache")
    true, (low, high) = true_users(watched.lengths), memory["interval"]
    assert 0.95 * low <= true <= 1.05 * high
    assert memory["x"] == pytest.approx(true, rel=0.1)
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

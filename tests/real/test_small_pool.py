"""128 blocks of 32: what the tool relies on in vLLM, and a memory wall whose place is known in advance."""

import json
import random
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from analysis.headroom.__main__ import main as headroom
from analysis.workload.__main__ import main as workload
from loadtest.server.vllm import read_server_info, read_server_samples
from loadtest.workload.distributions import Distribution
from testing.gateways.environment import GatewayUnavailableError
from testing.gateways.running import prometheus
from testing.vllm.commands import LENGTHS, Measured, ask, capacity, labels, load_test, metric, metrics_page
from testing.vllm.memory_reference import ReferenceBlocks
from testing.vllm.server import BLOCK_SIZE, Vllm

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

BLOCKS = 128
SERVER = {"num_gpu_blocks_override": BLOCKS, "max_num_seqs": 64}
WORDS = ("time", "people", "water", "house", "answer", "small", "place", "year", "sound", "picture")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def scraping(vllm: Vllm) -> Iterator[str | None]:
    """The address of a Prometheus server that scrapes vLLM; None where it cannot be had."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(prometheus([vllm.url]))
        except GatewayUnavailableError as error:
            print(f"NOT RUN AGAINST A REAL PROMETHEUS: {error}", file=sys.stderr)
            yield None
            return
        yield url


@pytest.fixture(scope="module")
def measured(vllm: Vllm, reports: Path, scraping: str | None) -> Measured:
    """About 2,000 requests, most of them next to the wall."""
    return load_test(
        vllm, reports, *LENGTHS, "--levels", "8,14,16,18", "--level-s", "25", "--thinking", "off"
    )


@pytest.fixture(scope="module")
def answer(measured: Measured, reports: Path) -> dict[str, Any]:
    return capacity(reports)


def _prompt(words: int) -> str:
    """Unlike every other one, so that no two share a prefix."""
    return " ".join(random.choices(WORDS, k=words))


def test_the_scraper_finds_every_metric_it_reads(vllm: Vllm) -> None:
    ask(vllm, _prompt(20), 4)
    (sample,) = read_server_samples(metrics_page(vllm), model=vllm.model, unix_s=0.0)
    no_gpu = {"vram_used_bytes", "vram_used_bytes_each", "gpu_util", "error", "simulated_lateness_s"}
    missing = {name for name in sample.__struct_fields__ if getattr(sample, name) is None} - no_gpu
    assert missing == set()
    assert sample.generation_tokens_total is not None
    assert sample.generation_tokens_total >= 4


def test_an_override_of_the_blocks_gives_no_bytes_per_token(vllm: Vllm) -> None:
    info = read_server_info(metrics_page(vllm))
    assert (info.num_gpu_blocks, info.block_size, info.num_gpu_blocks_override) == (
        BLOCKS,
        BLOCK_SIZE,
        BLOCKS,
    )
    assert info.kv_bytes_per_token is None


def test_kv_cache_size_tokens_counts_the_null_block(vllm: Vllm) -> None:
    told = labels(vllm, "vllm:cache_config_info")
    assert int(told["kv_cache_size_tokens"]) == BLOCKS * BLOCK_SIZE


def test_usage_counts_whole_blocks_over_all_but_the_null_block(vllm: Vllm) -> None:
    done = threading.Event()
    seen: list[float] = []

    def watch() -> None:
        while not done.is_set():
            seen.append(metric(vllm, "vllm:kv_cache_usage_perc") * (BLOCKS - 1))
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            usage = ask(vllm, _prompt(100), 600)
        finally:
            done.set()
        watching.result()
    blocks = np.array(seen)
    assert np.abs(blocks - blocks.round()).max() < 1e-6
    most = -(-(usage["prompt_tokens"] + usage["completion_tokens"] - 1) // BLOCK_SIZE)
    held = set(blocks.round().astype(int)) - {0}
    assert max(held) in (most - 1, most)
    assert min(held) >= usage["prompt_tokens"] // BLOCK_SIZE
    assert len(held) > 10


@pytest.mark.parametrize(("blocks_each", "preempted"), [(63, False), (64, True)])
def test_two_requests_share_all_blocks_but_one(vllm: Vllm, blocks_each: int, preempted: bool) -> None:
    """2 x 63 of 127 blocks fit, 2 x 64 do not: the pool is (num_gpu_blocks - 1) blocks."""
    prompts = [_prompt(900), _prompt(900)]
    sizes = [ask(vllm, prompt, 1)["prompt_tokens"] for prompt in prompts]
    before = metric(vllm, "vllm:num_preemptions_total")
    # The last token of an answer is never stored.
    lengths = [blocks_each * BLOCK_SIZE + 1 - size - (blocks_each == 64) for size in sizes]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, [vllm, vllm], prompts, lengths))
    assert (metric(vllm, "vllm:num_preemptions_total") > before) is preempted


def test_every_request_is_ok_and_the_server_counted_the_same_tokens(measured: Measured) -> None:
    assert len(measured.rows) > 500
    assert {row["outcome"] for row in measured.rows} == {"ok"}
    ours = sum(row["output_tokens"] for row in measured.rows)
    first, last = (measured.samples[i]["generation_tokens_total"] for i in (0, -1))
    assert last - first == ours


def test_lengths_are_as_asked(measured: Measured) -> None:
    prompt, output = measured.lengths()
    assert prompt.mean() == pytest.approx(124, rel=0.08)
    assert output.mean() == pytest.approx(96, rel=0.08)
    assert output.std() / output.mean() == pytest.approx(0.6, abs=0.1)


def test_memory_wall_is_found(answer: dict[str, Any]) -> None:
    assert answer["binding"] == "kv_cache"
    assert 15 <= answer["estimate"] <= 17
    low, high = answer["interval"]
    assert high - low <= 4
    assert low <= answer["estimate"] <= high


def test_the_headroom_by_prometheus_is_that_of_the_load_test(
    measured: Measured,
    answer: dict[str, Any],
    scraping: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if scraping is None:
        pytest.skip("there is no Prometheus")
    flags = ["--prometheus", scraping, "--range", "10m"]
    assert headroom([*flags, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (wall,) = (one for one in found["walls"] if one["name"] == "kv_cache")
    (bound,) = (one for one in answer["bounds"] if one["name"] == "kv_cache")
    print(json.dumps({key: found[key] for key in ("walls", "memory", "target", "concurrency")}), bound)
    assert wall["x"] == pytest.approx(bound["users"], abs=1.5)
    assert found["memory"]["pool_tokens"] == (BLOCKS - 1) * BLOCK_SIZE
    assert found["memory"]["tokens_per_request"] == pytest.approx(
        answer["memory"]["tokens_per_user"], rel=0.1
    )
    output = tmp_path / "workload.toml"
    assert workload([*flags, "--output", str(output)]) == 0
    (one,) = tomllib.loads(output.read_text())["class"]
    prompt, tokens = measured.lengths()
    assert Distribution.parse(one["prompt_tokens"]).mean == pytest.approx(prompt.mean(), rel=0.05)
    assert Distribution.parse(one["output_tokens"]).mean == pytest.approx(tokens.mean(), rel=0.05)


def test_tokens_per_user_follow_the_length_law(answer: dict[str, Any], measured: Measured) -> None:
    s, o = measured.lengths()
    formula = (s * o + o * (o - 1) / 2).sum() / o.sum() + (BLOCK_SIZE - 1) / 2
    assert answer["memory"]["tokens_per_user"] == pytest.approx(formula, rel=0.05)
    assert answer["memory"]["pool_tokens"] == (BLOCKS - 1) * BLOCK_SIZE


def test_memory_wall_stands_where_the_law_puts_it(answer: dict[str, Any], measured: Measured) -> None:
    (wall,) = (bound["users"] for bound in answer["bounds"] if bound["name"] == "kv_cache")
    assert wall == pytest.approx(ReferenceBlocks.of(*measured.lengths()).wall(BLOCKS - 1), rel=0.07)


def test_bytes_are_unknown_under_an_override(answer: dict[str, Any]) -> None:
    assert answer["memory"]["bytes_per_token"] is None


def test_first_token_of_a_thought_counts_and_the_answer_is_timed_apart(vllm: Vllm, tmp_path: Path) -> None:
    flags = ("--levels", "2", "--level-s", "6", "--settle-s", "1", "--thinking", "on")
    budget = ("--extra-body", '{"thinking_token_budget": 20}')
    thought = load_test(vllm, tmp_path, *flags, *budget, "--prompt-tokens", "60", "--output-tokens", "60-90")
    assert len(thought.rows) >= 10
    for row in thought.rows:
        assert row["outcome"] == "ok"
        assert row["reasoning_tokens"] == 19  # the closing tag is the twentieth
        assert row["chunk_kinds"].startswith("r")
        assert row["chunk_kinds"].strip("r").strip("c") == ""
        assert row["first_answer_s"] == row["chunk_s"][row["chunk_kinds"].index("c")]
    first = median(row["chunk_s"][0] - row["sent_s"] for row in thought.rows)
    answered = median(row["first_answer_s"] - row["sent_s"] for row in thought.rows)
    assert answered > first + 19 * 0.001


def test_a_trace_reaches_the_server_when_and_as_it_says(vllm: Vllm, tmp_path: Path) -> None:
    """Twelve seconds of bursts over two processes: every request, its lengths, its time and its place."""
    rng = random.Random(0)
    due = sorted(rng.uniform(0, 12) for _ in range(60))
    wanted = [(at - due[0], rng.randint(40, 200), rng.randint(2, 60)) for at in due]
    trace = tmp_path / "trace.csv"
    trace.write_text("time_s,prompt,output\n" + "".join(f"{t:.3f},{s},{o}\n" for t, s, o in wanted))
    processes = ("--processes", "2", "--master-bind-host", "127.0.0.1")
    run = load_test(vllm, tmp_path / "reports", "--trace", str(trace), "--thinking", "off", *processes)
    rows = sorted(run.rows, key=lambda row: row["user"])
    assert [row["outcome"] for row in rows] == ["ok"] * 60
    assert {row["worker"] for row in rows} == {"0", "1"}
    start = min(row["scheduled_unix_s"] for row in rows)
    for row, (t, s, o) in zip(rows, wanted, strict=True):
        assert row["scheduled_unix_s"] - start == pytest.approx(t, abs=2e-3)
        assert (row["prompt_tokens"], row["output_tokens"]) == (pytest.approx(s, abs=4), o)
        assert 0 <= row["start_unix_s"] + row["sent_s"] - row["scheduled_unix_s"] < 0.1

"""`python -m analysis.workload` on pages of an engine in virtual time whose workload is known."""

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from analysis.workload.__main__ import main
from loadtest.workload.distributions import Distribution
from testing.runs.metrics_pages import PAGE_S, write_pages
from testing.runs.virtual import small_engine


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    files = write_pages(tmp_path_factory.mktemp("pages"), small_engine(), (4, 8), level_s=120.0)
    return [str(path) for path in files]


def answered(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main([*flags, "--format", "json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_workload_of_a_server_is_written_as_a_file(
    pages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts have mean 124 and CV 0.1, answers 96 and 0.6 (`chat_lengths`)."""
    output = tmp_path / "workload.toml"
    assert main(["--metrics", *pages, "--output", str(output), "--slo-ttft-p95-s", "1.5"]) == 0
    said = capsys.readouterr().out
    assert f"--workload {output}" in said
    assert "SIMULATED" in said
    assert "sessions and turns" in said
    text = output.read_text()
    (one,) = tomllib.loads(text)["class"]
    prompt, answer = (Distribution.parse(one[name]) for name in ("prompt_tokens", "output_tokens"))
    assert (prompt.kind, answer.kind) == ("lognormal", "lognormal")
    assert (prompt.mean, prompt.b) == (pytest.approx(124, rel=0.02), pytest.approx(0.1, abs=0.02))
    assert (answer.mean, answer.b) == (pytest.approx(96, rel=0.03), pytest.approx(0.6, rel=0.05))
    assert one["objectives"] == {"ttft_p95_s": 1.5, "tpot_p95_s": 0.1}
    assert (one["weight"], one["turns"], one["think_s"], one["shared_tokens"]) == (1, 1, "0", 0)
    assert "pages of /metrics" in text
    assert "2027" in text  # the date of the pages


def test_rate_and_concurrency_are_those_of_the_server(
    pages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answered(capsys, "--metrics", *pages)
    in_flight, arrivals = answer["concurrency"]["in_flight"], answer["arrivals"]
    assert (in_flight["peak"], in_flight["now"]) == (8, pytest.approx(8, abs=1))
    assert in_flight["mean"] == pytest.approx(6, abs=0.3)
    assert arrivals["requests"] == answer["prompt_tokens"]["requests"]
    assert arrivals["mean_per_s"] == pytest.approx(arrivals["requests"] / (240 - PAGE_S), rel=0.01)
    assert arrivals["peak_per_s"] > 1.2 * arrivals["mean_per_s"]
    assert arrivals["daily_peak_per_s"] is None


def test_copied_pages_need_their_interval(
    pages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = [shutil.copyfile(page, tmp_path / Path(page).name) for page in pages[:40]]
    for copy in copies:
        os.utime(copy, (1.8e9, 1.8e9))
    flags = ["--metrics", *map(str, copies)]
    assert main(flags) == 2
    assert "--interval" in capsys.readouterr().err
    answer = answered(capsys, *flags, "--interval", str(PAGE_S))
    assert answer["times_known"] is False
    assert answer["arrivals"]["peak_unix_s"] is None
    assert answer["arrivals"]["mean_per_s"] == pytest.approx(
        answer["arrivals"]["requests"] / (39 * PAGE_S), rel=0.01
    )


def test_a_restart_loses_nothing_but_what_was_counted_between_two_pages(
    pages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second half of the pages is that of a process that began at 0: the first half once more."""
    twice = [*pages[:30], *pages[:30]]
    files = []
    for number, page in enumerate(twice):
        files.append(tmp_path / f"{number:03}.txt")
        shutil.copyfile(page, files[-1])
        os.utime(files[-1], (1.8e9 + PAGE_S * number,) * 2)
    once = answered(capsys, "--metrics", *pages[:30])["arrivals"]["requests"]
    both = answered(capsys, "--metrics", *map(str, files))["arrivals"]["requests"]
    first_page = next(line for line in Path(pages[0]).read_text().splitlines() if 'reason="length"' in line)
    assert both == 2 * once + float(first_page.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("change", "flags", "code", "words"),
    [
        ("", ["--model", "other"], 2, "has no model other"),
        ("two models", [], 2, "choose one with --model"),
        ("no vllm", [], 2, "is it a page of vLLM"),
        ("garbage", [], 2, "is not what /metrics writes"),
        ("", ["--range", "1h"], 2, "--range and --selector are for --prometheus"),
        ("first two", [], 3, "takes 50"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    pages: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    flags: list[str],
    code: int,
    words: str,
) -> None:
    files = []
    for number, page in enumerate(pages[:2] if change == "first two" else pages[:60:20]):
        text = Path(page).read_text()
        if change == "two models":
            text += 'vllm:num_requests_running{engine="0",model_name="other"} 1.0\n'
        if change == "no vllm":
            text = "up 1\n"
        if change == "garbage":
            text += "vllm:num_requests_running{engine= 1.0\n"
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(text)
        os.utime(files[-1], (1.8e9 + number, 1.8e9 + number))
    assert main(["--metrics", *map(str, files), *flags]) == code
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


def test_a_source_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "either --prometheus URL or --metrics" in capsys.readouterr().err

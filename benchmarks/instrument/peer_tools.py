"""The load generators that `benchmarks peers` compares: how to install, call and read each of them.

Each peer has its own environment with pinned versions.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import UnavailableError, make_environment, program_of
from benchmarks.instrument.client import ANSWER_TOKENS
from testing.processes import LOCUST, free_port
from testing.servers.scripted import SCRIPTED_MODEL
from testing.vllm.environment import VllmUnavailableError, prepare, vllm_home

RAMP_S, LOAD_S = 4.0, 20.0
"""Seconds over which the starts of the streams are spread (if the tool can), and seconds of the load."""
REQUESTS_A_STREAM = 8
"""Requests for each stream, for tools that take a number of requests: they last about LOAD_S."""
PINS = {
    "guidellm": ("guidellm[perf]==0.8.1", "torch==2.13.0"),
    "aiperf": ("aiperf==0.13.0",),
    "genai-bench": ("genai-bench==0.0.5",),
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Quantiles of TTFT and of the gaps between tokens, in seconds."""

    ttft_p50_s: float
    ttft_p99_s: float
    gap_p99_s: float


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load that a tool has to make in one run."""

    url: str
    streams: int
    folder: Path
    """An empty folder for the tool's results."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A load generator: its name, its command for a load, and its results."""

    name: str
    command: Callable[[Load], list[str]]
    figures: Callable[[Path], Figures]
    """Reads the figures that the tool published into the folder of its load."""
    gap: str
    """What the tool's gap figure measures, for the printed table."""
    prepare: Callable[[], object] = lambda: None
    """Makes the tool's environment where it is missing. Raises UnavailableError."""
    environment: Callable[[Path], dict[str, str]] = lambda folder: {}
    """Returns additional environment variables, given the folder of the load."""


def _make_vllm() -> None:
    """Makes the environment of vLLM. Its tiny model has the tokenizer that the other tools need."""
    try:
        prepare()
    except VllmUnavailableError as error:
        raise UnavailableError(str(error)) from error


def make(tool: str) -> None:
    """Makes the environment of a tool in `PINS` where it is missing. Raises UnavailableError."""
    _make_vllm()
    make_environment(tool, PINS[tool])


def program(tool: str) -> str:
    """Returns the path of the tool's program."""
    return program_of(tool, tool)


def _tokenizer() -> str:
    return str(vllm_home() / "model")


def _locust(load: Load, *arguments: str, spawn_rate: float) -> list[str]:
    users = ["-u", str(load.streams), "-r", f"{spawn_rate:g}", "-t", f"{LOAD_S + 3:.0f}s"]
    return [str(LOCUST), *arguments, "--headless", "--only-summary", "--host", load.url, *users]


def _seatcount_flags(load: Load) -> list[str]:
    lengths = ["--output-tokens", str(ANSWER_TOKENS), "--prompt-tokens", "20"]
    return ["--reports-dir", str(load.folder), *lengths, "--settle-s", str(RAMP_S)]


def _seatcount(load: Load) -> list[str]:
    return _locust(load, "-f", "scenarios/chat.py", *_seatcount_flags(load), spawn_rate=load.streams)


def _two_workers(load: Load) -> list[str]:
    port = str(free_port())
    ports = ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]
    return [*_seatcount(load), "--processes", "2", *ports]


def _lockstep(load: Load) -> list[str]:
    return _locust(
        load, "-f", "benchmarks/instrument/lockstep_chat.py", *_seatcount_flags(load), spawn_rate=load.streams
    )


def _seatcount_figures(folder: Path) -> Figures:
    """Computes the quantiles from the request rows, by the definitions of loadtest/record.py."""
    rows = [json.loads(line) for path in folder.glob("*/requests-*.jsonl") for line in path.open()]
    kept = [row for row in rows if row["outcome"] == "ok"]
    ttft = [row["chunk_s"][0] - row["sent_s"] for row in kept]
    gaps = np.concatenate([np.diff(row["chunk_s"]) for row in kept])
    return quantile_figures(ttft, gaps)


def quantile_figures(ttft_s: Any, gap_s: Any) -> Figures:
    p50, p99 = np.percentile(ttft_s, [50, 99])
    return Figures(ttft_p50_s=float(p50), ttft_p99_s=float(p99), gap_p99_s=float(np.percentile(gap_s, 99)))


def _plain(load: Load) -> list[str]:
    return _locust(load, "-f", "benchmarks/instrument/plain_http_user.py", spawn_rate=load.streams / RAMP_S)


def _bare(load: Load) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.instrument.bare_client", "--url", load.url]
    times = ["--streams", str(load.streams), "--ramp-s", str(RAMP_S), "--seconds", str(LOAD_S)]
    return [*command, *times, "--result", str(load.folder / "figures.json")]


def _own_figures(folder: Path) -> Figures:
    return Figures(**_json(folder, "figures.json"))


def _vllm(load: Load) -> list[str]:
    flags = {
        "--backend": "openai-chat",
        "--endpoint": "/v1/chat/completions",
        "--base-url": load.url,
        "--model": SCRIPTED_MODEL,
        "--tokenizer": _tokenizer(),
        "--dataset-name": "random",
        "--random-input-len": 20,
        "--random-output-len": ANSWER_TOKENS,
        "--num-prompts": load.streams * REQUESTS_A_STREAM,
        "--max-concurrency": load.streams,
        "--request-rate": load.streams / 2,  # 10 % above their rate: all are soon busy, out of step
        "--percentile-metrics": "ttft,itl",
        "--metric-percentiles": "50,99",
        "--result-dir": load.folder,
        "--result-filename": "result.json",
    }
    program = str(vllm_home() / "env" / "bin" / "vllm")
    return [program, "bench", "serve", *_words(flags), "--save-result", "--disable-tqdm"]


def _words(flags: dict[str, Any]) -> list[str]:
    return [str(word) for pair in flags.items() for word in pair]


def _vllm_figures(folder: Path) -> Figures:
    result = _json(folder, "result.json")
    return _from_ms(result["p50_ttft_ms"], result["p99_ttft_ms"], result["p99_itl_ms"])


def _from_ms(ttft_p50: float, ttft_p99: float, gap_p99: float) -> Figures:
    return Figures(ttft_p50_s=ttft_p50 / 1e3, ttft_p99_s=ttft_p99 / 1e3, gap_p99_s=gap_p99 / 1e3)


def _guidellm(load: Load) -> list[str]:
    flags = {
        "--backend": f"kind=openai_http,target={load.url},model={SCRIPTED_MODEL}",
        "--profile": f"kind=concurrent,streams={load.streams},rampup_duration={RAMP_S}",
        "--constraint": f"kind=max_duration,seconds={LOAD_S}",
        "--tokenizer": f"kind=hf_auto,model={_tokenizer()}",
        "--data": f"kind=synthetic_text,prompt_tokens=20,output_tokens={ANSWER_TOKENS}",
        "--output": f"kind=json,path={load.folder / 'result.json'}",
    }
    return [program("guidellm"), "run", *_words(flags), "--disable-console"]


def _guidellm_figures(folder: Path) -> Figures:
    metrics = _json(folder, "result.json")["benchmarks"][0]["metrics"]
    ttft, itl = (
        metrics[name]["successful"]["percentiles"]
        for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    return _from_ms(ttft["p50"], ttft["p99"], itl["p99"])


def _aiperf(load: Load) -> list[str]:
    flags = {
        "--model": SCRIPTED_MODEL,
        "--url": load.url,
        "--endpoint-type": "chat",
        "--concurrency": load.streams,
        "--concurrency-ramp-duration": RAMP_S,
        "--benchmark-duration": LOAD_S,
        "--benchmark-grace-period": 10,
        "--tokenizer": _tokenizer(),
        "--isl": 20,
        "--osl": ANSWER_TOKENS,
        "--ui": "none",
        "--export-level": "summary",
        "--artifact-dir": load.folder,
    }
    switches = ["--streaming", "--use-server-token-count", "--no-server-metrics", "--no-gpu-telemetry"]
    return [program("aiperf"), "profile", *_words(flags), *switches]


def _aiperf_figures(folder: Path) -> Figures:
    result = _json(folder, "profile_export_aiperf.json")
    ttft = result["time_to_first_token"]
    return _from_ms(ttft["p50"], ttft["p99"], result["inter_chunk_latency"]["p99"])


def _genai_bench(load: Load) -> list[str]:
    flags = {
        "--api-backend": "vllm",
        "--api-base": load.url,
        "--api-key": "EMPTY",
        "--api-model-name": SCRIPTED_MODEL,
        "--model-tokenizer": _tokenizer(),
        "--task": "text-to-text",
        "--num-concurrency": load.streams,
        "--spawn-rate": round(load.streams / RAMP_S),
        "--traffic-scenario": f"D(20,{ANSWER_TOKENS})",
        "--max-time-per-run": 1,  # minutes; 1 is the smallest value
        "--max-requests-per-run": load.streams * REQUESTS_A_STREAM,
        "--experiment-base-dir": load.folder,
        "--experiment-folder-name": "result",
        "--log-dir": load.folder,
    }
    return [program("genai-bench"), "benchmark", *_words(flags)]


def _genai_bench_figures(folder: Path) -> Figures:
    stats = _json(folder, "result/D*.json")["aggregated_metrics"]["stats"]
    return Figures(
        ttft_p50_s=stats["ttft"]["p50"], ttft_p99_s=stats["ttft"]["p99"], gap_p99_s=stats["tpot"]["p99"]
    )


def _json(folder: Path, pattern: str) -> Any:
    path = next(folder.glob(pattern), None)
    if path is None:
        raise UnavailableError("It published no result.")
    return json.loads(path.read_text())


def _offline(_folder: Path) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1"}


SEATCOUNT = Tool(name="Seatcount", command=_seatcount, figures=_seatcount_figures, gap="p99 of all gaps")
TWO_WORKERS = Tool(
    name="Seatcount, two workers", command=_two_workers, figures=_seatcount_figures, gap="p99 of all gaps"
)
LOCKSTEP = Tool(
    name="Seatcount, lockstep", command=_lockstep, figures=_seatcount_figures, gap="p99 of all gaps"
)
BARE = Tool(name="bare asyncio protocol", command=_bare, figures=_own_figures, gap="p99 of all gaps")
PEERS = (
    Tool(
        name="plain Locust HttpUser",
        command=_plain,
        figures=_own_figures,
        gap="p99 of all gaps that it noted (Locust itself publishes neither TTFT nor gaps)",
        environment=lambda folder: {"PLAIN_RESULT": str(folder / "figures.json")},
    ),
    Tool(
        name="vllm bench serve 0.32.0",
        command=_vllm,
        figures=_vllm_figures,
        gap="p99 ITL, all gaps, the one from role chunk to first token among them",
        prepare=_make_vllm,
        environment=_offline,
    ),
    Tool(
        name="guidellm 0.8.1",
        command=_guidellm,
        figures=_guidellm_figures,
        gap="p99 of each request's mean ITL",
        prepare=lambda: make("guidellm"),
        environment=_offline,
    ),
    Tool(
        name="aiperf 0.13.0",
        command=_aiperf,
        figures=_aiperf_figures,
        gap="p99 inter-chunk latency, all gaps",
        prepare=lambda: make("aiperf"),
        # Offline, aiperf looks only into its hub cache. So it stays online, with a hub that does not exist.
        environment=lambda _: {"HF_ENDPOINT": "http://127.0.0.1:9"},
    ),
    Tool(
        name="genai-bench 0.0.5",
        command=_genai_bench,
        figures=_genai_bench_figures,
        gap="p99 of each request's TPOT",
        prepare=lambda: make("genai-bench"),
        environment=_offline,
    ),
)

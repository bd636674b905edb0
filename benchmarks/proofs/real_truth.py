"""Compares the answers with the truth on a real vLLM (CPU build).

The truth of a deployment is measured: the two levels of users beside the memory wall are held until the
wall's standard error is at most a quarter of a user, or for 10,000 requests each. Preemptions and blocked
time come from the server's counters and gauges, and the wall lies where the first of them crosses its limit
("True maximum" in docs/method.md). Two answers are compared with it: that of scenarios/find_capacity.py,
which does not know the truth, and that of guidellm's goodput search.

Parts in benchmarks/data/real_truth.json are not measured again: with the whole file the benchmark takes a
second, without it three hours. An interrupted benchmark continues; its runs are in build/real_truth.
"""

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from analysis.evidence.lengths import length_pairs_of
from analysis.memory.block_distribution import Occupancy, holders_of
from analysis.memory.formula_shift import FormulaShift, kv_wall_users
from analysis.reading.runs import Run, find_runs, read_run
from benchmarks.instrument import peer_tools
from benchmarks.proofs.kept import DATA
from loadtest.workload.distributions import Distribution
from loadtest.workload.prompts import sentence
from testing.processes import ROOT
from testing.truth.counts import LIMITS, Counts, Json, lower, wall_between
from testing.vllm.environment import VLLM, vllm_home
from testing.vllm.server import BLOCK_SIZE, TINY_MODEL, start_vllm

_KEPT = DATA / "real_truth.json"
_WORKLOADS = DATA / "workloads"
_FOLDER = Path("build/real_truth").resolve()

_SLOTS, CONTEXT = 64, 1024
"""max_num_seqs, above the users of every level, so that requests wait only for blocks; and max_model_len,
small enough for the smallest pool."""
STREAM_INTERVAL = 10
"""Tokens in each chunk. With one token the server's Python front end would be the bottleneck on two cores,
and requests that wait there hold no blocks."""
LIGHT = 4
"""Users of the first level, at light load."""
WANTED_SE = 0.25
"""Standard error of x*, in users, at which a deployment is finished."""
REQUESTS = 10_000
"""Requests at each of the two levels after which a deployment is finished, whatever the error."""
_ROUNDS = 16
"""Largest number of rounds of a deployment. A round is a run of one or two levels."""
_LEVEL_S, _SETTLE_S, _SAMPLE_S = 55.0, 5.0, 0.25
_BATCHES = 20
"""Batches (of BATCH_S) that each of the two levels needs before its standard error is trusted."""
_BUDGET_S = 120.0
"""Budget of the search, in seconds."""
COMMAND_S = 600.0
"""Seconds after which a command is ended as hanging."""
REFUSED = 3
"""Exit code of analysis.capacity when it refuses to answer."""


@dataclass(frozen=True, kw_only=True)
class RealDeployment:
    """A server's pool and the traffic of its users. Distributions are written as for `--prompt-tokens`."""

    name: str
    blocks: int
    prompt: str = "1"
    output: str = "1"
    turns: int = 1
    think_s: str = "0"
    prefix_words: int = 0
    """Words of the system prompt that all requests share, about one token each. `prompt` includes it."""
    classes: bool = False
    """Whether the traffic is that of classes of users, in the workload file with this name."""

    @property
    def load(self) -> list[str]:
        if self.classes:
            return [
                "--workload",
                str(_WORKLOADS / f"{self.name.replace(' ', '_')}.toml"),
                "--thinking",
                "off",
            ]
        lengths = ["--prompt-tokens", self.prompt, "--output-tokens", self.output]
        return [*lengths, "--turns", str(self.turns), "--think-s", self.think_s, "--thinking", "off"]


_DEPLOYMENTS = (
    RealDeployment(name="short prompts", blocks=64, prompt="lognormal:60,0.5", output="lognormal:64,0.6"),
    RealDeployment(name="long prompts", blocks=128, prompt="lognormal:250,0.4", output="lognormal:40,0.5"),
    RealDeployment(name="heavy tails", blocks=96, prompt="lognormal:80,0.8", output="lognormal:64,1"),
    RealDeployment(
        name="shared prefix", blocks=64, prompt="200-280", output="lognormal:64,0.5", prefix_words=150
    ),
    RealDeployment(
        name="conversations", blocks=96, prompt="lognormal:50,0.5", output="lognormal:48,0.6", turns=3
    ),
    RealDeployment(
        name="thinking users",
        blocks=80,
        prompt="lognormal:70,0.5",
        output="lognormal:64,0.6",
        turns=2,
        think_s="exp:0.2",
    ),
    RealDeployment(name="agents", blocks=128, classes=True),
    RealDeployment(name="documents", blocks=160, classes=True),
    RealDeployment(name="sessions", blocks=96, classes=True),
    RealDeployment(name="chat and documents", blocks=128, classes=True),
    RealDeployment(name="chat and agents", blocks=112, classes=True),
    RealDeployment(name="mix", blocks=144, classes=True),
)


def main() -> None:
    """Measures the parts that are missing, of all deployments or of `--only=NAME`, and prints the table of
    docs/benchmarks.md."""
    kept: Json = json.loads(_KEPT.read_text()) if _KEPT.exists() else {}
    asked = [word.removeprefix("--only=") for word in sys.argv if word.startswith("--only=")]
    for deployment in _DEPLOYMENTS:
        if not asked or deployment.name in asked:
            _complete(deployment, kept)
    _print_table(kept)


def _complete(deployment: RealDeployment, kept: Json) -> None:
    """Measures the missing parts of a deployment and writes each to the data file when it is ready."""
    found = kept.setdefault(deployment.name, {})
    steps = [step for step in STEPS if step not in found and (step != GUIDELLM or not deployment.classes)]
    if not steps:
        return
    folder = _FOLDER / deployment.name
    folder.mkdir(parents=True, exist_ok=True)
    with _server(deployment, folder) as url:
        for step in steps:
            started = time.monotonic()
            found[step] = STEPS[step](deployment, url, folder, found) | _circumstances()
            _KEPT.parent.mkdir(exist_ok=True)
            _KEPT.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"  {deployment.name}, {step}: {time.monotonic() - started:.0f} s", flush=True)


def _circumstances() -> Json:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "vllm": VLLM,
        "python": platform.python_version(),
    }


@contextmanager
def _server(deployment: RealDeployment, folder: Path) -> Iterator[str]:
    """Starts a vLLM and yields its address. Its chat template contains the shared prefix."""
    extra = ["--max-model-len", str(CONTEXT), "--stream-interval", str(STREAM_INTERVAL)]
    extra.append("--enable-prompt-tokens-details")
    if deployment.prefix_words:
        template = folder / "template.jinja"
        said = sentence(random.Random(deployment.name), title="system", words=deployment.prefix_words)
        original = (vllm_home() / "model" / "chat_template.jinja").read_text()
        template.write_text(f"<|im_start|>system\n{said}<|im_end|>\n{original}")
        extra += ["--chat-template", str(template)]
    with start_vllm(
        num_gpu_blocks_override=deployment.blocks,
        max_num_seqs=_SLOTS,
        extra=extra,
        log=folder / "vllm.log",
    ) as server:
        yield server.url


# --- The truth


def _truth(deployment: RealDeployment, url: str, folder: Path, _: Json) -> Json:
    """Measures levels in rounds until two neighbours have the wall between them and it is known well enough.

    Raises RuntimeError if no two neighbours do after the last round.
    """
    folder = folder / "truth"
    while True:
        rounds, seen = len(_rounds(folder)), _counts(folder)
        low = lower(seen)
        if rounds == _ROUNDS or (low is not None and _enough(low, seen)):
            break
        levels = _next_levels(seen) if seen else _rough(deployment, url, folder.with_name("rough"))
        _hold(deployment, url, folder / str(rounds), levels, seed=rounds)
    if low is None:
        raise RuntimeError(f"{deployment.name}: no two neighbouring levels have the wall between them.")
    x, se, binding = wall_between(low, seen)
    return {
        "users": low,
        "x": round(x, 2),
        "x_se": round(se, 2),
        "binding": binding,
        "seeds": rounds,
        "levels": [seen[users].told(users) for users in sorted(seen)],
        "ttft_p95_s": _ttft_p95_s(folder, low),
    }


def _rough(deployment: RealDeployment, url: str, folder: Path) -> tuple[int, int]:
    """Returns the first two levels, beside the wall that the memory formula gives for a light load."""
    _load(url, folder, "chat", *deployment.load, "--levels", str(LIGHT), "--level-s", "15")
    (found,) = find_runs(folder)
    run = read_run(found)
    pairs = length_pairs_of([run], block_tokens=BLOCK_SIZE)
    rows = run.requests
    held_s = float(rows.end_unix_s.max() - rows.start_unix_s.min())
    active = min(float(np.sum(rows.end_s - rows.sent_s)) / (LIGHT * held_s), 1.0)
    blocks = deployment.blocks - 1 - pairs.shared_prefix // BLOCK_SIZE
    holders = [
        replace(one, active=lambda _: active)
        for one in holders_of(pairs, block_tokens=BLOCK_SIZE, thinking=None)
    ]
    low = int(kv_wall_users(Occupancy(holders, blocks), LIMITS, shift=FormulaShift(), start=LIGHT))
    return low, low + 1


def _hold(deployment: RealDeployment, url: str, folder: Path, levels: Sequence[int], *, seed: int) -> None:
    times = ["--level-s", f"{_LEVEL_S:g}", "--settle-s", f"{_SETTLE_S:g}", "--sample-s", f"{_SAMPLE_S:g}"]
    asked = ["--levels", ",".join(map(str, levels)), "--seed", str(seed)]
    part = folder.with_name("part")
    _load(url, part, "chat", *deployment.load, *asked, *times)
    part.rename(folder)


def _counts(folder: Path) -> dict[int, Counts]:
    """Adds up the counts of all rounds so far, by users."""
    seen: dict[int, Counts] = {}
    for run in _runs(folder):
        for begin, end, users in run.info.schedule:
            counts = Counts.of(run, begin + _SETTLE_S, end)
            seen[users] = seen[users].with_more(counts) if users in seen else counts
    return seen


def _rounds(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*"))


def _runs(folder: Path) -> Iterator[Run]:
    for part in _rounds(folder):
        (found,) = find_runs(part)
        yield read_run(found)


def _next_levels(seen: dict[int, Counts]) -> tuple[int, ...]:
    """Returns the two levels beside the wall, or one level nearer to it (ln F rises by about 1 per user)."""
    low = lower(seen)
    if low is not None:
        return low, low + 1
    broken = min((users for users, counts in seen.items() if not counts.holds), default=None)
    if broken is None:
        highest = max(seen)
        return (highest + _steps(seen[highest]),)
    holding = max((users for users in seen if users < broken), default=None)
    return (max(broken - _steps(seen[broken]), 1) if holding is None else (holding + broken) // 2,)


def _steps(counts: Counts) -> int:
    return max(round(abs(float(counts.margins().max()))), 1)


def _enough(low: int, seen: dict[int, Counts]) -> bool:
    beside = seen[low], seen[low + 1]
    if min(len(counts.finished) for counts in beside) < _BATCHES:
        return False
    return (
        wall_between(low, seen)[1] <= WANTED_SE or min(counts.finished.sum() for counts in beside) >= REQUESTS
    )


def _ttft_p95_s(folder: Path, users: int) -> float:
    """Returns the p95 of TTFT at the level of `users`, in seconds, over all rounds."""
    found = []
    for run in _runs(folder):
        rows = run.requests
        for begin, end, held in run.info.schedule:
            inside = (rows.start_unix_s > begin + _SETTLE_S) & (rows.end_unix_s < end) & (held == users)
            found.append((rows.first_chunk_s - rows.sent_s)[inside])
    return round(float(np.quantile(np.concatenate(found), 0.95)), 4)


# --- The answers


def _ours(deployment: RealDeployment, url: str, folder: Path, _: Json) -> Json:
    """Runs the search as a user would and returns its answer; if it refuses, the answer has its reasons."""
    folder = folder / "search"
    started = time.monotonic()
    _load(url, folder, "find_capacity", *deployment.load, *_objectives(), "--budget-s", f"{_BUDGET_S:g}")
    took_s = time.monotonic() - started
    _run(
        [sys.executable, "-m", "analysis.capacity", str(folder), *_objectives()],
        accepted=(0, REFUSED),
    )
    (answer,) = json.loads((folder / "capacity.json").read_text())["models"]
    names = ("estimate", "estimate_x", "interval", "interval_x", "max_users", "binding", "reasons")
    return {name: answer[name] for name in names} | {"seconds": round(took_s)}


def _objectives() -> list[str]:
    return ["--slo-ttft-p95-s", f"{LIMITS.ttft_p95_s:g}", "--slo-tpot-p95-s", f"{LIMITS.tpot_p95_s:g}"]


def _load(url: str, reports: Path, scenario: str, *flags: str) -> None:
    """Runs a load test as a user would. First deletes `reports`, which an interrupted run may have left."""
    shutil.rmtree(reports, ignore_errors=True)
    locust = str(Path(sys.executable).with_name("locust"))
    _run(
        [
            locust,
            "-f",
            f"scenarios/{scenario}.py",
            "--headless",
            "--host",
            url,
            "--reports-dir",
            str(reports),
            *flags,
        ]
    )


def _run(command: Sequence[str], *, accepted: Sequence[int] = (0,), **more: str) -> None:
    """Runs a command with `more` added to its environment. Raises RuntimeError with its error output."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LOADTEST_")} | more
    done = subprocess.run(
        command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    if done.returncode not in accepted:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")


GUIDELLM = "guidellm"
PROBE_S, CONVERSATIONS = 15, 2000
"""Seconds of a guidellm probe; and lines of its data file, more than a probe can send."""


def _guidellm(deployment: RealDeployment, url: str, folder: Path, found: Json) -> Json:
    """Runs guidellm's search for the most streams at which 95 % of requests meet a TTFT objective.

    guidellm does not measure memory, so it finds the wall only by a latency. It gets the most helpful
    objective, twice the p95 TTFT at N*, although a user would not know N*.
    """
    peer_tools.make(GUIDELLM)
    folder = folder / GUIDELLM
    folder.mkdir(exist_ok=True)
    result = folder / "result.json"
    asked = _asked(deployment, url, folder / "conversations.jsonl")
    ttft_ms = 2000 * found["truth"]["ttft_p95_s"]
    thinking_off = {"body": {"chat_template_kwargs": {"enable_thinking": False}}}
    backend = {"kind": "openai_http", "target": url, "model": TINY_MODEL, "extras": thinking_off}
    flags = {
        "--backend": json.dumps(backend),
        "--profile": f"kind=goodput,max_streams={_SLOTS}",
        "--metrics": json.dumps({"kind": "generative", "slo": {"ttft_ms": ttft_ms}}),
        "--constraint": f"kind=max_duration,seconds={PROBE_S}",
        "--tokenizer": f"kind=hf_auto,model={vllm_home() / 'model'}",
        "--data": f"kind=json_file,path={asked}",
        "--output": f"kind=json,path={result}",
    }
    words = [str(word) for pair in flags.items() for word in pair]
    started = time.monotonic()
    _run([peer_tools.program(GUIDELLM), "run", *words, "--disable-console"], HF_HUB_OFFLINE="1")
    took_s = time.monotonic() - started
    (conclusion,) = json.loads(result.read_text())["conclusions"]
    return {
        "version": peer_tools.PINS[GUIDELLM][0],
        "users": conclusion["best_passing_streams"],
        "why": conclusion["stop_reason"],
        "ttft_slo_ms": round(ttft_ms),
        "probes": [[one["streams"], round(one["attainment"], 3)] for one in conclusion["probes"]],
        "seconds": round(took_s),
    }


def _asked(deployment: RealDeployment, url: str, path: Path) -> Path:
    """Writes conversations with the deployment's lengths for guidellm: one a line, columns for each turn."""
    rng = random.Random(deployment.name)
    prompt, output, think = (
        Distribution.parse(text) for text in (deployment.prompt, deployment.output, deployment.think_s)
    )
    template = _template_tokens(url)
    with path.open("w") as file:
        for _ in range(CONVERSATIONS):
            line: Json = {}
            for turn in range(deployment.turns):
                words = max(1, min(prompt.draw_count(rng), CONTEXT // 2) - template)
                line[f"prompt_{turn}"] = sentence(rng, title="time", words=words)
                line[f"output_tokens_count_{turn}"] = min(output.draw_count(rng), CONTEXT // 4)
                if deployment.think_s != "0":
                    line[f"requeue_delay_{turn}"] = think.draw(rng)
            file.write(json.dumps(line) + "\n")
    return path


def _template_tokens(url: str) -> int:
    """Returns the prompt tokens that the server counts in addition to the words (one token each)."""
    body = {
        "model": TINY_MODEL,
        "messages": [{"role": "user", "content": "time"}],
        "max_tokens": 1,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return int(json.loads(answer.read())["usage"]["prompt_tokens"]) - 1


STEPS: dict[str, Callable[[RealDeployment, str, Path, Json], Json]] = {
    "truth": _truth,
    "ours": _ours,
    "guidellm": _guidellm,
}


# --- The table


def _print_table(kept: Json) -> None:
    print("| deployment | N* | x* | binds | requests a level | search | interval | in | guidellm | in |")
    print("|---|--:|--:|---|--:|--:|--:|--:|--:|--:|")
    for name, found in kept.items():
        truth, ours = found["truth"], found["ours"]
        theirs = found.get("guidellm", {"users": None, "seconds": None})
        close = [
            one["requests"] for one in truth["levels"] if one["users"] in (truth["users"], truth["users"] + 1)
        ]
        cells = [
            name,
            truth["users"],
            f"{truth['x']:.2f} ± {truth['x_se']:.2f}",
            truth["binding"],
            f"{min(close):,}",
            _told(ours["estimate"], truth["users"]),
            "-" if ours["interval_x"] is None else _range(*ours["interval_x"]),
            f"{ours['seconds']} s",
            _told(theirs["users"], truth["users"]) if theirs["seconds"] else "not run",
            f"{theirs['seconds']} s" if theirs["seconds"] else "",
        ]
        print(f"| {' | '.join(map(str, cells))} |")


def _told(answer: int | None, users: int) -> str:
    if answer is None:
        return "no answer"
    return f"{answer}{'' if _near(answer, users) else ' (off)'}"


def _range(low: float, high: float | None) -> str:
    return f"at least {low:.0f}" if high is None else f"{low:.1f} to {high:.1f}"


def _near(answer: int, users: int) -> bool:
    """Whether the answer is within one user or 5 % of the truth."""
    return abs(answer - users) <= max(1.0, 0.05 * users)

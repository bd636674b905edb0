"""Traffic as people have it: their own prompts, conversations, think time."""

import json
from pathlib import Path

from testing.field.case import Judged, case, judged, unless
from testing.field.commands import analyse_run, command, user_load
from testing.field.deployment import TRAFFIC
from testing.load_tests import two_processes
from testing.processes import gateway, simulator

_STEADY = {**TRAFFIC, "levels": "8", "level_s": "5"}
RECORDS = 60


def _own_prompts(folder: Path) -> Path:
    """Writes prompts of different lengths, so that the prompt tokens of a row tell its record."""
    path = folder / "prompts.jsonl"
    lines = []
    for number in range(RECORDS):
        content = " ".join(f"word{number}" for _ in range(5 + number))
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 4}))
    path.write_text("\n".join(lines) + "\n")
    return path


def _repeats(folder: Path, url: str, *flags: str) -> tuple[int, int, str]:
    """Returns how many requests were sent, and how many of the first 50 repeat a prompt."""
    folder.mkdir(exist_ok=True)
    run = user_load(folder, url)(*flags, **_STEADY, prompts=str(_own_prompts(folder)))
    rows = sorted(run.rows(), key=lambda row: row["start_unix_s"])
    first = [row["prompt_tokens"] for row in rows][:50]
    return len(rows), len(first) - len(set(first)), run.said


@case("a file of 60 own prompts, 8 users, one process and two")
def own_prompts(folder: Path) -> Judged:
    with simulator("--enable-prompt-tokens-details") as url:
        sent, repeats, said = _repeats(folder / "one", url)
    with simulator("--enable-prompt-tokens-details") as url:
        sent_by_two, repeats_of_two, _ = _repeats(folder / "two", url, *two_processes())
    return judged(
        "no prompt repeats before the file is used up, and that it is used up is said",
        f"{repeats} repeats among the first 50 of {sent}; two processes: {repeats_of_two} of {sent_by_two}",
        unless(sent > RECORDS and sent_by_two > 50, "too few requests to tell"),
        repeats > 0 and "repeats",
        repeats_of_two > 0 and "repeats with two processes",
        unless(
            "prompts" in said and ("used up" in said or "again" in said), "that it is used up is not said"
        ),
    )


@case("conversations with think time, whose histories are evicted")
def evicted_histories(folder: Path) -> Judged:
    changes = {**TRAFFIC, "levels": "10,30,60", "level_s": "10", "turns": "6", "think_s": "exp:1"}
    with simulator("--num-gpu-blocks-override", "301", "--enable-prompt-tokens-details") as url:
        run = user_load(folder, url)(**changes)
    answer = analyse_run(folder)
    twin = command("analysis.twin", str(run.folder), "--users", "20", timeout_s=120)
    return judged(
        "the prefix cache is a note, not the limit; the twin works",
        f"{answer.brief}; twin exit {twin.returncode}",
        unless(bool(answer.model) and not answer.model["refused"], "no answer"),
        answer.model.get("binding") == "prefix_cache" and "limited by the prefix cache",
        unless(answer.says("histories") or answer.says("prefix cache"), "the eviction is not noted"),
        "RuntimeWarning" in twin.stdout and "the twin warns",
        unless(twin.returncode in (0, 3), (twin.stdout.strip().splitlines() or [""])[-1]),
    )


@case("a think time of 20 s, two turns, levels of 30 s")
def long_think_time(folder: Path) -> Judged:
    with simulator() as url:
        run = user_load(folder, url)("-t", "4s", levels="2,4", level_s="30", think_s="20", turns="2")
    return judged(
        "longer levels, or a sentence",
        f"exit {run.code}",
        unless("think" in run.said, "nothing is said of the think time"),
    )


@case("so few requests that the objective's own percentile is not known")
def percentile_not_known(folder: Path) -> Judged:
    changes = {**TRAFFIC, "levels": "2,4,8", "level_s": "5", "slo_ttft_p95_s": "0.8"}
    with simulator() as server, gateway(server, delay_s=0.2, delay_slots=1) as url:
        user_load(folder, url)(**changes)
    answer = analyse_run(folder)
    levels = answer.model.get("levels", [])
    shares = [level.get("ttft_in_time") or level.get("in_time") for level in levels]
    return judged(
        "the share in time with its bounds at every level",
        f"{answer.brief}; shares {shares}",
        unless(answer.says("in time"), "no share in time"),
        unless(bool(shares) and all(shares), "not in capacity.json"),
    )

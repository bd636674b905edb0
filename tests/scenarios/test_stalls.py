"""Long prompts of some users hold up the answers of others, over real sockets."""

import json
from pathlib import Path

from analysis.cli import stored_slo
from analysis.evidence.evidence import gather_evidence
from analysis.reading.runs import find_runs, read_run
from testing.load_tests import RunLocust
from testing.processes import simulator

STALL_S = 0.15
"""A step of 2,048 prompt tokens takes about 0.25 s on the simulated card, one without a prompt 0.016 s."""


def prompts_file(path: Path) -> Path:
    """Short questions, and every eleventh with a text of some 4,000 tokens."""
    lines = []
    for number in range(64):
        words = 1500 if number % 11 == 0 else 40
        content = f"{number} " + " ".join(f"w{word}" for word in range(words))
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_answers_stand_still_for_the_long_prompts_of_others(run_locust: RunLocust, tmp_path: Path) -> None:
    prompts = str(prompts_file(tmp_path / "prompts.jsonl"))
    with simulator("--no-enable-prefix-caching") as url:
        run = run_locust(url, prompts=prompts, output_tokens="30", level_s="6", slo_stall_p95_s=str(STALL_S))
    assert run.code == 0, run.said
    (found,) = find_runs(run.reports)
    read = read_run(found)
    levels = gather_evidence([read], slo=stored_slo(read.info)).levels
    alone, crowd = levels[0].requests, levels[-1].requests
    assert alone.stall_miss.n > 5
    assert alone.stall_miss.misses == 0  # one's own prompt is no stall
    assert crowd.stall_miss.fraction > 0.08
    assert crowd.tpot_miss.misses == 0  # as if nothing were wrong: the mean of an answer hides it
    assert crowd.tpot_s.p50 is not None
    assert crowd.tpot_s.p50 < STALL_S / 4
    rows = read.requests
    long, stalled = rows.prompt_tokens > 1000, rows.longest_gap_s > STALL_S
    assert stalled[~long].mean() > stalled[long].mean()  # the cause suffers less

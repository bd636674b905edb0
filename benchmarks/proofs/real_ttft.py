"""Compares searches whose limit is the time to first token with a sweep by the same client, on a real vLLM.

The objective is the p95 of TTFT at AIM users, as a first look finds it. The sweep holds levels around AIM
before and after the searches, and its wall lies where 5 % of its requests are late. An answer agrees if it is
within one user or 10 %. Where it does not, the width of the curve tells why: from how many users to how many
the share of late requests goes from half the limit to twice the limit.

Results in benchmarks/data/real_ttft.json are not measured again; delete the file to do so (15 minutes).
"""

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.proofs.kept import DATA
from testing.truth.counts import Json
from testing.vllm.commands import Measured, capacity, load_test
from testing.vllm.environment import VLLM
from testing.vllm.server import Vllm, start_vllm

_KEPT = DATA / "real_ttft.json"
AIM = 12
LEVELS = (8, 10, 12, 14, 16)
LEVEL_S, _SETTLE_S = 25, 5
REPETITIONS = 5
_BUDGET_S = 90
LATE_LIMIT = 0.05
"""Share of requests that may be late: the objective is a p95."""
_LOAD = ("--prompt-tokens", "lognormal:500,0.4", "--output-tokens", "lognormal:10,0.5", "--thinking", "off")
_LOOSE = ("--slo-tpot-p95-s", "1", "--slo-preempted-fraction", "0.999", "--slo-kv-blocked-fraction", "0.999")


def main() -> None:
    """Measures what is missing and prints the table of docs/benchmarks.md."""
    if not _KEPT.exists():
        _KEPT.parent.mkdir(exist_ok=True)
        _KEPT.write_text(json.dumps(_measured(), indent=1) + "\n")
    _print(json.loads(_KEPT.read_text()))


def _measured() -> Json:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with start_vllm(num_gpu_blocks_override=512, max_num_seqs=64, log=folder / "vllm.log") as server:
            look = load_test(server, folder / "look", *_LOAD, *_times(), "--levels", str(AIM))
            objective_s = float(np.quantile(_ttft_s(look, AIM), 1.0 - LATE_LIMIT))
            before = _sweep(server, folder / "before", seed=1)
            answers = [
                _search(server, folder / f"search{number}", objective_s, seed=number)
                for number in range(REPETITIONS)
            ]
            after = _sweep(server, folder / "after", seed=2)
        late = [[users, *_late((before, after), users, objective_s)] for users in LEVELS]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "vllm": VLLM,
        "objective_s": round(objective_s, 4),
        "late": late,
        "answers": answers,
    }


def _times() -> tuple[str, ...]:
    return ("--level-s", str(LEVEL_S), "--settle-s", str(_SETTLE_S))


def _sweep(server: Vllm, reports: Path, *, seed: int) -> Measured:
    levels = ",".join(map(str, LEVELS))
    return load_test(
        server, reports, *_LOAD, *_times(), *_LOOSE, "--levels", levels, "--seed", str(seed),
        "--slo-ttft-p95-s", "60",
    )  # fmt: skip


def _search(server: Vllm, reports: Path, objective_s: float, *, seed: int) -> Json:
    objectives = ("--slo-ttft-p95-s", f"{objective_s:.4f}", *_LOOSE)
    budget = ("--budget-s", str(_BUDGET_S), "--seed", str(10 + seed))
    load_test(server, reports, *_LOAD, *objectives, *budget, scenario="find_capacity")
    answer = capacity(reports, *objectives)
    return {name: answer[name] for name in ("estimate_x", "interval_x", "max_users", "binding", "reasons")}


def _ttft_s(measured: Measured, users: int) -> np.ndarray:
    """Returns the TTFT of the requests of one level that began after it had settled, in seconds. The last one
    counts where a level was held again."""
    info = json.loads((measured.folder / "run.json").read_text())
    begin = max(start for start, _, held in info["schedule"] if held == users)
    return np.array(
        [
            row["chunk_s"][0] - row["sent_s"]
            for row in measured.rows
            if row["level_users"] == users and row["start_unix_s"] > begin + _SETTLE_S and row["chunk_s"]
        ]
    )


def _late(sweeps: Sequence[Measured], users: int, objective_s: float) -> tuple[float, int]:
    """Returns the share of requests later than the objective at one level, and how many requests it had."""
    ttft_s = np.concatenate([_ttft_s(measured, users) for measured in sweeps])
    return round(float(np.mean(ttft_s > objective_s)), 4), len(ttft_s)


def _crossing(late: Sequence[Sequence[float]], share: float) -> float:
    """Returns the users at which a share of the requests is late: straight lines between the levels."""
    users, shares = (np.array(column, dtype=float) for column in list(zip(*late, strict=True))[:2])
    rising = np.maximum.accumulate(shares)
    return float(np.interp(share, rising + 1e-9 * np.arange(len(rising)), users))


def _print(kept: Json) -> None:
    wall = _crossing(kept["late"], LATE_LIMIT)
    low, high = (_crossing(kept["late"], factor * LATE_LIMIT) for factor in (0.5, 2.0))
    print(f"objective {1e3 * kept['objective_s']:.0f} ms, vLLM {kept['vllm']}, {kept['date']}")
    print("| users | late | requests |\n|--:|--:|--:|")
    for users, late, requests in kept["late"]:
        print(f"| {users} | {100 * late:.1f} % | {requests:,} |")
    print(f"sweep: {wall:.1f} users; half as many are late at {low:.1f}, twice as many at {high:.1f}")
    print("| search | estimate | interval | agrees |\n|--:|--:|--:|---|")
    agree = 0
    for number, answer in enumerate(kept["answers"], start=1):
        x = answer["estimate_x"]
        near = x is not None and answer["binding"] == "ttft" and abs(x - wall) <= max(1.0, 0.1 * wall)
        agree += near
        told = "no answer" if x is None else f"{x:.1f}, {answer['binding']}"
        ends = answer["interval_x"] or (None, None)
        interval = " to ".join("-" if end is None else f"{end:.1f}" for end in ends)
        print(f"| {number} | {told} | {interval} | {'yes' if near else 'no'} |")
    print(f"{agree} of {len(kept['answers'])} agree within one user or 10 %")

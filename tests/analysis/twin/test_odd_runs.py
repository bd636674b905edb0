"""Runs as nobody plans them: the twin answers, or refuses with one true sentence."""

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.twin import __main__ as twin
from analysis.twin import calibration, maximum, predictions, source
from loadtest.record import SERVER_FILE, Outcome, RequestRecord, ServerSample, encode_line
from testing.runs.virtual import Plan, small_engine, write_run

PLAIN_RUN: dict[str, Any] = {
    "levels": (2, 4, 6),
    "level_s": 20.0,
    "think_s": 0.0,
    "prompt": 124,
    "output": 40,
    "output_cv": 0.6,
    "stamp_s": 0.0,
    "without_usage": 0.0,
    "failed": 0.0,
    "turns": 1,
    "away": False,
    "hold_out": False,
}
ODDITIES: list[tuple[str, Any]] = [
    ("levels", (1,)),
    ("levels", (6,)),
    ("levels", (1, 2)),
    ("level_s", 4.0),
    ("think_s", 0.2),
    ("prompt", 8),
    ("output", 1),
    ("output", 2),
    ("output", 12),
    ("output_cv", 0.0),
    ("stamp_s", 0.004),
    ("stamp_s", 0.1),
    ("stamp_s", 5.0),
    ("without_usage", 0.3),
    ("without_usage", 1.0),
    ("failed", 0.05),
    ("failed", 0.5),
    ("failed", 1.0),
    ("turns", 3),
    ("away", True),
    ("hold_out", True),
]
ODD_RUNS = st.lists(st.sampled_from(ODDITIES), max_size=3).map(lambda odd: PLAIN_RUN | dict(odd))


def write_odd_run(folder: Path, odd: dict[str, Any]) -> None:
    spread = 1.0 + odd["output_cv"] * 0.5

    def lengths(rng: np.random.Generator) -> tuple[int, int]:
        return odd["prompt"], max(round(odd["output"] * rng.uniform(2.0 - spread, spread)), 1)

    plan = Plan(
        levels=odd["levels"],
        level_s=odd["level_s"],
        settle_s=1.0,
        think_s=odd["think_s"],
        lengths=lengths,
    )
    begin = 1.8e9 + odd["level_s"] / 2
    write_run(folder, small_engine(), plan, info={"away": [(begin, begin + 3.0)] if odd["away"] else []})
    rng = np.random.default_rng(0)
    path = folder / "requests-0.jsonl"
    decoder = msgspec.json.Decoder(RequestRecord)
    rows = [odd_row(decoder.decode(line), odd, rng) for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(map(encode_line, rows)))
    _count_only(folder / SERVER_FILE, sum(len(row.chunk_s) for row in rows))


def _count_only(path: Path, tokens: int) -> None:
    """Lets the server count so many tokens in all: those that it did not send are not among them."""
    decoder = msgspec.json.Decoder(ServerSample)
    samples = [decoder.decode(line) for line in path.read_bytes().splitlines()]
    share = tokens / max(samples[-1].generation_tokens_total or 0.0, 1.0)
    counted = [
        msgspec.structs.replace(one, generation_tokens_total=share * (one.generation_tokens_total or 0.0))
        for one in samples
    ]
    path.write_bytes(b"".join(map(encode_line, counted)))


def odd_row(row: RequestRecord, odd: dict[str, Any], rng: np.random.Generator) -> RequestRecord:
    changes: dict[str, Any] = {"turn": int(rng.integers(0, odd["turns"]))}
    if odd["stamp_s"]:
        changes["chunk_s"] = [round(at / odd["stamp_s"]) * odd["stamp_s"] for at in row.chunk_s]
    if rng.random() < odd["without_usage"]:
        changes |= {"prompt_tokens": None, "output_tokens": None}
    if rng.random() < odd["failed"]:
        whole = rng.random() < 0.5
        changes |= {
            "outcome": Outcome.TRUNCATED if whole else Outcome.HTTP_ERROR,
            "http_status": 200 if whole else 503,
            "chunk_s": row.chunk_s[: len(row.chunk_s) // 2] if whole else [],
            "chunk_kinds": row.chunk_kinds[: len(row.chunk_s) // 2] if whole else "",
            "first_answer_s": None,
            "pause_s": float(2 ** rng.integers(0, 5)),
            "prompt_tokens": None,
            "output_tokens": None,
        }
    return msgspec.structs.replace(row, **changes)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(odd=ODD_RUNS)
@example(odd=PLAIN_RUN | {"failed": 0.05, "away": True, "think_s": 0.2})
@example(odd=PLAIN_RUN | {"failed": 0.5, "turns": 3, "away": True})
@example(odd=PLAIN_RUN | {"levels": (1, 2), "away": True, "hold_out": True})
def test_an_odd_run_is_answered_or_refused_in_a_sentence(odd: dict[str, Any]) -> None:
    """pytest raises every warning, such as a division by zero, as an error."""
    with tempfile.TemporaryDirectory() as parent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "SIMULATED_DRAWS", 1)
        patch.setattr(maximum, "PROBE_REQUESTS", 600)
        patch.setattr(maximum, "MAX_VIRTUAL_USERS", 40)
        patch.setattr(predictions, "LEVEL_REQUESTS", 100)
        patch.setattr(predictions, "CHECK_REQUESTS", 100)
        patch.setattr(calibration, "OVERHEAD_REQUESTS", 100)
        folder = Path(parent) / "run"
        write_odd_run(folder, odd)
        flags = ["--hold-out", str(odd["levels"][-1])] if odd["hold_out"] else []
        words = io.StringIO()
        with contextlib.redirect_stderr(words):
            code = twin.main([str(folder), "--no-async-scheduling", *flags])
        if code == 0:
            answer = json.loads((folder / "twin.json").read_text())
            assert all(term["value"] >= 0 for term in answer["terms"])
            assert answer["predictions"]
            for one in answer["predictions"]:
                seen = one["measured"]["tpot_p50_s"]
                assert one["values"]["tpot_p50_s"] == pytest.approx(seen, rel=0.1), one["users"]
            return
        assert code in (2, 3)
        (sentence,) = words.getvalue().splitlines()
        assert sentence.endswith(".")
        assert not (folder / "twin.json").exists()

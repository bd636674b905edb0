"""Predicts loads with aiconfigurator. Runs in its environment: `python configurator_rows.py ASKED ANSWERED`.

ASKED holds `{"configs": {model: config.json}, "loads": [...]}`; ANSWERED gets a list with one entry a load:
`{"ttft_s", "tpot_s", "batch"}`, or `{"problem"}`. Both are JSON. aiconfigurator has nothing but a batch size,
so an open loop is asked as the batch whose request rate, by its own figures, is the offered one.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aiconfigurator.cli.api import EstimateResult, cli_estimate

_Answer = dict[str, float | str]


def main() -> None:
    """Reads the loads and writes the answers."""
    asked_file, answered_file = map(Path, sys.argv[1:])
    asked = json.loads(asked_file.read_text(encoding="utf-8"))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        for model, config in asked["configs"].items():
            (Path(name) / model).mkdir()
            (Path(name) / model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        answers = [_answer(load, Path(name) / load["model"]) for load in asked["loads"]]
    answered_file.write_text(json.dumps(answers), encoding="utf-8")


def _answer(load: Mapping[str, Any], model: Path) -> _Answer:
    at_batch = cache(lambda batch: _estimate(load, model, batch))
    try:
        if load["rate"] is None:
            return _checked(at_batch(load["users"]), batch=load["users"])
        return _at_rate(at_batch, load["rate"], most=load["max_num_seqs"])
    except (RuntimeError, ValueError) as problem:  # bases of all that aiconfigurator.sdk.errors has
        return {"problem": f"{type(problem).__name__}: {str(problem).replace(str(model), load['model'])}"}


def _estimate(load: Mapping[str, Any], model: Path, batch: int) -> EstimateResult:
    """Estimates one batch: steady serving ("agg"), the newest vLLM that the card was measured with."""
    experts = {"moe_tp_size": load["tp"], "moe_ep_size": 1} if load["experts"] else {}
    return cli_estimate(
        str(model),
        load["system"],
        mode="agg",
        backend_name="vllm",
        backend_version="current",
        isl=load["prompt"],
        osl=load["output"],
        prefix=load["cached"],
        batch_size=batch,
        ctx_tokens=min(load["prompt"], load["max_num_batched_tokens"]),
        tp_size=load["tp"],
        **experts,
    )


def _at_rate(at_batch: Callable[[int], EstimateResult], rate: float, *, most: int) -> _Answer:
    """Interpolates between the two batches whose request rates enclose the offered one."""
    high = 1
    while _rate(at_batch(high)) < rate:
        if high == most:
            return {"problem": "by its figures the server cannot answer the offered rate"}
        high = min(2 * high, most)
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _rate(at_batch(middle)) >= rate else (middle, high)
    below, above = at_batch(low), at_batch(high)
    rise = _rate(above) - _rate(below)
    part = min(max((rate - _rate(below)) / rise, 0.0), 1.0) if rise > 0 else 1.0
    answers = _checked(below, batch=low), _checked(above, batch=high)
    problem = next((answer for answer in answers if "problem" in answer), None)
    return problem or {
        name: (1 - part) * float(answers[0][name]) + part * float(answers[1][name]) for name in answers[0]
    }


def _rate(estimate: EstimateResult) -> float:
    return float(estimate.raw["request_rate"])


def _checked(estimate: EstimateResult, *, batch: int) -> _Answer:
    if estimate.kv_cache_warning is not None:
        return {"problem": "by its figures the KV cache does not hold the batch"}
    return {"ttft_s": estimate.ttft / 1e3, "tpot_s": estimate.tpot / 1e3, "batch": float(batch)}


if __name__ == "__main__":
    main()

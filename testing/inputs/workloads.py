"""Builds a small workload."""

from loadtest.workload.conversations import Workload
from loadtest.workload.distributions import Distribution
from loadtest.workload.prompts import PromptScale


def workload(**changes: object) -> Workload:
    values: dict[str, object] = {
        "prompt_tokens": Distribution.parse("100"),
        "output_tokens": Distribution.parse("20"),
        "turns": 1,
        "max_model_len": 1000,
        "scale": PromptScale(overhead_tokens=10, tokens_per_word=1.0),
        "seed": 0,
        "nonce": "abc",
    }
    return Workload(**{**values, **changes})  # type: ignore[arg-type]

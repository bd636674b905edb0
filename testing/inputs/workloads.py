"""Builds a small workload."""

from loadtest.record import UserClass
from loadtest.workload.classes import ClassPlan
from loadtest.workload.conversations import Workload
from loadtest.workload.prompts import PromptScale

_OF_RUN = ("max_model_len", "scale", "seed", "nonce", "prompts")


def workload(*classes: UserClass, **changes: object) -> Workload:
    """Builds a workload of these classes; without any, of one class that has no name. changes: fields of the
    workload, or of that one class."""
    values: dict[str, object] = {
        "max_model_len": 1000,
        "scale": PromptScale(overhead_tokens=10, tokens_per_word=1.0),
        "seed": 0,
        "nonce": "abc",
    }
    only: dict[str, object] = {"name": "", "prompt_tokens": "100", "output_tokens": "20"}
    for name, value in changes.items():
        (values if name in _OF_RUN else only)[name] = value
    plans = [ClassPlan.of(each) for each in classes or [UserClass(**only)]]  # type: ignore[arg-type]
    return Workload(plans=plans, **values)  # type: ignore[arg-type]

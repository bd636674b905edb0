"""TODO."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from analysis.reading.runs import AnyRun, FoundRun, Run, is_plain, read_run, run_bytes
from loadtest.errors import InputError
from loadtest.record import (
    RunInfo,
)


class ProgressTask(Protocol):
    """Begins a task of a progress bar."""

    def __call__(self, name: str, *, total: int) -> Callable[[int], None]:
        """Returns what to call with each step's size."""


def read_group(group: Sequence[FoundRun], task: ProgressTask) -> list[Run]:
    """Rows of runs that are pooled. Raises InputError."""
    sizes = [0 if isinstance(found, Run) else run_bytes(found) for found in group]
    advance = task("reading", total=sum(sizes))
    return [found if isinstance(found, Run) else read_run(found, on_bytes=advance) for found in group]


def choose_runs(
    found: Sequence[AnyRun], wanted: Sequence[str] | None
) -> tuple[list[list[AnyRun]], dict[str, list[str]]]:
    """The runs to pool for each model, and what to say of the others, by model."""
    if wanted:
        return [_picked(found, wanted)], {}
    chosen: dict[str, list[AnyRun]] = {}
    notes: dict[str, list[str]] = {}
    for group in group_runs(found):
        model = group[0].info.model
        if model not in chosen:
            chosen[model] = group
            continue
        ids = ", ".join(run.info.run_id for run in group)
        notes.setdefault(model, []).append(
            f"Not pooled, because {_differences(group[0].info, chosen[model][0].info)}: {ids} (choose "
            "with --run)."
        )
    return [chosen[model] for model in sorted(chosen)], notes


def _differences(one: RunInfo, other: RunInfo) -> str:
    """What keeps two runs from being pooled: `host and prompt_tokens differ`."""
    names = differing_fields(one, other)
    listing = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{listing} differ{'s' * (len(names) == 1)}"


def _picked(found: Sequence[AnyRun], wanted: Sequence[str]) -> list[AnyRun]:
    unknown = sorted(set(wanted) - {run.info.run_id for run in found})
    if unknown:
        known = ", ".join(run.info.run_id for run in found)
        raise InputError(f"There is no run {', '.join(unknown)} here: choose from {known}.")
    picked = [run for run in found if run.info.run_id in wanted]
    for run in picked[1:]:
        if differing_fields(run.info, picked[0].info):
            raise InputError(
                f"These runs must not be pooled, because {_differences(run.info, picked[0].info)}: name "
                "fewer with --run."
            )
    return picked


WORKLOAD_SETTINGS = (
    "prompt_tokens",
    "output_tokens",
    "think_s",
    "turns",
    "thinking",
    "prompts",
    "ignore_eos",
    "temperature",
    "extra_body",
    "arrivals",
    "trace",
    "trace_speed",
)


def pooling_fields(info: RunInfo) -> dict[str, str]:
    """What must be equal in two runs before they are pooled, by name."""
    workload = {name: is_plain(info.settings.get(name)) for name in WORKLOAD_SETTINGS}
    server = {
        f"server {name}": is_plain(value) for name, value in msgspec.structs.asdict(info.server).items()
    }
    names = {"model": info.model, "host": info.host, "scenario": info.scenario}
    return {**names, "gpu": is_plain(info.gpu), **server, **workload}


def differing_fields(one: RunInfo, other: RunInfo) -> list[str]:
    """Names of what keeps two runs from being pooled; empty when they may be."""
    ours, theirs = pooling_fields(one), pooling_fields(other)
    return [name for name in ours if ours[name] != theirs[name]]


def group_runs(runs: Sequence[AnyRun]) -> list[list[AnyRun]]:
    """Runs that may be pooled, together; the groups in the order of their newest run, newest first."""
    groups: dict[str, list[AnyRun]] = {}
    for run in runs:
        groups.setdefault(is_plain(pooling_fields(run.info)), []).append(run)
    return sorted(groups.values(), key=lambda group: -max(run.info.started_unix_s for run in group))

"""Choice of runs that are pooled into one sample because their host, server, GPU and workload are equal."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from analysis.notes import NotPooled
from analysis.reading.runs import FoundRun, Run, read_run, run_bytes
from loadtest.errors import InputError
from loadtest.record import RunInfo

_FoundRun = TypeVar("_FoundRun", bound=FoundRun)

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


class ProgressTask(Protocol):
    """Function that begins a task of a progress bar."""

    def __call__(self, name: str, *, total: int) -> Callable[[int], None]:
        """Returns a function that advances the task by the number that it is called with."""


def choose_runs(
    runs: Sequence[_FoundRun], wanted: Sequence[str] | None
) -> tuple[list[list[_FoundRun]], dict[str, list[NotPooled]]]:
    """Returns the runs to pool, the newest group of each model, and notes on the other groups, by model.

    wanted: ids of the runs to pool instead. Raises InputError where there is no such run, or where they must
    not be pooled.
    """
    if wanted:
        return [_picked(runs, wanted)], {}
    chosen: dict[str, list[_FoundRun]] = {}
    left_out: dict[str, list[NotPooled]] = {}
    for group in group_runs(runs):
        model = group[0].info.model
        if model not in chosen:
            chosen[model] = group
            continue
        note = NotPooled(
            run_ids=[run.info.run_id for run in group],
            differing=list(differing_fields(group[0].info, chosen[model][0].info)),
        )
        left_out.setdefault(model, []).append(note)
    return [chosen[model] for model in sorted(chosen)], left_out


def _picked(runs: Sequence[_FoundRun], wanted: Sequence[str]) -> list[_FoundRun]:
    unknown = sorted(set(wanted) - {run.info.run_id for run in runs})
    if unknown:
        known = ", ".join(run.info.run_id for run in runs)
        raise InputError(f"There is no run {', '.join(unknown)} here: choose from {known}.")
    picked = [run for run in runs if run.info.run_id in wanted]
    for run in picked[1:]:
        differing = differing_fields(run.info, picked[0].info)
        if differing:
            raise InputError(
                f"These runs must not be pooled, because they differ in {', '.join(differing)}: name fewer "
                "with --run."
            )
    return picked


def group_runs(runs: Sequence[_FoundRun]) -> list[list[_FoundRun]]:
    """Groups runs that may be pooled, the group with the newest run first."""
    groups: dict[str, list[_FoundRun]] = {}
    for run in runs:
        groups.setdefault(_canonical_json(pooling_fields(run.info)), []).append(run)
    return sorted(groups.values(), key=lambda group: -max(run.info.started_unix_s for run in group))


def pooling_fields(info: RunInfo) -> dict[str, str]:
    """Returns what must be equal in two runs before they are pooled, by name."""
    workload = {name: _canonical_json(info.settings.get(name)) for name in WORKLOAD_SETTINGS}
    server = {
        f"server {name}": _canonical_json(value)
        for name, value in msgspec.structs.asdict(info.server).items()
    }
    names = {"model": info.model, "host": info.host, "scenario": info.scenario}
    return {**names, "gpu": _canonical_json(info.gpu), **server, **workload}


def differing_fields(run: RunInfo, other: RunInfo) -> list[str]:
    """Returns the names of what differs between two runs, so that they must not be pooled; else nothing."""
    fields, others = pooling_fields(run), pooling_fields(other)
    return [name for name in fields if fields[name] != others[name]]


def _canonical_json(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def read_group(group: Sequence[FoundRun], task: ProgressTask) -> list[Run]:
    """Reads runs that are pooled into memory. Raises InputError."""
    sizes = [0 if isinstance(run, Run) else run_bytes(run) for run in group]
    advance = task("reading", total=sum(sizes))
    return [run if isinstance(run, Run) else read_run(run, on_bytes=advance) for run in group]

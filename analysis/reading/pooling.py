"""Chooses the runs that are pooled, that is, analysed together as one sample.

Runs may be pooled if their model, scenario, host, server, GPU and workload are equal.
"""

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
    "sessions",
    "session_times",
    "session_history",
)


class ProgressTask(Protocol):
    """Type of a function that adds a task to a progress bar."""

    def __call__(self, name: str, *, total: int) -> Callable[[int], None]:
        """Adds a task of `total` steps to the progress bar.

        Returns a function that is called with the number of steps done since its last call.
        """


def choose_runs(
    runs: Sequence[_FoundRun], wanted: Sequence[str] | None
) -> tuple[list[list[_FoundRun]], dict[str, list[NotPooled]]]:
    """Returns the groups of runs to analyse, and, by model, notes on the groups that are left out.

    The runs of a group may be pooled. wanted: ids of runs, which then form the only group. Without ids, the
    newest group of each model is analysed. Raises InputError if an id is unknown, or if the wanted runs must
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
    """Returns groups of runs that may be pooled, the group with the newest run first."""
    groups: dict[str, list[_FoundRun]] = {}
    for run in runs:
        groups.setdefault(_canonical_json(pooling_fields(run.info)), []).append(run)
    return sorted(groups.values(), key=lambda group: -max(run.info.started_unix_s for run in group))


def pooling_fields(info: RunInfo) -> dict[str, str]:
    """Returns, by name, the properties of a run that must be equal in all runs of a pool."""
    workload = {name: _canonical_json(info.settings.get(name)) for name in WORKLOAD_SETTINGS}
    server = {
        f"server {name}": _canonical_json(value)
        for name, value in msgspec.structs.asdict(info.server).items()
    }
    names = {"model": info.model, "host": info.host, "scenario": info.scenario}
    workload["classes"] = _canonical_json(info.classes)
    return {**names, "gpu": _canonical_json(info.gpu), **server, **workload}


def differing_fields(run: RunInfo, other: RunInfo) -> list[str]:
    """Returns the names of the properties in which two runs differ.

    The runs may be pooled if the list is empty.
    """
    fields, others = pooling_fields(run), pooling_fields(other)
    return [name for name in fields if fields[name] != others[name]]


def _canonical_json(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def read_group(group: Sequence[FoundRun], task: ProgressTask) -> list[Run]:
    """Reads the runs of a group into memory, and shows the progress.

    A run that repeats requests of another one, as a copy of its folder does, is left out, with a warning.
    Raises InputError when a row does not fit the schema.
    """
    sizes = [0 if isinstance(run, Run) else run_bytes(run) for run in group]
    advance = task("reading", total=sum(sizes))
    return _without_copies(
        [run if isinstance(run, Run) else read_run(run, on_bytes=advance) for run in group]
    )


def _without_copies(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs, without those that hold a request which an earlier one of them holds too.

    Two requests are the same if they began and ended at exactly the same instants.
    """
    kept: list[Run] = []
    seen: dict[tuple[float, float], str] = {}
    for run in runs:
        rows = run.requests
        times = list(zip(rows.start_unix_s.tolist(), rows.end_s.tolist(), strict=True))
        original = next((seen[time] for time in times if time in seen), None)
        if original is None:
            seen |= dict.fromkeys(times, run.info.run_id)
            kept.append(run)
            continue
        first = next(one for one in kept if one.info.run_id == original)
        first.warnings.append(
            f"{run.info.run_id} holds the same requests as {original}: they are counted once."
        )
    return kept

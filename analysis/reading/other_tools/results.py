"""Turns the results of other load generators into runs.

Chooses the files to read, the stages to analyse, and for each file a dump of the server's metrics. Knows no
file format.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.reading.other_tools.formats import SUPPORTED_FILES, read_file
from analysis.reading.other_tools.server_metrics import MetricsDump, read_metrics_dump
from analysis.reading.other_tools.stage_run import run_of_stage
from analysis.reading.other_tools.stages import LoadStage
from analysis.reading.runs import Run
from loadtest.errors import InputError
from loadtest.record import Outcome

DUMP_NAMES = (
    ("server_metrics.json",),
    ("server_metrics.txt",),
    ("server_metrics_export.jsonl", "server_metrics_export.json"),
)
"""File names of metrics dumps that need not be named by the user. The files of the first group that exists
are read together. The last group is aiperf's."""
ONE_WORKLOAD_DIFFERENCE, FOUR_SIGMA = 0.25, 4.0
"""Mean lengths of two stages of one workload differ by at most this share, or this many standard errors."""


def read_results(path: Path, *, server_metrics: Path | None = None) -> list[Run]:
    """Reads a result file, or all result files of a folder; returns a run for each stage that is analysed.

    The folder's direct subfolders are read too. server_metrics: one dump of the server's metrics for all
    files. Without it, a dump with a name in DUMP_NAMES is looked for, first beside each result file and then
    in the folder itself.

    Raises InputError in these cases:

    - A file is cut off, or its kind or version is not supported.
    - The results are of different workloads.
    - The dump does not belong to the results.
    """
    dump = read_metrics_dump(server_metrics) if server_metrics else None
    stages = [stage for file in _files(path) for stage in read_file(file, named=path.is_file())]
    if not stages:
        raise InputError(
            f"{path} holds no run (no run.json): run a load test first, or name another folder. It holds no "
            f"result of another tool either ({SUPPORTED_FILES})."
        )
    chosen = _answering(stages)
    _refuse_two_workloads(chosen)
    warnings = _left_out(stages, chosen)
    root = path if path.is_dir() else path.parent
    folders = {stage.source.path.parent for stage in chosen}
    dumps = {folder: dump or _neighbouring_dump(folder, root) for folder in folders}
    return [
        run_of_stage(
            stage,
            dumps[stage.source.path.parent],
            run_id=f"{stage.source.path.relative_to(root).as_posix()}:{stage.name}",
            warnings=warnings.get(stage.source.model, []),
        )
        for stage in chosen
    ]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [file for pattern in ("*.json*", "*/*.json*") for file in path.glob(pattern)]
    dumps = {name for names in DUMP_NAMES for name in names}
    return sorted(file for file in files if file.suffix in (".json", ".jsonl") and file.name not in dumps)


def _answering(stages: Sequence[LoadStage]) -> list[LoadStage]:
    """Returns the stages from which the answer is made.

    These are all stages with a constant number of users. Open loops are taken only for models that have no
    stage with a constant number of users. Raises InputError if no stage has a request.
    """
    made = [stage for stage in stages if stage.rows]
    if not made:
        raise InputError(f"No request was made in {', '.join(stage.label for stage in stages)}.")
    closed = {stage.source.model for stage in made if stage.users}
    return [stage for stage in made if stage.users or stage.source.model not in closed]


def _left_out(stages: Sequence[LoadStage], chosen: Sequence[LoadStage]) -> dict[str, list[str]]:
    """Returns, by model, a warning that names the stages that are left out."""
    labels: dict[str, list[str]] = {}
    for stage in stages:
        if stage not in chosen:
            labels.setdefault(stage.source.model, []).append(stage.label)
    return {
        model: [
            f"Left out, because they hold no constant number of users, or no request: {', '.join(names)}."
        ]
        for model, names in labels.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _MeanLength:
    """Mean number of tokens of a stage's requests, with the standard error of this mean."""

    tokens: float
    error: float
    stage: str


def _refuse_two_workloads(stages: Sequence[LoadStage]) -> None:
    """Raises InputError if the stages of one tool and model differ in mean prompt or output length.

    The stages are pooled as one workload. The files do not state the workload, so lengths are compared.
    """
    for kind in ("prompt", "output"):
        means: dict[tuple[str, str], list[_MeanLength]] = {}
        for stage in stages:
            lengths = [getattr(row, f"{kind}_tokens") for row in stage.rows if row.outcome is Outcome.OK]
            if len(lengths) > 1:
                error = float(np.std(lengths)) / math.sqrt(len(lengths))
                mean = _MeanLength(tokens=float(np.mean(lengths)), error=error, stage=stage.label)
                means.setdefault((stage.source.tool, stage.source.model), []).append(mean)
        _refuse_different(means.values(), kind)


def _refuse_different(groups: Iterable[Sequence[_MeanLength]], kind: str) -> None:
    for means in groups:
        low, high = (choose(means, key=lambda mean: mean.tokens) for choose in (min, max))
        noise = FOUR_SIGMA * math.hypot(low.error, high.error)
        if high.tokens - low.tokens > max(ONE_WORKLOAD_DIFFERENCE * low.tokens, noise):
            raise InputError(
                f"{low.stage} has {low.tokens:.0f} {kind} tokens a request and {high.stage} "
                f"{high.tokens:.0f}: these are two workloads, put them into folders of their own."
            )


def _neighbouring_dump(folder: Path, root: Path) -> MetricsDump | None:
    """Reads the metrics dump in `folder`; if there is none, the one in `root`. None if both lack a dump."""
    for place in (folder, root):
        for names in DUMP_NAMES:
            dumps = [read_metrics_dump(place / name) for name in names if (place / name).is_file()]
            if dumps:
                scrapes = sorted(
                    (scrape for dump in dumps for scrape in dump.scrapes), key=lambda one: one[0]
                )
                return replace(dumps[0], scrapes=scrapes)
    return None

"""A run in virtual time, for comparison with the same run in the formats of other tools."""

import json
from pathlib import Path

import msgspec
import pytest

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.answer import recommend
from analysis.reading.other_tools.results import read_results
from analysis.reading.runs import Run, find_runs, read_run
from loadtest.errors import InputError
from loadtest.record import RequestRecord, RunInfo, ServerSample, Slo
from testing.runs import other_tools as tools
from testing.runs.virtual import Plan, small_engine, write_run

OWN_LEVELS = (1, 2, 4, 8, 16, 20)


class OwnRun:
    """A run on a small engine in virtual time. At 17 users it preempts one request in a hundred."""

    def __init__(self, folder: Path) -> None:
        self.info: RunInfo = write_run(folder, small_engine(), Plan(levels=OWN_LEVELS))
        self.run: Run = read_run(find_runs(folder)[0])
        self.rows: list[RequestRecord] = tools.rows_of(folder)
        first, *_ = scrapes = tools.scrapes_of(folder)
        before = msgspec.structs.replace(first, unix_s=first.unix_s - 3.0)
        self.scrapes: list[ServerSample] = [before, *scrapes]
        self.answer: ModelAnswer = recommend([self.run], slo=Slo())

    def level(self, users: int) -> list[RequestRecord]:
        return [row for row in self.rows if row.level_users == users]

    def write_metrics(self, folder: Path) -> None:
        query = tools.range_query(self.scrapes, self.info)
        (folder / "server_metrics.json").write_text(json.dumps(query))


def write_guidellm_folder(rows: list[RequestRecord], folder: Path) -> None:
    folder.mkdir()
    tools.write_guidellm(rows, folder / "sweep.json")


def refusal_of(path: Path, **options: Path) -> str:
    """Returns the message of the InputError with which the reader refuses these results."""
    with pytest.raises(InputError) as refused:
        read_results(path, **options)
    return str(refused.value)

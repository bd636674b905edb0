"""Shortcuts from a run folder to its answer, and from a comparison to one of its rows."""

from pathlib import Path

from analysis.answers.capacity import ModelAnswer
from analysis.answers.compare import Comparison, ComparisonRow
from analysis.capacity.answer import recommend
from analysis.reading.runs import find_runs, read_run
from loadtest.record import Slo


def answer_for(folder: Path, *, slo: Slo | None = None) -> ModelAnswer:
    """Analyses all runs in the folder together."""
    return recommend([read_run(found) for found in find_runs(folder)], slo=slo or Slo())


def comparison_row(comparison: Comparison, figure: str, users: int | None = None) -> ComparisonRow:
    """Returns the row of a figure at the level of `users`; if None, the row for the whole deployment."""
    (only,) = (row for row in comparison.rows if (row.figure, row.users) == (figure, users))
    return only

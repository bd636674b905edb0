"""What the analysis says of a run folder, and single cells of a comparison."""

from pathlib import Path

from analysis.answers.capacity import ModelAnswer
from analysis.answers.compare import Comparison, ComparisonRow
from analysis.capacity.answer import recommend
from analysis.reading.runs import find_runs, read_run
from loadtest.record import Slo


def answer_for(folder: Path, *, slo: Slo | None = None) -> ModelAnswer:
    """The answer to all runs of the folder together."""
    return recommend([read_run(found) for found in find_runs(folder)], slo=slo or Slo())


def comparison_row(comparison: Comparison, figure: str, users: int | None = None) -> ComparisonRow:
    """The row of a figure, at one level, or for the deployment as a whole."""
    (only,) = (row for row in comparison.rows if (row.figure, row.users) == (figure, users))
    return only

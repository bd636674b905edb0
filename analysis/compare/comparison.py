"""Puts a comparison of two judged runs together: the table, the gate, and the warnings."""

import time
from collections.abc import Sequence

from analysis.answers.compare import Comparison
from analysis.capacity.headline import CONFIDENCE
from analysis.cli import RefusedError
from analysis.compare.differences import gpu_of, run_differences
from analysis.compare.gate import MARGIN, TOLERANCE, gate_of
from analysis.compare.sides import MeasuredDeployment, common_levels
from analysis.compare.table import comparison_rows
from analysis.reporting.words import sentences
from loadtest.record import Slo


def comparison_of(
    a: MeasuredDeployment,
    b: MeasuredDeployment,
    *,
    slo: Slo,
    gate: bool = False,
    tolerance: float = TOLERANCE,
    margin: float = MARGIN,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compares two judged runs.

    notes: warnings from reading the runs; they come first among the warnings. Raises RefusedError if one run
    has no answer and no level is trusted in both runs: then nothing can be compared.
    """
    common = common_levels(a, b)
    if not common and (a.refused or b.refused):
        why = " ".join(sentences((a if a.refused else b).answer.reasons))
        raise RefusedError(
            f"These runs have no level that is trusted in both, and no capacity to compare: {why}"
        )
    return Comparison(
        generated_unix_s=time.time(),
        confidence=CONFIDENCE,
        slo=slo,
        names=(a.name, b.name),
        answers=(a.answer, b.answer),
        common_levels=common,
        rows=comparison_rows(a, b),
        differs=run_differences(a.info, b.info),
        gate=gate_of(a, b, tolerance=tolerance, margin=margin) if gate else None,
        warnings=[*notes, *_warnings(a, b, common)],
    )


def _warnings(a: MeasuredDeployment, b: MeasuredDeployment, common: Sequence[int]) -> list[str]:
    found = []
    if not common:
        levels = " and ".join(
            ", ".join(map(str, side.judgement.evidence.trusted)) or "none" for side in (a, b)
        )
        found.append(
            f"No level is trusted in both runs (users: {levels}): latency and throughput are not compared. "
            "Run both at the same --levels."
        )
    if None in (gpu_of(a.info), gpu_of(b.info)):
        found.append(
            "Whether both ran on the same kind of GPU is not known: a run does not say which it was."
        )
    for side in (a, b):
        found += [f"{side.name}: {warning}" for warning in sentences(side.answer.warnings)]
        found += [f"{side.name}: {reason}" for reason in sentences(side.answer.reasons)]
    return found

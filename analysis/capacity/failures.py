"""The failed requests of an answer: how many, with which words, why, and what to do."""

from analysis.answers.capacity import Failures
from analysis.evidence.evidence import Evidence
from analysis.levels.failures.advice import advice_of
from analysis.levels.failures.limits import RefusalLimit, refusal_limit


def failures_of_answer(evidence: Evidence) -> list[Failures]:
    """Returns the failed requests by class, the most frequent first."""
    rows = {run.info.run_id: run.requests for run in evidence.runs}
    windows = [(rows[level.run_id], level.window) for level in evidence.levels]
    found = []
    for total in evidence.failures:
        limit = refusal_limit(total.failure, windows) if total.cause == "load" else RefusalLimit()
        found.append(
            Failures(
                outcome=total.failure.outcome,
                http_status=total.failure.http_status,
                words=total.words,
                count=total.count,
                requests=total.requests,
                by_users=total.by_users,
                cause=total.cause,
                advice=advice_of(total.failure, total.words, total.cause),
                at_once=limit.at_once,
                admitted_rps=limit.rps,
            )
        )
    return found

"""Joins lengths, arrivals and concurrency of a deployment into the answer of the command."""

import numpy as np

from analysis.answers.production import LengthBucket, SeenLengths, WorkloadAnswer
from analysis.cli import RefusedError
from analysis.production.buckets import Buckets
from analysis.production.engines import Production
from analysis.production.length_fit import fit_lengths, length_values
from analysis.production.traffic import MIN_FINISHED, seen_arrivals, seen_concurrency
from loadtest.record import Slo

NOT_SEEN = [
    "which prompt had which answer: the lengths are drawn independently of each other",
    "sessions and turns: a prompt counts whole, with its history and system prompt, as one turn",
    "think time: the load test may choose the number of users, or the rate",
    "requests that were refused, aborted or failed: only finished ones are counted",
    "peaks between two scrapes",
]


def workload_answer(production: Production, slo: Slo) -> WorkloadAnswer:
    """Returns the workload of a deployment. Raises RefusedError where too few requests finished."""
    arrivals = seen_arrivals(production)
    prompt, output = (production.histogram(name) for name in ("prompt_tokens", "output_tokens"))
    if arrivals is None or prompt is None or output is None or min(prompt.n, output.n) < MIN_FINISHED:
        counted = 0 if prompt is None else round(prompt.n)
        raise RefusedError(
            f"{production.source} counts {counted} finished requests of {production.model}, and a workload "
            f"takes {MIN_FINISHED}: look further back, or wait."
        )
    queries, hits = (production.counted(f"prefix_cache_{name}_total") for name in ("queries", "hits"))
    prompts, answers = _seen(prompt), _seen(output)
    return WorkloadAnswer(
        source=production.source,
        model=production.model,
        simulated=production.simulated,
        from_unix_s=production.start_unix_s,
        to_unix_s=production.end_unix_s,
        times_known=production.times_known,
        slo=slo,
        arrivals=arrivals,
        concurrency=seen_concurrency(production),
        prefix_hit_share=hits / queries if queries and hits is not None else None,
        not_seen=NOT_SEEN,
        warnings=[*production.warnings, *_doubts(prompts, "prompts"), *_doubts(answers, "answers")],
        prompt_tokens=prompts,
        output_tokens=answers,
    )


def _doubts(one: SeenLengths, what: str) -> list[str]:
    doubts = []
    if not one.fits:
        doubts.append(
            f"The lengths of {what} fit no form that the load test draws: of 100 requests, about "
            f"{100 * one.distance:.0f} have other lengths than {one.distribution}. Are there several kinds "
            "of requests? Then make a class of each, or load the prompts themselves (--prompts)."
        )
    if sum(bucket.requests > 0 for bucket in one.buckets) == 1:
        doubts.append(
            f"All {what} lie in one bucket of the histogram: how much their lengths vary is not seen."
        )
    return doubts


def _seen(buckets: Buckets) -> SeenLengths:
    fitted = fit_lengths(buckets)
    values = length_values(buckets, fitted, 1000)
    last = int(np.flatnonzero(buckets.counts)[-1])
    edges = buckets.upper[: last + 1].tolist()
    rows = [
        LengthBucket(
            up_to=up_to if np.isfinite(up_to) else None,
            requests=round(float(count)),
            share=float(count) / buckets.n,
            fitted_share=float(expected),
        )
        for up_to, count, expected in zip(edges, buckets.counts, fitted.expected, strict=False)
    ]
    first = next(at for at, row in enumerate(rows) if row.requests)
    return SeenLengths(
        distribution=fitted.text,
        requests=round(buckets.n),
        mean=buckets.mean,
        p50=float(np.median(values)),
        p95=float(np.quantile(values, 0.95)),
        distance=fitted.distance,
        fits=fitted.fits,
        buckets=rows[first:],
    )

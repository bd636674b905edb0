"""The types of what `python -m analysis.workload` and `python -m analysis.headroom` print. Knows no maths.

An interval covers 90 %; its upper end is null where nothing bounds it.
"""

from typing import Literal

import msgspec

from loadtest.record import Slo

OpenInterval = tuple[float, float | None]


class LengthBucket(msgspec.Struct, kw_only=True, frozen=True):
    """One bucket of a histogram of lengths, and what the fitted distribution puts there."""

    up_to: float | None
    """Largest length in the bucket; null in the last one, which has no upper end."""
    requests: int
    share: float
    fitted_share: float


class SeenLengths(msgspec.Struct, kw_only=True, frozen=True):
    """Lengths of prompts or answers in tokens."""

    distribution: str
    """As the flags of the load test take it."""
    requests: int
    mean: float
    """Exact: the histogram's sum divided by its count."""
    p50: float
    p95: float
    distance: float
    """Largest difference between the shares up to a bucket's bound, counted and by the distribution."""
    fits: bool
    buckets: list[LengthBucket]


class SeenArrivals(msgspec.Struct, kw_only=True, frozen=True):
    """Requests that the server finished, per second."""

    requests: int
    mean_per_s: float
    peak_per_s: float
    """In the busiest span of `peak_over_s` seconds, which begins at `peak_unix_s`."""
    peak_over_s: float
    peak_unix_s: float | None
    """Null where the times of day are not known."""
    daily_peak_per_s: float | None
    """Mean over days of the busiest hour of the day; null for less than a day."""
    daily_peak_hour_utc: int | None


class SeenCount(msgspec.Struct, kw_only=True, frozen=True):
    """A number of requests over time, all replicas together."""

    now: float
    mean: float
    p95: float
    peak: float
    peak_unix_s: float | None


class SeenConcurrency(msgspec.Struct, kw_only=True, frozen=True):
    """Requests at the server, by its gauges at `scrapes` times, `scrape_s` seconds apart."""

    running: SeenCount
    waiting: SeenCount | None
    in_flight: SeenCount
    """Running and waiting together."""
    replicas: int
    """Engines now, each with a KV pool of its own."""
    busiest_replica_peak: float
    scrapes: int
    scrape_s: float


class WorkloadAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of `python -m analysis.workload`."""

    schema: int = 1
    source: str
    model: str
    simulated: str | None
    from_unix_s: float
    to_unix_s: float
    times_known: bool
    slo: Slo
    prompt_tokens: SeenLengths
    output_tokens: SeenLengths
    arrivals: SeenArrivals
    concurrency: SeenConcurrency
    prefix_hit_share: float | None
    not_seen: list[str]
    warnings: list[str]


class SeenWall(msgspec.Struct, kw_only=True, frozen=True):
    """A wall as a number of requests in flight in one replica."""

    name: Literal["kv_cache", "max_num_seqs", "ttft", "tpot"]
    x: float | None
    """Null where the loads that were seen never reached it."""
    interval: OpenInterval | None
    at_least: float | None
    """Most requests in flight that were seen to hold; null where none were."""
    how: str
    """What it is known from, as a sentence."""


class SeenMemory(msgspec.Struct, kw_only=True, frozen=True):
    """The KV pool of one replica, and what its requests hold."""

    pool_tokens: int
    tokens_per_request: float | None
    """Measured: KV usage over requests that run."""
    tokens_by_lengths: tuple[float, float, float]
    """Mean over the steps of a request if long prompts had short answers, if lengths did not go together, and
    if long prompts had long answers."""
    users_by_lengths: tuple[float, float, float]
    """The wall by lengths alone, [low, estimate, high]."""
    kv_usage_peak: float | None
    preemptions: int | None


class AutoscalerTarget(msgspec.Struct, kw_only=True, frozen=True):
    """Requests in flight a replica at which another replica should start."""

    in_flight_per_replica: int
    basis: str
    """Name of the wall, or `seen` where a wall that may be nearer was not seen."""


class HeadroomAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of `python -m analysis.headroom`."""

    schema: int = 1
    source: str
    model: str
    simulated: str | None
    from_unix_s: float
    to_unix_s: float
    times_known: bool
    slo: Slo
    concurrency: SeenConcurrency
    memory: SeenMemory | None
    walls: list[SeenWall]
    """The nearest first; those that were not seen last."""
    growth: tuple[float, float, float | None] | None
    """By what factor the busiest replica's peak may grow to reach the nearest wall, [low, estimate, high];
    null where no wall is known."""
    target: AutoscalerTarget | None
    rule: str | None
    """Recording rules for Prometheus, as YAML; null without a target."""
    warnings: list[str]

"""Sorts a deployment's series by engine: gauges at each scrape, and what was counted in each window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.production.buckets import Buckets, added
from analysis.production.series import (
    POOL_INFO,
    SERVER_COUNTERS,
    SERVER_GAUGES,
    SERVER_HISTOGRAMS,
    SIMULATED_INFO,
    DeploymentHistory,
    TimeSeries,
)
from analysis.statistics.arrays import Floats
from loadtest.errors import InputError

_OF_A_METRIC = {"model_name", "le", "finished_reason", "reason"}
"""Labels that do not tell one engine from another."""
Identity = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BucketWindows:
    """A histogram's growth in each window; nan where it is not known."""

    upper: Floats
    counts: Floats
    """Shape (windows, k)."""
    totals: Floats
    """Shape (windows,)."""

    def of(self, window: int) -> Buckets | None:
        """Returns what was counted in one window; None where that is not known."""
        counts, total = self.counts[window], float(self.totals[window])
        if np.isnan(counts).any() or np.isnan(total):
            return None
        return Buckets(upper=self.upper, counts=counts, total=total)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EngineHistory:
    """One engine over time: a server, or one of its data-parallel engines. Each has its own KV pool."""

    name: str
    unix_s: Floats
    """Times of the scrapes, shape (n,), as for the gauges; those that are not known are nan."""
    running: Floats
    waiting: Floats
    kv_cache_usage: Floats
    edges_unix_s: Floats
    """Edges of the windows, shape (windows + 1,)."""
    counted: Mapping[str, Floats]
    """Growth of the counters of SERVER_COUNTERS that were found, shape (windows,), nan where not known."""
    histograms: Mapping[str, BucketWindows]
    """Those of SERVER_HISTOGRAMS that were found."""
    histogram_names: Mapping[str, str]
    """Name of the metric that each of the histograms was read from."""
    num_gpu_blocks: int | None
    block_size: int | None

    @property
    def in_flight(self) -> Floats:
        """Requests that run or wait, at each scrape; a waiting count that is not known adds nothing."""
        held: Floats = self.running + np.nan_to_num(self.waiting)
        return held


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Production:
    """What is known of a deployment from its metrics."""

    source: str
    model: str
    engines: Sequence[EngineHistory]
    simulated: str | None
    """Preset of the embedded server; None for a real one."""
    times_known: bool
    warnings: Sequence[str]

    @property
    def start_unix_s(self) -> float:
        return min(float(one.unix_s[0]) for one in self.engines)

    @property
    def end_unix_s(self) -> float:
        return max(float(one.unix_s[-1]) for one in self.engines)

    def counted(self, name: str) -> float | None:
        """Returns the growth of a counter over all engines and windows; None where it was never seen."""
        parts = [one.counted[name] for one in self.engines if name in one.counted]
        known = [part[~np.isnan(part)] for part in parts]
        return float(sum(part.sum() for part in known)) if any(map(len, known)) else None

    def histogram(self, name: str) -> Buckets | None:
        """Returns a histogram over all engines and windows; None where it counted nothing."""
        seen = []
        for one in self.engines:
            if name in one.histograms:
                windows = one.histograms[name]
                known = ~np.isnan(windows.counts).any(axis=1) & ~np.isnan(windows.totals)
                counts, total = windows.counts[known].sum(axis=0), float(windows.totals[known].sum())
                seen.append(Buckets(upper=windows.upper, counts=counts, total=total))
        whole = added(seen) if seen else None
        return whole if whole is not None and whole.n > 0 else None


def read_engines(history: DeploymentHistory) -> Production:
    """Sorts the series of a history by engine. Raises InputError where no scrape is in it."""
    gauges, counters = _by_engine(history.gauges), _by_engine(history.counters)
    pools = [labels for name, labels in history.infos if name == POOL_INFO]
    engines = [
        _engine(identity, gauges[identity], counters.get(identity, []), _pool_of(identity, pools))
        for identity in sorted(gauges)
        if _named(gauges[identity], SERVER_GAUGES["running"])
    ]
    if not engines:
        raise InputError(f"{history.source} holds no scrape of {history.model}.")
    simulated = [labels.get("preset", "") for name, labels in history.infos if name == SIMULATED_INFO]
    return Production(
        source=history.source,
        model=history.model,
        engines=engines,
        simulated=simulated[0] if simulated else None,
        times_known=history.times_known,
        warnings=[*history.warnings, *_pool_doubts(engines, pools)],
    )


def _pool_doubts(engines: Sequence[EngineHistory], pools: Sequence[Mapping[str, str]]) -> list[str]:
    doubts = []
    if len({one.num_gpu_blocks for one in engines}) > 1:
        doubts.append("The engines have different KV pools: the smallest one counts.")
    elif len({one.get("num_gpu_blocks") for one in pools}) > 1:
        doubts.append("The KV pool changed in this time: choose a shorter range, since the change.")
    return doubts


def _by_engine(series: Sequence[TimeSeries]) -> dict[Identity, list[TimeSeries]]:
    found: dict[Identity, list[TimeSeries]] = {}
    for one in series:
        own = tuple(sorted(pair for pair in one.labels.items() if pair[0] not in _OF_A_METRIC))
        found.setdefault(own, []).append(one)
    return found


def _named(series: Sequence[TimeSeries], names: Sequence[str]) -> list[TimeSeries]:
    """Returns the series of the first name that is there."""
    return next((found for name in names if (found := [one for one in series if one.name == name])), [])


def _pool_of(identity: Identity, pools: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    """Returns the labels of an engine's pool: the last that contradict none of the engine's own."""
    own = [labels for labels in pools if all(labels.get(name, value) == value for name, value in identity)]
    return own[-1] if own else {}


def _engine(
    identity: Identity, gauges: Sequence[TimeSeries], counters: Sequence[TimeSeries], pool: Mapping[str, str]
) -> EngineHistory:
    unix_s = _named(gauges, SERVER_GAUGES["running"])[0].unix_s
    columns = {name: _at(_named(gauges, names), unix_s) for name, names in SERVER_GAUGES.items()}
    times = [one.unix_s for one in counters]
    edges = np.unique(np.concatenate(times)) if times else np.empty(0)
    counted = {
        name: _growth(np.array([_at([one], edges) for one in found]).sum(axis=0)[:, None])[:, 0]
        for name, names in SERVER_COUNTERS.items()
        if (found := _named(counters, names))
    }
    histograms, used = {}, {}
    for name, names in SERVER_HISTOGRAMS.items():
        for metric in names:
            if windows := _windows(counters, metric, edges):
                histograms[name], used[name] = windows, metric
                break
    return EngineHistory(
        name=", ".join(value for _, value in identity),
        unix_s=unix_s,
        edges_unix_s=edges,
        counted=counted,
        histograms=histograms,
        histogram_names=used,
        num_gpu_blocks=_whole(pool.get("num_gpu_blocks")),
        block_size=_whole(pool.get("block_size")),
        **columns,
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _at(found: Sequence[TimeSeries], unix_s: Floats) -> Floats:
    """Returns the values of the first series at these times, nan where it has none."""
    values = np.full(len(unix_s), np.nan)
    if found and len(unix_s):
        place = np.searchsorted(unix_s, found[0].unix_s)
        there = (place < len(unix_s)) & (unix_s[np.minimum(place, len(unix_s) - 1)] == found[0].unix_s)
        values[place[there]] = found[0].values[there]
    return values


def _growth(cumulative: Floats) -> Floats:
    """Returns by how much counters grew in each window, shape (windows, k), from their values at its edges.

    The last of the k counters is one of all: where it fell, the process began again, and what it has counted
    since is its growth.
    """
    grown = np.diff(cumulative, axis=0)
    again = grown[:, -1] < 0
    grown[again] = cumulative[1:][again]
    return grown


def _windows(counters: Sequence[TimeSeries], metric: str, edges: Floats) -> BucketWindows | None:
    buckets = sorted(
        (one for one in counters if one.name == f"{metric}_bucket"), key=lambda one: float(one.labels["le"])
    )
    sums = [one for one in counters if one.name == f"{metric}_sum"]
    if not buckets or not sums:
        return None
    whole = np.array([*(_at([one], edges) for one in buckets)]).T
    grown = _growth(whole)
    # A sum of lengths or times falls only where its histogram begins again, as the count does.
    totals = _growth(_at(sums, edges)[:, None])[:, 0]
    return BucketWindows(
        upper=np.array([float(one.labels["le"]) for one in buckets]),
        counts=np.diff(grown, axis=1, prepend=0.0),
        totals=totals,
    )

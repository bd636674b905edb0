"""Reader of dumps of a server's Prometheus metrics, as rows of ServerSample (formats: docs/importing.md)."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from prometheus_client.samples import Sample

from loadtest.errors import InputError
from loadtest.record import ServerInfo, ServerSample
from loadtest.server.prometheus import parse_samples
from loadtest.server.vllm import METRIC_LINES, build_server_info, build_server_samples

# Matches a line that holds only a time, or a comment that ends in a time, as `date +%s`, `date +%s.%N` and
# `date -Is` write them between two scrapes. Samples end in a number too, so only comments may have words.
_TIME = re.compile(
    r"^(?:#(?! HELP| TYPE).*?|[=\-*\s\[]*)\b(?:"
    r"(?P<unix>\d{10}(?:\.\d+)?)|"
    r"(?P<day>\d{4}-\d\d-\d\d[T ][\d:]{8}(?:[.,]\d+)?) ?(?P<zone>Z|[+-]\d\d:?\d\d)?"
    r")[\]=\-*\s]*$"
)
_SPACE = re.compile(r"\s*")
HOW_TO_ADD_TIMES = (
    "write a line with `date +%s` before each scrape, or export a range from Prometheus (docs/importing.md)"
)
TimedSample = tuple[float, Sample]


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsDump:
    """Metrics of one or several servers over time, as read from a file."""

    path: Path
    scrapes: list[tuple[float, list[Sample]]]
    """Time (seconds since 1970) and samples of each scrape, in time order."""
    changes_only: bool = False
    """Whether scrapes equal to the one before are left out, as aiperf does: a gap means no change."""

    def rows(self, model: str) -> list[ServerSample]:
        """Returns a row for each scrape and engine.

        Raises InputError if several servers were scraped at different times.
        """
        scrapes = [
            build_server_samples(samples, model=model, unix_s=unix_s) for unix_s, samples in self.scrapes
        ]
        rows = [row for scrape in scrapes for row in scrape]
        engines = {str(row.engine) for row in rows}
        if len(engines) > max(map(len, scrapes), default=0):
            raise InputError(
                f"{self.path} holds servers ({', '.join(sorted(engines))}) that were scraped at different "
                "times and cannot be added up: export Prometheus' query_range, which puts them on one grid."
            )
        return rows

    def models(self) -> list[str]:
        """Returns the names of the models that the servers serve, sorted."""
        names = {sample.labels.get("model_name") for _, samples in self.scrapes for sample in samples}
        return sorted(name for name in names if name)

    def info(self) -> ServerInfo:
        """Returns what the servers state about their KV pool; None in each field that they do not state."""
        return build_server_info(sample for _, samples in self.scrapes for sample in samples)


def read_metrics_dump(path: Path) -> MetricsDump:
    """Reads a file of server metrics in one of three forms.

    The forms are: answers to Prometheus' range queries; aiperf's server_metrics_export; and the text of
    several scrapes, one after another.

    Raises InputError when the file is none of these, or holds no metric of vLLM.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"The server metrics {path} cannot be read ({problem}).") from None
    scrapes: dict[float, list[Sample]] = {}
    read = _samples_of_json if text.lstrip().startswith("{") else _samples_of_text
    for unix_s, sample in read(path, text):
        if METRIC_LINES.match(f"{sample.name} "):
            scrapes.setdefault(unix_s, []).append(sample)
    if not any(sample.name.startswith("vllm:") for samples in scrapes.values() for sample in samples):
        raise InputError(f"{path} holds no metric of vLLM, such as vllm:kv_cache_usage_perc.")
    _name_engines(scrapes)
    _refuse_doubles(path, scrapes)
    return MetricsDump(
        path=path,
        scrapes=sorted(scrapes.items(), key=lambda scrape: scrape[0]),
        changes_only='"timestamp_ns":' in text[:1000],
    )


def _name_engines(scrapes: dict[float, list[Sample]]) -> None:
    """Puts the server's name before each engine's number, if there are several servers.

    Each server numbers its engines from 0, so the numbers alone are not unique. Changes the samples.
    """
    everything = [sample for samples in scrapes.values() for sample in samples]
    if len({sample.labels.get("instance") for sample in everything}) > 1:
        for sample in everything:
            labels = sample.labels
            labels["engine"] = f"{labels.get('instance', '')}/{labels.get('engine', '0')}"


def _refuse_doubles(path: Path, scrapes: dict[float, list[Sample]]) -> None:
    for unix_s, samples in scrapes.items():
        if len({(sample.name, *sorted(sample.labels.items())) for sample in samples}) < len(samples):
            raise InputError(
                f"{path} holds more than one scrape for the time {unix_s:.3f}: {HOW_TO_ADD_TIMES}."
            )


class _Series(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]]


class _Matrix(msgspec.Struct, tag_field="resultType", tag="matrix"):
    result: list[_Series]


class _RangeQuery(msgspec.Struct):
    """Answer to a range query of Prometheus.

    Format: https://prometheus.io/docs/prometheus/latest/querying/api/#range-queries.
    """

    data: _Matrix

    def samples(self) -> Iterator[TimedSample]:
        for series in self.data.result:
            name = series.metric.pop("__name__", "")
            for unix_s, value in series.values:
                yield unix_s, Sample(name, dict(series.metric), float(value))


class _Labelled(msgspec.Struct):
    labels: dict[str, str] | None = None
    value: float | None = None


class _AiperfScrape(msgspec.Struct):
    """A line of aiperf's server_metrics_export.jsonl."""

    timestamp_ns: int
    endpoint_url: str
    metrics: dict[str, list[_Labelled]]

    def samples(self) -> Iterator[TimedSample]:
        for name, values in self.metrics.items():
            for labelled in values:
                if labelled.value is not None:  # None for sums and buckets of histograms
                    labels = {**(labelled.labels or {}), "instance": self.endpoint_url}
                    yield self.timestamp_ns / 1e9, Sample(name, labels, labelled.value)


class _AiperfSeries(msgspec.Struct):
    series: list[_Labelled] = []


class _AiperfSummary(msgspec.Struct):
    """File server_metrics_export.json of aiperf, which has no time series.

    Only the labels of the metric vllm:cache_config_info are used.
    """

    aiperf_version: str
    metrics: dict[str, _AiperfSeries]

    def samples(self) -> Iterator[TimedSample]:
        name = "vllm:cache_config_info"
        for labelled in self.metrics.get(name, _AiperfSeries()).series[:1]:
            yield 0.0, Sample(name, dict(labelled.labels or {}), 1.0)


_DOCUMENTS: dict[str, type[_RangeQuery | _AiperfScrape | _AiperfSummary]] = {
    "data": _RangeQuery,
    "timestamp_ns": _AiperfScrape,
    "aiperf_version": _AiperfSummary,
}


def _samples_of_json(path: Path, text: str) -> Iterator[TimedSample]:
    """Yields the samples of all JSON documents in a file, which may be answers to several range queries."""
    for document in _documents(path, text):
        kind = next(
            (kind for key, kind in _DOCUMENTS.items() if isinstance(document, dict) and key in document), None
        )
        try:
            decoded = msgspec.convert(document, kind or _RangeQuery)
        except msgspec.ValidationError as problem:
            raise InputError(
                f"{path} is not the result of Prometheus' query_range ({problem}): see docs/importing.md for "
                "what is read."
            ) from None
        yield from decoded.samples()


def _documents(path: Path, text: str) -> Iterator[object]:
    decoder, at = json.JSONDecoder(), 0
    while (space := _SPACE.match(text, at)) and (at := space.end()) < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as problem:
            raise InputError(f"{path} is not whole JSON ({problem}): was it cut off?") from None
        yield document


def _samples_of_text(path: Path, text: str) -> Iterator[TimedSample]:
    """Yields the samples of a text file.

    The file has one of two forms:

    - Pages of /metrics. Before each page stands a line with the time of the scrape.
    - A page of Prometheus' /federate. Each of its lines has its own time.
    """
    for unix_s, page in _pages(path, text):
        try:
            samples = parse_samples(page, wanted=METRIC_LINES)
        except ValueError as problem:
            raise InputError(f"{path} is not what /metrics writes ({problem}).") from None
        for sample in samples:
            at = unix_s if sample.timestamp is None else float(sample.timestamp)
            if at is None:
                raise InputError(f"{path} does not say when it was scraped: {HOW_TO_ADD_TIMES}.")
            yield at, sample


def _pages(path: Path, text: str) -> Iterator[tuple[float | None, str]]:
    unix_s, lines = None, list[str]()
    for line in text.splitlines():
        time = _TIME.match(line)
        if time is None:
            lines.append(line)
            continue
        yield unix_s, "\n".join(lines)
        unix_s, lines = _unix_s(path, time), []
    yield unix_s, "\n".join(lines)


def _unix_s(path: Path, time: re.Match[str]) -> float:
    if time["unix"]:
        return float(time["unix"])
    if not time["zone"]:
        raise InputError(f"{path} has times without a zone ({time['day']}): {HOW_TO_ADD_TIMES}.")
    return datetime.fromisoformat(time["day"] + time["zone"]).timestamp()

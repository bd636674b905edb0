"""Result files of guidellm, aiperf and `vllm bench serve` -> Stage. What they lack: docs/importing.md."""

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path

import msgspec
import numpy as np

from analysis.load import NAN, InputError
from loadtest.record import Outcome

KINDS = "guidellm's JSON, aiperf's profile_export.jsonl, or `vllm bench serve --save-result --save-detailed`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One request; names and units are those of `load.Requests`."""

    start_unix_s: float
    end_s: float
    outcome: Outcome
    sent_s: float = 0.0
    scheduled_unix_s: float = NAN
    first_chunk_s: float = NAN
    first_answer_s: float = NAN
    last_chunk_s: float = NAN
    chunks: int = 0
    first_chunk_tokens: float = 1.0
    prompt_tokens: float = NAN
    output_tokens: float = NAN
    cached_tokens: float = NAN
    http_status: float = NAN
    conversation: str | None = None
    turn: int = 0
    gap_s: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """A file, and what it says of all its requests."""

    path: Path
    tool: str
    model: str
    host: str
    lacks: list[str]
    """Full sentences: what this tool's files do not tell."""
    whole_seconds: bool = False
    """The clock is known to about a second only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stage:
    """Requests of one concurrency, or of one law of arrivals (`users` is None)."""

    source: Source
    name: str
    users: int | None
    rows: list[Row]

    @property
    def label(self) -> str:
        return f"{self.source.path.name} ({self.name})"


def read_file(file: Path, *, named: bool) -> Iterator[Stage]:
    """What the file holds; nothing where it is of another kind, unless it was named: then InputError."""
    documents = _documents(file)
    keys = set(documents[0][1])
    try:
        if {"benchmarks", "metadata"} <= keys:
            yield from _guidellm(file, documents[0][0])
        elif {"model_id", "duration", "completed"} <= keys:
            yield from (_vllm_bench(file, data, set(found)) for data, found in documents)
        elif {"metadata", "metrics"} <= keys:
            yield _aiperf(file, [data for data, _ in documents])
        elif named:
            raise InputError(_not_a_result(file, keys))
    except msgspec.ValidationError as problem:
        raise InputError(
            f"{file} is not as the versions write it that are read here ({problem}): see docs/importing.md."
        ) from None


def _not_a_result(file: Path, keys: set[str]) -> str:
    if "aiperf_version" in keys:
        return f"{file} is aiperf's summary and holds no requests: name the profile_export.jsonl beside it."
    return f"{file} is not a result that can be read: {KINDS}."


def _documents(file: Path) -> list[tuple[bytes, dict[str, msgspec.Raw]]]:
    """The JSON objects of a file, the whole of it or one a line, each with its keys."""
    data = file.read_bytes()
    try:
        return [(data, _keys(data))]
    except msgspec.DecodeError as whole:
        lines = [line for line in data.splitlines() if line.strip()]
        try:
            return [(line, _keys(line)) for line in lines] if len(lines) > 1 else _cut_off(file, whole)
        except msgspec.DecodeError as problem:
            return _cut_off(file, problem)


def _cut_off(file: Path, problem: msgspec.DecodeError) -> list[tuple[bytes, dict[str, msgspec.Raw]]]:
    raise InputError(f"{file} is not whole JSON ({problem}): was it cut off while it was written or copied?")


def _keys(data: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return {}  # JSON, but not an object


# guidellm


class _Strategy(msgspec.Struct):
    type_: str
    streams: int | None = None
    rate: float | None = None

    @property
    def users(self) -> int | None:
        return {"concurrent": self.streams, "synchronous": 1}.get(self.type_)

    @property
    def name(self) -> str:
        size = self.streams or self.rate
        return f"{self.type_}@{size:g}" if size else self.type_


class _Backend(msgspec.Struct):
    target: str = "unknown"
    model: str | None = None


class _GuidellmConfig(msgspec.Struct):
    strategy: _Strategy
    backend: _Backend


class _Timings(msgspec.Struct):
    """Unix seconds. The chat's role chunk is no token iteration; reasoning is."""

    request_start: float | None = None
    resolve_end: float | None = None
    request_end: float | None = None
    targeted_start: float | None = None
    first_token_iteration: float | None = None
    first_output_token_iteration: float | None = None
    last_token_iteration: float | None = None
    token_iterations: int = 0


class _GuidellmInfo(msgspec.Struct):
    timings: _Timings
    conversation_id: str | None = None
    turn_index: int = 0
    error: str | None = None


class _Usage(msgspec.Struct):
    total_tokens: int | None = None
    cached_tokens: int | None = None


class _GuidellmRequest(msgspec.Struct):
    info: _GuidellmInfo
    input_metrics: _Usage
    output_metrics: _Usage

    def row(self, outcome: Outcome) -> Row | None:
        """None for a request that was still queued."""
        times = self.info.timings
        start, end = times.request_start, times.request_end or times.resolve_end
        if start is None or end is None:
            return None
        status = _status_in(self.info.error)
        return Row(
            start_unix_s=start,
            end_s=end - start,
            outcome=_failure(self.info.error or "", status) if outcome is Outcome.STREAM_ERROR else outcome,
            scheduled_unix_s=_or_nan(times.targeted_start),
            first_chunk_s=_or_nan(times.first_token_iteration) - start,
            first_answer_s=_or_nan(times.first_output_token_iteration) - start,
            last_chunk_s=_or_nan(times.last_token_iteration) - start,
            chunks=times.token_iterations,
            prompt_tokens=_or_nan(self.input_metrics.total_tokens),
            output_tokens=_or_nan(self.output_metrics.total_tokens) if outcome is Outcome.OK else NAN,
            cached_tokens=_or_nan(self.input_metrics.cached_tokens),
            http_status=200.0 if outcome is Outcome.OK else status,
            conversation=self.info.conversation_id,
            turn=self.info.turn_index,
        )


class _GuidellmRequests(msgspec.Struct):
    successful: list[_GuidellmRequest]
    incomplete: list[_GuidellmRequest]
    errored: list[_GuidellmRequest]

    def rows(self) -> list[Row]:
        kinds = (
            (self.successful, Outcome.OK),
            (self.incomplete, Outcome.CANCELLED),
            (self.errored, Outcome.STREAM_ERROR),
        )
        found = [request.row(outcome) for requests, outcome in kinds for request in requests]
        return [row for row in found if row is not None]


class _Totals(msgspec.Struct):
    successful: int


class _GuidellmMetrics(msgspec.Struct):
    request_totals: _Totals


class _GuidellmBenchmark(msgspec.Struct):
    config: _GuidellmConfig
    metrics: _GuidellmMetrics
    requests: _GuidellmRequests


class _Guidellm(msgspec.Struct):
    benchmarks: list[_GuidellmBenchmark]


def _guidellm(file: Path, data: bytes) -> Iterator[Stage]:
    benchmarks = msgspec.json.decode(data, type=_Guidellm).benchmarks
    if not benchmarks:
        raise InputError(f"{file} holds no benchmark: guidellm ended before the first one did.")
    for benchmark in benchmarks:
        kept, made = len(benchmark.requests.successful), benchmark.metrics.request_totals.successful
        if kept < made:
            raise InputError(
                f"{file} keeps {kept} of {made} requests: the load cannot be told from a sample. Run "
                "guidellm without a sample size."
            )
    backend = benchmarks[0].config.backend
    source = Source(
        path=file,
        tool="guidellm",
        model=backend.model or "unknown",
        host=_without_credentials(backend.target),
        lacks=[
            "guidellm keeps the times of the first and the last token only: chunk gaps (ITL) are missing, "
            "TPOT is not."
        ],
    )
    for benchmark in benchmarks:
        strategy = benchmark.config.strategy
        yield Stage(source=source, name=strategy.name, users=strategy.users, rows=benchmark.requests.rows())


# aiperf

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}


class _AiperfMetadata(msgspec.Struct):
    """Wall-clock nanoseconds."""

    request_start_ns: int
    request_end_ns: int
    benchmark_phase: str
    credit_issued_ns: int | None = None
    was_cancelled: bool = False
    x_correlation_id: str | None = None
    turn_index: int | None = None


class _Amount(msgspec.Struct):
    value: float
    unit: str

    @property
    def seconds(self) -> float:
        return self.value * _SECONDS[self.unit]


class _Amounts(msgspec.Struct):
    value: list[float]
    unit: str

    @property
    def seconds(self) -> list[float]:
        return [value * _SECONDS[self.unit] for value in self.value]


class _AiperfMetrics(msgspec.Struct):
    time_to_first_token: _Amount | None = None
    time_to_first_output_token: _Amount | None = None
    inter_chunk_latency: _Amounts | None = None
    http_req_connection_overhead: _Amount | None = None
    usage_prompt_tokens: _Amount | None = None
    usage_completion_tokens: _Amount | None = None
    usage_prompt_cache_read_tokens: _Amount | None = None
    input_sequence_length: _Amount | None = None
    output_sequence_length: _Amount | None = None


class _AiperfError(msgspec.Struct):
    message: str = ""
    code: int | None = None
    type: str | None = None


class _AiperfRecord(msgspec.Struct):
    metadata: _AiperfMetadata
    metrics: _AiperfMetrics
    error: _AiperfError | None = None

    def row(self) -> Row:
        """aiperf's TTFT starts before the connection is made; `sent_s` is when it was there."""
        about, seen = self.metadata, self.metrics
        first_s = _seconds(seen.time_to_first_token)
        gap_s = seen.inter_chunk_latency.seconds if seen.inter_chunk_latency else []
        outcome, status = self._outcome()
        return Row(
            start_unix_s=about.request_start_ns / 1e9,
            end_s=(about.request_end_ns - about.request_start_ns) / 1e9,
            outcome=outcome,
            sent_s=seen.http_req_connection_overhead.seconds if seen.http_req_connection_overhead else 0.0,
            scheduled_unix_s=NAN if about.credit_issued_ns is None else about.credit_issued_ns / 1e9,
            first_chunk_s=first_s,
            first_answer_s=_seconds(seen.time_to_first_output_token),
            last_chunk_s=first_s + sum(gap_s),
            chunks=0 if seen.time_to_first_token is None else 1 + len(gap_s),
            prompt_tokens=_count(seen.usage_prompt_tokens or seen.input_sequence_length),
            output_tokens=_count(seen.usage_completion_tokens or seen.output_sequence_length),
            cached_tokens=_count(seen.usage_prompt_cache_read_tokens),
            http_status=status,
            conversation=about.x_correlation_id,
            turn=about.turn_index or 0,
            gap_s=gap_s,
        )

    def _outcome(self) -> tuple[Outcome, float]:
        if self.metadata.was_cancelled:
            return Outcome.CANCELLED, NAN
        if self.error is None:
            return Outcome.OK, 200.0
        status = float(self.error.code) if self.error.code and self.error.code >= 300 else NAN
        return _failure(f"{self.error.type} {self.error.message}", status), status


def _seconds(amount: _Amount | None) -> float:
    return NAN if amount is None else amount.seconds


def _count(amount: _Amount | None) -> float:
    return NAN if amount is None else amount.value


class _AiperfPhase(msgspec.Struct):
    kind: str = "profiling"
    concurrency: int | None = None
    type: str = "unknown"


class _AiperfLoad(msgspec.Struct):
    concurrency: int | None = None
    request_rate: float | None = None


class _AiperfEndpoint(msgspec.Struct):
    urls: list[str] = []
    url: str | None = None
    model_names: list[str] = []


class _AiperfModels(msgspec.Struct):
    items: list[dict[str, object]] = []


class _AiperfInput(msgspec.Struct):
    """`phases` and `models`; in older versions `loadgen` and `endpoint.model_names`."""

    endpoint: _AiperfEndpoint
    models: _AiperfModels = msgspec.field(default_factory=_AiperfModels)
    phases: list[_AiperfPhase] = []
    loadgen: _AiperfLoad | None = None

    @property
    def model(self) -> str:
        names = [*self.endpoint.model_names, *(str(item.get("name")) for item in self.models.items)]
        return names[0] if names else "unknown"

    @property
    def host(self) -> str:
        return (self.endpoint.urls or [self.endpoint.url or "unknown"])[0]

    def load(self) -> tuple[int | None, str]:
        """Users, or None and the law of the arrivals."""
        if self.loadgen is not None:
            rate = self.loadgen.request_rate
            return (self.loadgen.concurrency or 1, "") if rate is None else (None, f"{rate:g}/s")
        phase = next((phase for phase in self.phases if phase.kind == "profiling"), _AiperfPhase())
        return (phase.concurrency, "") if phase.type == "concurrency" else (None, phase.type)


class _AiperfSummary(msgspec.Struct):
    input_config: _AiperfInput


def _aiperf(file: Path, lines: list[bytes]) -> Stage:
    records = [msgspec.json.decode(line, type=_AiperfRecord) for line in lines]
    config = _aiperf_config(file)
    users, law = config.load()
    rows = [record.row() for record in records if record.metadata.benchmark_phase == "profiling"]
    lacks = []
    if not any(record.metrics.usage_prompt_tokens for record in records):
        lacks.append(
            "Token counts are those of aiperf's own tokenizer, not of the server: run it with "
            "--use-server-token-count."
        )
    source = Source(
        path=file, tool="aiperf", model=config.model, host=_without_credentials(config.host), lacks=lacks
    )
    return Stage(source=source, name=f"concurrency@{users}" if users else law, users=users, rows=rows)


def _aiperf_config(file: Path) -> _AiperfInput:
    """What was asked stands in the summary beside the records."""
    beside = file.with_name("profile_export_aiperf.json")
    summary = beside if beside.is_file() else file.with_suffix(".json")
    if not summary.is_file():
        raise InputError(
            f"{file} does not say at what concurrency it was made: {beside.name} must lie beside it."
        )
    try:
        return msgspec.json.decode(summary.read_bytes(), type=_AiperfSummary).input_config
    except msgspec.DecodeError as problem:
        raise InputError(
            f"{summary} cannot be read ({problem}): it says the concurrency of {file.name}."
        ) from None


# vllm bench serve


class _VllmBench(msgspec.Struct):
    """Lists in the order of the requests, seconds. `start_times` by a clock that counts from the machine's
    start; older versions keep none (https://github.com/vllm-project/vllm/pull/32667)."""

    date: str
    model_id: str
    request_rate: float | str
    input_lens: list[int]
    output_lens: list[int]
    ttfts: list[float]
    itls: list[list[float]]
    errors: list[str]
    start_times: list[float] | None = None
    queue_times: list[float] | None = None
    max_concurrency: int | None = None
    endpoint_type: str = ""
    backend: str = ""

    def __post_init__(self) -> None:
        lists = (
            self.input_lens,
            self.output_lens,
            self.itls,
            self.errors,
            self.start_times,
            self.queue_times,
        )
        if any(one is not None and len(one) != len(self.ttfts) for one in lists):
            raise ValueError("its lists are of several lengths")

    @property
    def places(self) -> int | None:
        """Users: requests wait for one of these places and for nothing else."""
        return self.max_concurrency if self.request_rate == "inf" else None

    @property
    def role_chunks(self) -> bool:
        """Its first event is a chat's role chunk, sent with the first token: the first gap is no token's."""
        plain = [
            len(gaps) == tokens - 1
            for gaps, tokens in zip(self.itls, self.output_lens, strict=True)
            if tokens
        ]
        return "chat" in self.endpoint_type + self.backend and sum(plain) <= len(plain) / 2

    def row(self, number: int, *, start_unix_s: float, role_chunk: bool) -> Row:
        ttft, gaps, error = self.ttfts[number], self.itls[number], self.errors[number]
        status = _status_of(error)
        skipped = 1 if gaps and role_chunk else 0
        ok = not error and self.output_lens[number] > 0
        last_s = ttft + sum(gaps)
        return Row(
            start_unix_s=start_unix_s,
            end_s=last_s,
            outcome=Outcome.OK if ok else _failure(error, status) if error else Outcome.EMPTY,
            scheduled_unix_s=start_unix_s - self.queue_times[number] if self.queue_times else NAN,
            first_chunk_s=ttft + sum(gaps[:skipped]) if ok else NAN,
            last_chunk_s=last_s if ok else NAN,
            chunks=1 + len(gaps) - skipped if ok else 0,
            prompt_tokens=float(self.input_lens[number]),
            output_tokens=float(self.output_lens[number]) if ok else NAN,
            http_status=200.0 if ok else status,
            gap_s=gaps[skipped:] if ok else (),
        )

    def lives_s(self) -> list[float]:
        return [ttft + sum(gaps) for ttft, gaps in zip(self.ttfts, self.itls, strict=True)]


def _vllm_bench(file: Path, data: bytes, keys: set[str]) -> Stage:
    if "ttfts" not in keys:
        raise InputError(
            f"{file} holds no times of single requests: run vllm bench serve with --save-detailed."
        )
    found = msgspec.json.decode(data, type=_VllmBench)
    if not found.ttfts:
        raise InputError(f"{file} holds no request.")
    starts = found.start_times or _queued(file, found)
    ended = max(start + life for start, life in zip(starts, found.lives_s(), strict=True))
    zero_unix_s = _local_unix_s(file, found.date) - ended
    role = found.role_chunks
    rows = [
        found.row(number, start_unix_s=zero_unix_s + start, role_chunk=role)
        for number, start in enumerate(starts)
    ]
    source = Source(
        path=file,
        tool="vllm bench serve",
        model=found.model_id,
        host="unknown",
        lacks=_vllm_lacks(found, rows),
        whole_seconds=True,
    )
    name = f"concurrency@{found.places}" if found.places else f"rate@{found.request_rate}"
    return Stage(source=source, name=name, users=found.places, rows=rows)


def _vllm_lacks(found: _VllmBench, rows: Sequence[Row]) -> list[str]:
    lacks = ["vllm bench serve tells neither reasoning from answers nor cached from computed prompt tokens."]
    if found.start_times is None:
        lacks.append(
            "The files are of a vLLM that kept no start times (before 2026): they are rebuilt from the queue "
            "for --max-concurrency places."
        )
    if any(row.outcome is not Outcome.OK for row in rows):
        lacks.append("vllm bench serve does not say when a failed request ended: it counts as ended at once.")
    return lacks


def _queued(file: Path, found: _VllmBench) -> list[float]:
    """When each request got one of the places, which are taken in the order of the requests."""
    if found.places is None:
        raise InputError(f"{file} does not say when its requests began: use a newer vLLM.")
    free, starts = [0.0] * found.places, list[float]()
    for life_s in found.lives_s():
        starts.append(free[0])
        heapq.heapreplace(free, free[0] + life_s)
    return starts


def _local_unix_s(file: Path, date: str) -> float:
    """The middle of the whole second that the file was written in, by this machine's time zone."""
    try:
        return datetime.strptime(date, "%Y%m%d-%H%M%S").timestamp() + 0.5
    except ValueError:
        raise InputError(f"{file} has the date {date}, which is not one of vllm bench serve.") from None


# What the three share.


def _or_nan(value: float | None) -> float:
    return NAN if value is None else value


def _without_credentials(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _status_in(text: str | None) -> float:
    """httpx writes "Server error '503 Service Unavailable' for url ..."."""
    found = re.search(r"'([345]\d\d) ", text or "")
    return float(found[1]) if found else NAN


def _status_of(reason: str) -> float:
    """vllm bench serve keeps the reason phrase only."""
    return next((float(status) for status in HTTPStatus if status.phrase == reason), NAN)


def _failure(text: str, status: float) -> Outcome:
    """What an exception's name and words say; an error inside a stream where they say nothing."""
    if not np.isnan(status):
        return Outcome.HTTP_ERROR
    words = text.lower()
    if "timeout" in words or "timed out" in words:
        return Outcome.TIMEOUT
    if "disconnect" in words:
        return Outcome.DISCONNECTED
    return Outcome.CONNECT_ERROR if "connect" in words else Outcome.STREAM_ERROR

"""Reader of aiperf's profile_export.jsonl, which has one line per request, and of the summary beside it."""

from pathlib import Path

import msgspec

from analysis.reading.columns import NAN
from analysis.reading.other_tools.stages import (
    Document,
    LoadStage,
    ResultFile,
    ResultRow,
    failure_of,
    url_without_credentials,
)
from loadtest.errors import InputError
from loadtest.record import Outcome

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}


class _AiperfMetadata(msgspec.Struct):
    """Times of one request, in nanoseconds since 1970, and its place in a conversation."""

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

    def row(self) -> ResultRow:
        """Returns the request as a row.

        aiperf counts TTFT from before it connects to the server. `sent_s` is the moment at which the
        connection is ready, so that the time to connect can be left out.
        """
        about, metrics = self.metadata, self.metrics
        first_s = _seconds(metrics.time_to_first_token)
        gap_s = metrics.inter_chunk_latency.seconds if metrics.inter_chunk_latency else []
        outcome, status = self._outcome()
        return ResultRow(
            start_unix_s=about.request_start_ns / 1e9,
            end_s=(about.request_end_ns - about.request_start_ns) / 1e9,
            outcome=outcome,
            sent_s=metrics.http_req_connection_overhead.seconds
            if metrics.http_req_connection_overhead
            else 0.0,
            scheduled_unix_s=NAN if about.credit_issued_ns is None else about.credit_issued_ns / 1e9,
            first_chunk_s=first_s,
            first_answer_s=_seconds(metrics.time_to_first_output_token),
            last_chunk_s=first_s + sum(gap_s),
            chunks=0 if metrics.time_to_first_token is None else 1 + len(gap_s),
            prompt_tokens=_tokens(metrics.usage_prompt_tokens or metrics.input_sequence_length),
            output_tokens=_tokens(metrics.usage_completion_tokens or metrics.output_sequence_length),
            cached_tokens=_tokens(metrics.usage_prompt_cache_read_tokens),
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
        return failure_of(f"{self.error.type} {self.error.message}", status), status


def _seconds(amount: _Amount | None) -> float:
    return NAN if amount is None else amount.seconds


def _tokens(amount: _Amount | None) -> float:
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
    """Settings that aiperf was started with.

    New versions write `phases` and `models`. Older versions write `loadgen` and `endpoint.model_names`.
    """

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
        """Returns (users, "") if the number of users is constant. Otherwise returns (None, name).

        The name is that of the arrival process: its rate, such as `5/s`, or its type.
        """
        if self.loadgen is not None:
            rate = self.loadgen.request_rate
            return (self.loadgen.concurrency or 1, "") if rate is None else (None, f"{rate:g}/s")
        phase = next((phase for phase in self.phases if phase.kind == "profiling"), _AiperfPhase())
        return (phase.concurrency, "") if phase.type == "concurrency" else (None, phase.type)


class _AiperfSummary(msgspec.Struct):
    input_config: _AiperfInput


def read_aiperf(file: Path, documents: list[Document]) -> list[LoadStage]:
    """Returns a list of one stage, because a run of aiperf has one concurrency.

    Raises InputError if the summary beside the file is missing or cannot be read.
    """
    records = [msgspec.json.decode(document.data, type=_AiperfRecord) for document in documents]
    config = _config(file)
    users, arrivals = config.load()
    rows = [record.row() for record in records if record.metadata.benchmark_phase == "profiling"]
    lacks = []
    if not any(record.metrics.usage_prompt_tokens for record in records):
        lacks.append(
            "Token counts are those of aiperf's own tokenizer, not of the server: run it with "
            "--use-server-token-count."
        )
    source = ResultFile(
        path=file, tool="aiperf", model=config.model, host=url_without_credentials(config.host), lacks=lacks
    )
    return [
        LoadStage(source=source, name=f"concurrency@{users}" if users else arrivals, users=users, rows=rows)
    ]


def _config(file: Path) -> _AiperfInput:
    """Reads aiperf's settings from the summary beside the records.

    Raises InputError if the summary is missing or cannot be read.
    """
    beside = file.with_name("profile_export_aiperf.json")
    summary = beside if beside.is_file() else file.with_suffix(".json")
    if not summary.is_file():
        raise InputError(f"{file} does not say its concurrency: {beside.name} must lie beside it.")
    try:
        return msgspec.json.decode(summary.read_bytes(), type=_AiperfSummary).input_config
    except msgspec.DecodeError as problem:
        raise InputError(
            f"{summary} cannot be read ({problem}): it holds the concurrency of {file.name}."
        ) from None

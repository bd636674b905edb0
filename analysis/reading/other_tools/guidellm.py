"""Reader of guidellm's JSON report, which has a benchmark for each concurrency or rate."""

from pathlib import Path

import msgspec

from analysis.reading.columns import NAN
from analysis.reading.other_tools.stages import (
    Document,
    LoadStage,
    ResultFile,
    ResultRow,
    failure_of,
    number_or_nan,
    status_in,
    url_without_credentials,
)
from loadtest.errors import InputError
from loadtest.record import Outcome


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
    """Times of one request, in seconds since 1970.

    A "token iteration" is guidellm's name for a chunk with text or reasoning. A chat's first chunk, which
    holds only the role, is not counted.
    """

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

    def row(self, outcome: Outcome) -> ResultRow | None:
        """Returns the request as a row; None if the request was never sent."""
        times = self.info.timings
        start, end = times.request_start, times.request_end or times.resolve_end
        if start is None or end is None:
            return None
        status = status_in(self.info.error)
        return ResultRow(
            start_unix_s=start,
            end_s=end - start,
            outcome=failure_of(self.info.error or "", status) if outcome is Outcome.STREAM_ERROR else outcome,
            scheduled_unix_s=number_or_nan(times.targeted_start),
            first_chunk_s=number_or_nan(times.first_token_iteration) - start,
            first_answer_s=number_or_nan(times.first_output_token_iteration) - start,
            last_chunk_s=number_or_nan(times.last_token_iteration) - start,
            chunks=times.token_iterations,
            prompt_tokens=number_or_nan(self.input_metrics.total_tokens),
            output_tokens=number_or_nan(self.output_metrics.total_tokens) if outcome is Outcome.OK else NAN,
            cached_tokens=number_or_nan(self.input_metrics.cached_tokens),
            http_status=200.0 if outcome is Outcome.OK else status,
            conversation=self.info.conversation_id,
            turn=self.info.turn_index,
        )


class _GuidellmRequests(msgspec.Struct):
    successful: list[_GuidellmRequest]
    incomplete: list[_GuidellmRequest]
    errored: list[_GuidellmRequest]

    def rows(self) -> list[ResultRow]:
        groups = (
            (self.successful, Outcome.OK),
            (self.incomplete, Outcome.CANCELLED),
            (self.errored, Outcome.STREAM_ERROR),
        )
        rows = [request.row(outcome) for requests, outcome in groups for request in requests]
        return [row for row in rows if row is not None]


class _Totals(msgspec.Struct):
    successful: int


class _GuidellmMetrics(msgspec.Struct):
    request_totals: _Totals


class _GuidellmBenchmark(msgspec.Struct):
    config: _GuidellmConfig
    metrics: _GuidellmMetrics
    requests: _GuidellmRequests


class _GuidellmReport(msgspec.Struct):
    benchmarks: list[_GuidellmBenchmark]


def read_guidellm(file: Path, documents: list[Document]) -> list[LoadStage]:
    """Returns a stage for each benchmark of the report.

    Raises InputError if the report has no benchmark or keeps only a sample of the requests.
    """
    benchmarks = msgspec.json.decode(documents[0].data, type=_GuidellmReport).benchmarks
    if not benchmarks:
        raise InputError(f"{file} holds no benchmark: guidellm ended before its first benchmark did.")
    for benchmark in benchmarks:
        kept, made = len(benchmark.requests.successful), benchmark.metrics.request_totals.successful
        if kept < made:
            raise InputError(
                f"{file} keeps {kept} of {made} requests: the load cannot be told from a sample. Run "
                "guidellm without a sample size."
            )
    backend = benchmarks[0].config.backend
    source = ResultFile(
        path=file,
        tool="guidellm",
        model=backend.model or "unknown",
        host=url_without_credentials(backend.target),
        lacks=[
            "guidellm keeps the times of the first and the last token only: chunk gaps (ITL) are missing, "
            "TPOT is not."
        ],
    )
    return [
        LoadStage(
            source=source,
            name=benchmark.config.strategy.name,
            users=benchmark.config.strategy.users,
            rows=benchmark.requests.rows(),
        )
        for benchmark in benchmarks
    ]

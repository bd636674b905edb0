"""Reader of the JSON files of `vllm bench serve`. A file holds the result of one run or of several runs."""

import heapq
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from analysis.reading.columns import NAN
from analysis.reading.other_tools.stages import (
    Document,
    LoadStage,
    ResultFile,
    ResultRow,
    failure_of,
    status_of,
)
from loadtest.errors import InputError
from loadtest.record import Outcome


class _VllmBenchResult(msgspec.Struct):
    """Result of one run: lists with one value per request, all in the same order; times in seconds.

    `start_times` are by a clock that counts from the machine's start. Older versions do not write
    `start_times` (https://github.com/vllm-project/vllm/pull/32667).
    """

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
        if any(values is not None and len(values) != len(self.ttfts) for values in lists):
            raise ValueError("its lists are of several lengths")

    @property
    def users(self) -> int | None:
        """Number of concurrent users; None if requests come at a rate or without a limit."""
        return self.max_concurrency if self.request_rate == "inf" else None

    @property
    def role_chunks(self) -> bool:
        """Whether answers begin with a chunk that holds only the role, as in a chat.

        The first gap of such an answer is not a gap between tokens.
        """
        plain = [
            len(gaps) == tokens - 1
            for gaps, tokens in zip(self.itls, self.output_lens, strict=True)
            if tokens
        ]
        return "chat" in self.endpoint_type + self.backend and sum(plain) <= len(plain) / 2

    def row(self, number: int, *, start_unix_s: float, role_chunk: bool) -> ResultRow:
        ttft, gaps, error = self.ttfts[number], self.itls[number], self.errors[number]
        status = status_of(error)
        skipped = 1 if gaps and role_chunk else 0
        ok = not error and self.output_lens[number] > 0
        last_s = ttft + sum(gaps)
        return ResultRow(
            start_unix_s=start_unix_s,
            end_s=last_s,
            outcome=Outcome.OK if ok else failure_of(error, status) if error else Outcome.EMPTY,
            scheduled_unix_s=start_unix_s - self.queue_times[number] if self.queue_times else NAN,
            first_chunk_s=ttft + sum(gaps[:skipped]) if ok else NAN,
            last_chunk_s=last_s if ok else NAN,
            chunks=1 + len(gaps) - skipped if ok else 0,
            prompt_tokens=float(self.input_lens[number]),
            output_tokens=float(self.output_lens[number]) if ok else NAN,
            http_status=200.0 if ok else status,
            gap_s=gaps[skipped:] if ok else (),
        )

    def durations_s(self) -> list[float]:
        """Returns, for each request, the seconds from sending it to its last token."""
        return [ttft + sum(gaps) for ttft, gaps in zip(self.ttfts, self.itls, strict=True)]


def read_vllm_bench(file: Path, documents: list[Document]) -> list[LoadStage]:
    """Returns a stage for each result in the file.

    Raises InputError for a result without the times of single requests.
    """
    return [_stage(file, document) for document in documents]


def _stage(file: Path, document: Document) -> LoadStage:
    if "ttfts" not in document.keys:
        raise InputError(
            f"{file} holds no times of single requests: run vllm bench serve with --save-detailed."
        )
    result = msgspec.json.decode(document.data, type=_VllmBenchResult)
    if not result.ttfts:
        raise InputError(f"{file} holds no request.")
    starts = result.start_times or _starts_from_queue(file, result)
    ended = max(start + duration for start, duration in zip(starts, result.durations_s(), strict=True))
    clock_zero_unix_s = _local_unix_s(file, result.date) - ended
    role = result.role_chunks
    rows = [
        result.row(number, start_unix_s=clock_zero_unix_s + start, role_chunk=role)
        for number, start in enumerate(starts)
    ]
    source = ResultFile(
        path=file,
        tool="vllm bench serve",
        model=result.model_id,
        host="unknown",
        lacks=_lacks(result, rows),
        whole_seconds=True,
    )
    name = f"concurrency@{result.users}" if result.users else f"rate@{result.request_rate}"
    return LoadStage(source=source, name=name, users=result.users, rows=rows)


def _lacks(result: _VllmBenchResult, rows: Sequence[ResultRow]) -> list[str]:
    lacks = ["vllm bench serve tells neither reasoning from answers nor cached from computed prompt tokens."]
    if result.start_times is None:
        lacks.append(
            "These files are of a vLLM that kept no start times (before 2026): a request is taken to begin "
            "as soon as one of --max-concurrency users is free."
        )
    if any(row.outcome is not Outcome.OK for row in rows):
        lacks.append(
            "vllm bench serve does not say when a failed request ended: it is counted as ended at once."
        )
    return lacks


def _starts_from_queue(file: Path, result: _VllmBenchResult) -> list[float]:
    """Returns an estimate of when each request was sent, in seconds after the first.

    Requests are taken to be sent in their order, each as soon as a user is free. Raises InputError if the
    number of users is not constant.
    """
    if result.users is None:
        raise InputError(f"{file} does not say when its requests began: use a newer vLLM.")
    free, starts = [0.0] * result.users, list[float]()
    for duration_s in result.durations_s():
        starts.append(free[0])
        heapq.heapreplace(free, free[0] + duration_s)
    return starts


def _local_unix_s(file: Path, date: str) -> float:
    """Returns the time at which the file was written, in seconds since 1970.

    The file's date has whole seconds; the middle of the second is returned. The date is read in this
    machine's time zone. Raises InputError for a date of another form.
    """
    try:
        return datetime.strptime(date, "%Y%m%d-%H%M%S").timestamp() + 0.5
    except ValueError:
        raise InputError(f"{file} has the date {date}, which vllm bench serve does not write.") from None

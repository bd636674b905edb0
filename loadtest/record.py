"""The rows and records of a run folder: the contract between load test and analysis.

Rows hold facts (instants, counts, outcome), never metrics, so that the definition of a metric can be
corrected without running the GPU again. JSON Lines; seconds and bytes; a missing value is null, never 0.
Knows no I/O.
"""

from enum import StrEnum

import msgspec

RUN_SCHEMA = 1
RUN_FILE = "run.json"
SERVER_FILE = "server.jsonl"
REQUESTS_GLOB = "requests-*.jsonl"
CLIENT_GLOB = "client-*.jsonl"


class Outcome(StrEnum):
    """What became of one attempted request."""

    OK = "ok"
    HTTP_ERROR = "http_error"
    """A status other than 200."""
    CONNECT_ERROR = "connect_error"
    """No connection could be made."""
    DISCONNECTED = "disconnected"
    """The connection was lost, or what came was not HTTP, before a status line."""
    STREAM_ERROR = "stream_error"
    """An error object, a reset or something unreadable inside a 200."""
    TRUNCATED = "truncated"
    """The stream ended without `[DONE]` and without a finish reason."""
    EMPTY = "empty"
    """The stream finished without any content."""
    TIMEOUT = "timeout"
    """Our time limit for the whole request passed."""
    CANCELLED = "cancelled"
    """We ended the request. Not an error of the server; TTFT and E2E are right-censored."""


class Slo(msgspec.Struct, kw_only=True, frozen=True):
    """Service-level objectives: what a level must meet for its users to count as served well."""

    ttft_p95_s: float = 2.0
    tpot_p95_s: float = 0.1
    preempted_fraction: float = 0.01
    """Preemptions per finished request."""
    kv_blocked_fraction: float = 0.1
    """Fraction of the time in which a request waits for KV blocks."""


class RequestRecord(msgspec.Struct, kw_only=True, frozen=True):
    """One attempted request. Fields that end in `_s`, but not in `_unix_s`, are seconds after `start_unix_s`
    by a monotonic clock."""

    schema: int = RUN_SCHEMA
    request_id: str
    """Also sent as the `X-Request-Id` header."""
    model: str
    scenario: str
    worker: str
    user: int
    turn: int
    """0 for the first turn of a conversation."""
    level_users: int | None
    """Users of the level in which the request started; null while users are being started or stopped."""
    scheduled_unix_s: float | None = None
    """When the request was due (open loop)."""
    start_unix_s: float
    sent_s: float | None = None
    """When the request's bytes were handed to the socket."""
    headers_s: float | None = None
    chunk_s: list[float] = msgspec.field(default_factory=list)
    """When each event with content, reasoning or a tool call arrived."""
    first_answer_s: float | None = None
    """When the first content that is not reasoning arrived."""
    end_s: float
    chunk_kinds: str = ""
    """One letter for each entry of `chunk_s`: c(ontent), r(easoning), t(ool call)."""
    chunk_tokens: list[int] | None = None
    """Tokens of each entry of `chunk_s`; null unless the server sent running usage."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    max_tokens: int
    finish_reason: str | None = None
    outcome: Outcome
    http_status: int | None = None
    error: str | None = None


class ServerSample(msgspec.Struct, kw_only=True, frozen=True):
    """The state of the server at one scrape: one row for each engine (data parallel). Only the first engine's
    row has the GPU figures."""

    unix_s: float
    engine: str | None = None
    running: float | None = None
    waiting: float | None = None
    waiting_capacity: float | None = None
    kv_cache_usage: float | None = None
    """Fraction of the pool's blocks that running requests hold, 0 to 1."""
    preemptions_total: float | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_cache_queries_total: float | None = None
    prefix_cache_hits_total: float | None = None
    finished_total: float | None = None
    """`vllm:request_success_total`, summed over all reasons."""
    rejections_total: float | None = None
    vram_used_bytes: int | None = None
    """Memory used on all GPUs together."""
    vram_used_bytes_each: list[int] | None = None
    gpu_util: float | None = None
    """Utilisation, the mean over the GPUs, 0 to 1."""
    simulated_lateness_s: float | None = None
    """Error of the embedded server itself: the largest delay of its tokens in the last ten seconds."""
    error: str | None = None


class ClientSample(msgspec.Struct, kw_only=True, frozen=True):
    """The health of one load generator process, once a second."""

    unix_s: float
    loop_lag_max_s: float
    """Largest delay of a timer on the event loop since the last row."""
    loop_lag_p99_s: float | None = None
    cpu: float
    """CPU seconds per second of this process since the last row (all threads: may exceed 1)."""
    in_flight: int
    """Requests that have started and not ended."""
    started_total: int
    ended_total: int
    due_to_sent_max_s: float | None = None
    """Largest delay from due to sent since the last row (open loop)."""
    rss_peak_bytes: int | None = None


class ServerInfo(msgspec.Struct, kw_only=True, frozen=True):
    """What the server reports about itself; null where it reports nothing."""

    engine: str | None = None
    version: str | None = None
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    block_size: int | None = None
    num_gpu_blocks: int | None = None
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool | None = None
    cache_dtype: str | None = None
    kv_bytes_per_token: int | None = None
    """Read from the model's config.json (`model_config`), else from `cache_config_info` where that is
    reliable."""
    simulated: str | None = None
    """The preset, when the server reports that it is Seatcount's embedded one."""


class GpuInfo(msgspec.Struct, kw_only=True, frozen=True):
    """The GPUs of the server."""

    name: str | None
    count: int
    vram_bytes: int | None
    """Memory of all GPUs together."""


class ArrivalsInfo(msgspec.Struct, kw_only=True):
    """The arrival process of an open loop."""

    law: str | None
    """The setting `arrivals`; null when a trace was replayed."""
    trace: str | None = None
    """Name of the trace file."""
    trace_speed: float = 1.0
    start_unix_s: float
    end_unix_s: float
    """Updated while the run goes on."""


class ClientInfo(msgspec.Struct, kw_only=True, frozen=True):
    """The software and the machine that generated the load."""

    python: str
    locust: str
    aiohttp: str
    cpu_count: int


class WorkerInfo(msgspec.Struct, kw_only=True, frozen=True):
    """One worker of a distributed run."""

    name: str
    clock_offset_s: float | None = None
    """Clock of the worker minus clock of the master; null when not measured (same host)."""


class RunInfo(msgspec.Struct, kw_only=True):
    """The content of `run.json`: what was run, and against which server. The file is rewritten during the
    run."""

    schema: int = RUN_SCHEMA
    run_id: str
    model: str
    scenario: str
    host: str
    """Address of the server, without credentials."""
    started_unix_s: float
    ended_unix_s: float | None = None
    """Null while the run goes on, and when it was killed."""
    settings: dict[str, object]
    """All settings except secrets."""
    server: ServerInfo = msgspec.field(default_factory=ServerInfo)
    gpu: GpuInfo | None = None
    schedule: list[tuple[float, float, int]] = msgspec.field(default_factory=list)
    """One (start_unix_s, end_unix_s, users) for each level, from the moment all its users have started. The
    end of the last level is updated while it runs."""
    arrivals: ArrivalsInfo | None = None
    """Null in a closed loop. An open loop has no users, and so an empty schedule."""
    workers: list[WorkerInfo] = msgspec.field(default_factory=list)
    client: ClientInfo | None = None
    warnings: list[str] = msgspec.field(default_factory=list)
    """Warnings of the load test that the analysis repeats, such as foreign load or clipped lengths."""


class SearchState(msgspec.Struct, kw_only=True, frozen=True):
    """The state of a search that its advisor is asked about, as one JSON line. The rows are in the run
    folder."""

    holding: int | None = None
    """Users of the current level; null before the first level and between two levels."""
    held_s: float = 0.0
    """Seconds since the current level began."""
    left_s: float
    """Seconds of the budget that are left."""


class SearchAdvice(msgspec.Struct, kw_only=True, frozen=True):
    """The advisor's answer to a `SearchState`, as one JSON line."""

    users: int | None
    """Users of the next level. Null ends the search: the question is answered, or more load would not answer
    it."""
    look_s: float
    """Seconds until the advisor should be asked again."""
    why: str
    """The reason in a few words, shown when the number of users changes."""
    line: str
    """The answer so far, in one line."""


def encode_line(row: RequestRecord | ServerSample | ClientSample) -> bytes:
    """Encodes a row as one JSON line. Takes about 6 us for 200 chunks."""
    return _encoder.encode(row) + b"\n"


_encoder = msgspec.json.Encoder(decimal_format="number")

"""The contract between measuring and analysing: what stands in a run folder.

Rows hold facts (instants, counts, outcome), never metrics, so that a definition can be corrected without
running a GPU again. JSON Lines; seconds and bytes; missing is null, never 0. Knows no I/O.
"""

from enum import StrEnum

import msgspec

SCHEMA = 1
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
    """No connection."""
    DISCONNECTED = "disconnected"
    """The connection was lost, or what came was not HTTP, before a status line."""
    STREAM_ERROR = "stream_error"
    """An error object, a reset or something unreadable inside a 200."""
    TRUNCATED = "truncated"
    """The stream ended without `[DONE]` and without a finish reason."""
    EMPTY = "empty"
    """Finished without any content."""
    TIMEOUT = "timeout"
    """Our limit for the whole request passed."""
    CANCELLED = "cancelled"
    """Ended by us. Not the server's error; right-censors TTFT and E2E."""


class Slo(msgspec.Struct, kw_only=True, frozen=True):
    """Service-level objectives: what a level must meet to count as holding its users."""

    ttft_p95_s: float = 2.0
    tpot_p95_s: float = 0.1
    preempted_fraction: float = 0.01
    """Preemptions for each finished request."""
    kv_blocked_fraction: float = 0.1
    """Share of time in which a request waits for KV blocks."""


class RequestRecord(msgspec.Struct, kw_only=True, frozen=True):
    """One attempted request. Fields ending in `_s` without `unix` are seconds after `start_unix_s`, by a
    monotonic clock."""

    schema: int = SCHEMA
    request_id: str
    """Also sent as the `X-Request-Id` header."""
    model: str
    scenario: str
    worker: str
    user: int
    turn: int
    """0 for the first turn of a conversation."""
    level_users: int | None
    """Users of the level in which it started; null while users are being started or stopped."""
    scheduled_unix_s: float | None = None
    """Open loop: when it was due."""
    start_unix_s: float
    sent_s: float | None = None
    """The request's bytes were handed to the socket."""
    headers_s: float | None = None
    chunk_s: list[float] = msgspec.field(default_factory=list)
    """Arrival of each content-bearing event: content, reasoning or tool call."""
    first_answer_s: float | None = None
    """Arrival of the first content that is not reasoning."""
    end_s: float
    chunk_kinds: str = ""
    """One letter for each of `chunk_s`: c(ontent), r(easoning), t(ool call)."""
    chunk_tokens: list[int] | None = None
    """Tokens of each of `chunk_s`, where the server sent running usage."""
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
    """The server at one instant, one row for each engine (data parallel) and scrape. GPU figures stand in
    the first engine's row only."""

    unix_s: float
    engine: str | None = None
    running: float | None = None
    waiting: float | None = None
    waiting_capacity: float | None = None
    kv_cache_usage: float | None = None
    """Share of the pool's blocks that live requests hold, 0 to 1."""
    preemptions_total: float | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_cache_queries_total: float | None = None
    prefix_cache_hits_total: float | None = None
    finished_total: float | None = None
    """`vllm:request_success_total`, all reasons."""
    rejections_total: float | None = None
    vram_used_bytes: int | None = None
    """All GPUs together."""
    vram_used_bytes_each: list[int] | None = None
    gpu_util: float | None = None
    """Mean over the GPUs, 0 to 1."""
    simulated_lateness_s: float | None = None
    """The embedded server's own error: how late its tokens were at most, in the last ten seconds."""
    error: str | None = None


class ClientSample(msgspec.Struct, kw_only=True, frozen=True):
    """The load generator's own health, once a second, one process."""

    unix_s: float
    loop_lag_max_s: float
    """Largest delay of a timer on the measuring loop since the last row."""
    loop_lag_p99_s: float | None = None
    cpu: float
    """CPU seconds of this process a second since the last row (all threads: may exceed 1)."""
    in_flight: int
    """Requests started and not ended, at this instant."""
    started_total: int
    ended_total: int
    due_to_sent_max_s: float | None = None
    """Open loop: largest delay from due to sent since the last row."""
    rss_peak_bytes: int | None = None


class ServerInfo(msgspec.Struct, kw_only=True, frozen=True):
    """What the server says of itself; null where it does not say."""

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
    """From the model's config.json (`model_config`), else from `cache_config_info` where that is sound."""
    simulated: str | None = None
    """The preset, when the server says that it is Seatcount's embedded one."""


class GpuInfo(msgspec.Struct, kw_only=True, frozen=True):
    name: str | None
    count: int
    vram_bytes: int | None
    """All GPUs together."""


class ArrivalsInfo(msgspec.Struct, kw_only=True):
    """Open loop: by which law requests came."""

    law: str | None
    """As in the setting `arrivals`; null when a trace was replayed."""
    trace: str | None = None
    """The file's name."""
    trace_speed: float = 1.0
    start_unix_s: float
    end_unix_s: float
    """Moves while the run goes on."""


class ClientInfo(msgspec.Struct, kw_only=True, frozen=True):
    python: str
    locust: str
    aiohttp: str
    cpu_count: int


class WorkerInfo(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    clock_offset_s: float | None = None
    """Worker clock minus master clock; null when not measured (same host)."""


class RunInfo(msgspec.Struct, kw_only=True):
    """`run.json`: what was run, against what. Rewritten whole as the run goes on."""

    schema: int = SCHEMA
    run_id: str
    model: str
    scenario: str
    host: str
    """Without credentials."""
    started_unix_s: float
    ended_unix_s: float | None = None
    """Null while running, or when the run was killed."""
    settings: dict[str, object]
    """Secrets left out."""
    server: ServerInfo = msgspec.field(default_factory=ServerInfo)
    gpu: GpuInfo | None = None
    schedule: list[tuple[float, float, int]] = msgspec.field(default_factory=list)
    """start_unix_s, end_unix_s, users of every plateau with constant users, all of them started. The end
    of the last one moves while it runs."""
    arrivals: ArrivalsInfo | None = None
    """Null in a closed loop. An open loop has no users, and no schedule of them."""
    workers: list[WorkerInfo] = msgspec.field(default_factory=list)
    client: ClientInfo | None = None
    warnings: list[str] = msgspec.field(default_factory=list)
    """What the load test noticed and the analysis must repeat: foreign load, clipped lengths, ..."""


class SearchState(msgspec.Struct, kw_only=True, frozen=True):
    """What a search asks its advisor, one JSON line: where it stands now. The rows are in the run folder."""

    holding: int | None = None
    """Users of the plateau under way; null before the first one and between two."""
    held_s: float = 0.0
    """For so long."""
    left_s: float
    """Of the budget."""


class SearchAdvice(msgspec.Struct, kw_only=True, frozen=True):
    """The advisor's answer to a `SearchState`, one JSON line."""

    users: int | None
    """To hold from now on; null: stop, nothing more can be learnt, or the question is answered."""
    look_s: float
    """From now until the next look is worth it."""
    why: str
    """A few words for when users change."""
    line: str
    """The answer as of now."""


def encode_line(row: RequestRecord | ServerSample | ClientSample) -> bytes:
    """One JSON line. About 6 us for 200 chunks."""
    return _encoder.encode(row) + b"\n"


_encoder = msgspec.json.Encoder(decimal_format="number")

"""The rows and records of a run folder: the contract between load test and analysis.

Rows hold facts (instants, counts, outcome), never metrics, so that the definition of a metric can be
corrected without running the GPU again. Rows are JSON Lines; times are in seconds, sizes in bytes; a missing
value is null, never 0. Knows no I/O.
"""

from enum import StrEnum
from typing import Any

import msgspec

RUN_SCHEMA = 1
RUN_FILE = "run.json"
SERVER_FILE = "server.jsonl"
REQUESTS_GLOB = "requests-*.jsonl"
CLIENT_GLOB = "client-*.jsonl"
NO_METRICS = "No vLLM metrics ("
"""How the warning of `run.json` begins that says why no metrics were found at the start."""


class Outcome(StrEnum):
    """How one attempted request ended."""

    OK = "ok"
    HTTP_ERROR = "http_error"
    """The server answered with a status other than 200."""
    NOT_SENT = "not_sent"
    """The request could not leave the load generator, for example because no file could be opened or the
    host's name is unknown. This says nothing about the server."""
    CONNECT_ERROR = "connect_error"
    """The server refused the connection, or did not accept it in time."""
    DISCONNECTED = "disconnected"
    """Before a status line came, the connection was lost or the server sent something that is not HTTP."""
    STREAM_ERROR = "stream_error"
    """An answer with status 200 was no event stream, held an error or an unreadable event, or was reset."""
    TRUNCATED = "truncated"
    """The stream ended without `[DONE]` and without a finish reason."""
    EMPTY = "empty"
    """The stream ended properly but held no content, reasoning or tool call."""
    TIMEOUT = "timeout"
    """The request was sent, and did not end within its time limit (`request_timeout_s`): evidence about the
    server. TTFT and E2E are right-censored at the limit."""
    CANCELLED = "cancelled"
    """The load test ended the request. This is no error of the server; TTFT and E2E are right-censored."""


OVERLOAD_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})
"""HTTP statuses by which a server or a gateway says that it cannot serve a request now."""


def has_failed(outcome: Outcome) -> bool:
    """Whether a request with this outcome counts as an error. The live line, Locust's table and the report
    all count these."""
    return outcome not in (Outcome.OK, Outcome.CANCELLED)


def failure_kind(outcome: Outcome, http_status: int | None) -> str:
    """Returns the name of a kind of failure: the HTTP status if that is the failure, else the outcome. The
    live line, Locust's table and the report use these names."""
    is_status = outcome is Outcome.HTTP_ERROR and http_status is not None
    return str(http_status) if is_status else outcome.value


def may_be_overload(outcome: Outcome, http_status: int | None) -> bool:
    """Whether load can be the cause of this outcome.

    True for answers with a status in OVERLOAD_STATUSES, and for connections, streams and requests that broke
    or took too long. Not true for a request that is refused for what it asks (400 and most other 4xx), for an
    empty answer, or for a request that never left the load generator.
    """
    if outcome is Outcome.HTTP_ERROR:
        return http_status in OVERLOAD_STATUSES
    return outcome in (
        Outcome.CONNECT_ERROR,
        Outcome.DISCONNECTED,
        Outcome.STREAM_ERROR,
        Outcome.TRUNCATED,
        Outcome.TIMEOUT,
    )


class Slo(msgspec.Struct, kw_only=True, frozen=True):
    """Service-level objectives (SLO). The users of a level count as served well if no measured value is
    larger than its objective."""

    ttft_p95_s: float = 2.0
    """Largest 95th percentile of the time to first token, in seconds."""
    tpot_p95_s: float = 0.1
    """Largest 95th percentile of the time per output token, in seconds."""
    preempted_fraction: float = 0.01
    """Largest number of preemptions per finished request."""
    kv_blocked_fraction: float = 0.1
    """Largest fraction of the time in which a request waits for KV blocks."""
    prefix_hit_fraction: float | None = None
    """Smallest share of the low-load prefix-cache hit rate that must be kept; None: no objective."""
    stall_p95_s: float | None = None
    """Largest 95th percentile of the longest gap between two events of an answer, in seconds; None: no
    objective."""


class ClassObjectives(msgspec.Struct, kw_only=True, frozen=True):
    """The objectives that one class of users has of its own; null: those of the run hold."""

    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    stall_p95_s: float | None = None

    def over(self, slo: Slo) -> Slo:
        """Returns the objectives that hold for the class: its own, and those of the run where it has none."""
        own = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(slo, **own)


class UserClass(msgspec.Struct, kw_only=True, frozen=True):
    """One class of a workload file: users who ask the same kind of questions. Texts are distributions, in the
    forms of the setting `prompt_tokens`; `docs/workloads.md` describes every field."""

    name: str
    """Name of the class; empty for the users of a run without a workload file."""
    weight: float = 1.0
    """Share of the users, as a number relative to the weights of the other classes."""
    shared_tokens: int = 0
    """Text that every conversation of the class begins with, such as a system prompt."""
    shared_prompts: int = 1
    """Number of different shared texts; each conversation begins with one of them."""
    shared_zipf: float = 0.0
    """Exponent of the popularity of the shared texts: the one of rank r is drawn in proportion to
    1 / r ** shared_zipf."""
    context_tokens: str = "0"
    """Text that a conversation begins with and that no other has, such as a document."""
    prompt_tokens: str
    """New text of a turn. The request also sends the shared text, the context and the history."""
    output_tokens: str
    turns: str = "1"
    """Turns of a conversation: what a person asks, one after the other."""
    steps: str = "1"
    """Requests of a turn: the person's own, and one more for each answer of a tool."""
    tool_tokens: str | None = None
    """New text of each further step, the answer of a tool; null if turns have one step."""
    think_s: str = "0"
    """Pause of a person, between the last answer of a turn and the next turn."""
    tool_s: str = "0"
    """Pause between two steps of a turn, in which a tool works."""
    temperature: float | None = None
    """Sampling temperature; null: that of the run."""
    extra_body: dict[str, Any] = msgspec.field(default_factory=dict)
    """Keys of the requests' bodies, such as `tools` and `response_format`."""
    objectives: ClassObjectives = ClassObjectives()


class RecordedFacts(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a replayed request was like when it was recorded, and what it could find in a prefix cache."""

    prompt_tokens: int | None = None
    """Tokens of the recorded prompt with its history; null if the file does not state them."""
    output_tokens: int | None = None
    """Tokens of the recorded answer; null in the same case."""
    reusable_tokens: int = 0
    """Tokens of the prompt that a prefix cache without a limit would hold: of the history, or of a beginning
    that earlier sessions sent too."""


class RequestRecord(msgspec.Struct, kw_only=True, frozen=True):
    """One attempted request. Fields that end in `_unix_s` are Unix times. All other fields that end in `_s`
    are seconds since `start_unix_s`, by a monotonic clock."""

    schema: int = RUN_SCHEMA
    request_id: str
    """Id of the request, sent as the header `X-Request-Id` too."""
    model: str
    scenario: str
    worker: str
    user: int
    user_class: str | None = msgspec.field(default=None, name="class")
    """Name of the user's class in the workload file; null without one. The JSON key is `class`."""
    turn: int
    """Number of the request in its conversation; the first is 0."""
    step: int = 0
    """Number of the request in a turn of the user: 0 for what a person asks, larger for an answer of a
    tool."""
    session: str | None = None
    """Id of the recorded session that the request belongs to, or the number of its line; null unless sessions
    are replayed."""
    late_s: float | None = None
    """Seconds by which a turn of a session was sent later than it was due, most often because the answer
    before came late; null if it was in time, and in a run without sessions."""
    recorded: RecordedFacts | None = None
    """Null unless sessions are replayed."""
    level_users: int | None
    """Users of the level in which the request started; null outside levels (users starting, or open loop)."""
    scheduled_unix_s: float | None = None
    """When the request was due; null in a closed loop."""
    start_unix_s: float
    sent_s: float | None = None
    """When the request's bytes were handed to the socket; null if they never were."""
    headers_s: float | None = None
    """When the status line and the headers of the answer had arrived; null if they never did."""
    chunk_s: list[float] = msgspec.field(default_factory=list)
    """When each event with content, reasoning or a tool call arrived."""
    first_answer_s: float | None = None
    """When the first content or tool call arrived (reasoning does not count); null if none did."""
    end_s: float
    chunk_kinds: str = ""
    """One letter for each entry of `chunk_s`: c for content, r for reasoning, t for a tool call."""
    chunk_tokens: list[int] | None = None
    """Tokens of each entry of `chunk_s`; null unless every such event stated the tokens so far."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    max_tokens: int
    finish_reason: str | None = None
    outcome: Outcome
    http_status: int | None = None
    error: str | None = None
    replaced_connections: int = 0
    """Reused connections that died before any byte of the answer had come, each replaced by a new one."""
    pause_s: float | None = None
    """Seconds that the user pauses before the next request because this one failed; null without a pause."""


class ServerSample(msgspec.Struct, kw_only=True, frozen=True):
    """The state of one engine of the server at one scrape. A data-parallel server has several engines; only
    the row of the first engine holds the GPU figures."""

    unix_s: float
    engine: str | None = None
    running: float | None = None
    waiting: float | None = None
    waiting_capacity: float | None = None
    kv_cache_usage: float | None = None
    """Fraction of the KV pool's blocks that running requests hold, 0 to 1."""
    num_gpu_blocks: int | None = None
    """Blocks of the engine's KV pool, with the null block: a server can come back with another pool."""
    preemptions_total: float | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_cache_queries_total: float | None = None
    prefix_cache_hits_total: float | None = None
    finished_total: float | None = None
    """Finished requests: `vllm:request_success_total`, summed over all finish reasons."""
    rejections_total: float | None = None
    vram_used_bytes: int | None = None
    """Memory used on all GPUs together."""
    vram_used_bytes_each: list[int] | None = None
    """Memory used on each GPU."""
    gpu_util: float | None = None
    """Mean utilisation of the GPUs, 0 to 1."""
    ttft_sum_s: float | None = None
    """Sum of a histogram of the server, here its own time to first token, and next its count."""
    ttft_count: float | None = None
    tpot_sum_s: float | None = None
    tpot_count: float | None = None
    e2e_sum_s: float | None = None
    e2e_count: float | None = None
    queue_sum_s: float | None = None
    """Sum of the times that requests waited in the engine's queue."""
    queue_count: float | None = None
    started_unix_s: float | None = None
    """When the server's process started (`process_start_time_seconds`)."""
    simulated_lateness_s: float | None = None
    """Largest delay of the simulated server's tokens in the last ten seconds; null for a real server."""
    error: str | None = None


class ClientSample(msgspec.Struct, kw_only=True, frozen=True):
    """The health of one process that generates load. Each process writes one row a second."""

    unix_s: float
    loop_lag_max_s: float
    """Largest delay of a timer on the event loop since the last row, in seconds."""
    loop_lag_p99_s: float | None = None
    cpu: float
    """CPU seconds used per second since the last row; above 1 if several threads are busy."""
    in_flight: int
    """Requests that have started and have not ended."""
    started_total: int
    ended_total: int
    due_to_sent_max_s: float | None = None
    """Longest time from a request's due time to its sending, since the last row; null in a closed loop."""
    rss_peak_bytes: int | None = None


class ServerInfo(msgspec.Struct, kw_only=True, frozen=True):
    """What the server reports about itself; fields that it does not report are null."""

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
    """KV bytes of one token, from the model's config.json (setting `model_config`), else from the metric
    `cache_config_info`; null if neither states them reliably."""
    simulated: str | None = None
    """Preset of Seatcount's simulated server; null for a real server."""


class GpuInfo(msgspec.Struct, kw_only=True, frozen=True):
    """The GPUs of the server."""

    name: str | None
    count: int
    vram_bytes: int | None
    """Memory of all GPUs together; null if it is unknown."""


class ArrivalsInfo(msgspec.Struct, kw_only=True):
    """The arrival process of an open loop."""

    law: str | None
    """Value of the setting `arrivals`; null if a trace was replayed."""
    trace: str | None = None
    """Name of the trace file; null without one."""
    trace_speed: float = 1.0
    start_unix_s: float
    end_unix_s: float
    """When the arrivals ended; while they go on, the time of the last update."""


class OwnPromptsInfo(msgspec.Struct, kw_only=True):
    """The person's own prompts (setting `prompts`) and how often they were sent."""

    count: int
    """Number of prompts in the file."""
    used: int = 0
    """Number of prompts that were sent. None is sent twice before all have been sent once."""
    hit_fraction: float | None = None
    """Share of their text that an unlimited prefix cache would hold already if each is sent once: what the
    prompts share with each other. Null for conversations, which also share their histories."""
    kept_apart: bool = False
    """Whether the server was asked to keep them apart from those of earlier runs in its prefix cache."""


class SessionsInfo(msgspec.Struct, kw_only=True):
    """The recorded sessions that were replayed (setting `sessions`)."""

    file: str
    """Name of the file, without its folder."""
    format: str
    sessions: int
    """Number of sessions in the file, and next of their turns."""
    turns: int
    has_text: bool
    """Whether some requests were sent with the text that the file has for them."""
    history: str
    """Whose answers were sent back: `server` or `recorded`."""
    times: str
    """When turns were sent: after their `pauses`, or at their `recorded` times."""
    too_long: int = 0
    """Sessions longer than the model's context, which end early; and next, those of them that never began."""
    never_begun: int = 0
    begun_again: int = 0
    """Times that the file was sent to its end and begun again."""
    kept_apart: bool = False
    """Whether the server was asked to keep texts of the file apart from those of earlier runs in its prefix
    cache."""


class ClientInfo(msgspec.Struct, kw_only=True, frozen=True):
    """The software and the machine that generated the load."""

    python: str
    locust: str
    aiohttp: str
    cpu_count: int


class WorkerInfo(msgspec.Struct, kw_only=True, frozen=True):
    """One worker process that generated load. A run without separate workers lists its single process
    here."""

    name: str
    clock_offset_s: float | None = None
    """Clock of the worker minus clock of the master, in seconds; null if both are on one host."""


class RunInfo(msgspec.Struct, kw_only=True):
    """The content of `run.json`: what was run, and against which server. The file is rewritten again and
    again while the run is in progress."""

    schema: int = RUN_SCHEMA
    run_id: str
    model: str
    scenario: str
    host: str
    """Address of the server, without credentials."""
    started_unix_s: float
    ended_unix_s: float | None = None
    """When the run ended; null while it goes on, and if it was killed."""
    settings: dict[str, object]
    """All settings except secrets."""
    server: ServerInfo = msgspec.field(default_factory=ServerInfo)
    gpu: GpuInfo | None = None
    schedule: list[tuple[float, float, int]] = msgspec.field(default_factory=list)
    """One (start_unix_s, end_unix_s, users) for each level. A level starts when all its users have started;
    the end of a running level is the time of the last update."""
    arrivals: ArrivalsInfo | None = None
    """The arrivals of an open loop, whose `schedule` is empty; null in a closed loop."""
    away: list[tuple[float, float]] = msgspec.field(default_factory=list)
    """One (from_unix_s, to_unix_s) for each time in which the server answered no request, from the first
    request that failed so to the first that succeeded again."""
    classes: list[UserClass] | None = None
    """The classes of users as the workload file states them (setting `workload`); null without one."""
    sessions: SessionsInfo | None = None
    """Null unless recorded sessions were replayed."""
    own_prompts: OwnPromptsInfo | None = None
    """Null if the prompts were synthetic."""
    shortfall: str | None = None
    """Why the run does not hold what was planned, in a sentence, such as lost rows or a server that was dead;
    null if it does."""
    workers: list[WorkerInfo] = msgspec.field(default_factory=list)
    client: ClientInfo | None = None
    warnings: list[str] = msgspec.field(default_factory=list)
    """Warnings of the load test that the analysis repeats, such as foreign load or clipped lengths."""


class LevelQuestion(msgspec.Struct, kw_only=True, frozen=True, tag=True):
    """Asks the advisor, the process that judges the rows of a run in progress, whether a level that has ended
    is trusted. The load test sends it as one JSON line."""

    start_unix_s: float
    end_unix_s: float


class LevelVerdict(msgspec.Struct, kw_only=True, frozen=True):
    """What the advisor answers to a `LevelQuestion`, as one JSON line."""

    start_unix_s: float
    """That of the question."""
    hold_again: bool
    """Whether the level is not trusted for reasons that may pass, so that it should be held again."""
    why: str
    """The doubts about the level, in the words of the report; empty if it is trusted."""


class SearchState(msgspec.Struct, kw_only=True, frozen=True, tag=True):
    """The state of a capacity search. The load test sends it as one JSON line to the advisor, the process
    that chooses the next number of users. The advisor also reads the rows in the run folder."""

    holding: int | None = None
    """Users of the current level; null before the first level and between two levels."""
    held_s: float = 0.0
    """Seconds since the current level began."""
    left_s: float
    """Seconds of the budget that are left."""


class SearchAdvice(msgspec.Struct, kw_only=True, frozen=True):
    """What the advisor answers to a `SearchState`, as one JSON line: how many users to hold next."""

    users: int | None
    """Users to hold next: those of the current level, or of a new one. Null ends the search."""
    look_s: float
    """Seconds until the advisor should be asked again."""
    why: str
    """The reason in a few words, shown when the number of users changes."""
    line: str
    """The answer so far, in one line."""


def encode_line(row: RequestRecord | ServerSample | ClientSample) -> bytes:
    """Encodes a row as one JSON line that ends in a line feed. This takes about 6 us for a request with 200
    chunks."""
    return _encoder.encode(row) + b"\n"


_encoder = msgspec.json.Encoder(decimal_format="number")

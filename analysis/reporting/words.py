"""Puts the notes of the analysis, such as warnings and options, into words."""

import math
import time
from collections.abc import Sequence
from functools import singledispatch

from analysis import notes
from analysis.notes import Note
from analysis.reporting.numbers import percent, users_text
from analysis.walls.names import Basis, WallName

WALL_NAMES: dict[WallName, str] = {
    "kv_cache": "KV cache",
    "prefix_cache": "prefix cache",
    "ttft": "time to first token",
    "tpot": "time per output token",
    "stall": "stalls",
    "throughput": "throughput",
    "max_num_seqs": "max_num_seqs",
    "errors": "errors",
    "not_reached": "none reached",
}
BEYOND_WALL: dict[WallName, str] = {
    "kv_cache": "requests wait for GPU memory, or are preempted and computed again",
    "prefix_cache": "the histories of users who think are evicted before their next turn and computed again, "
    "although the KV cache in use looks small",
    "ttft": "answers start too late",
    "tpot": "answers come too slowly",
    "stall": "answers stand still for too long before they go on",
    "throughput": "the server makes fewer tokens a second in all",
    "max_num_seqs": "further requests wait for one of the server's max_num_seqs slots, with memory free",
    "errors": "the server turns requests away",
    "not_reached": "",
}
MISSED = {
    "ttft": "late first tokens",
    "tpot": "answers with slow tokens",
    "stall": "answers that stood still",
    "errors": "refused requests",
}
BASIS_WORDS: dict[Basis, str] = {
    "measured": "measured at this load",
    "interpolated": "between two levels",
    "extrapolated": "beyond the levels",
    "model": "from the formula alone",
}


def of_class(user_class: str | None) -> str:
    """Names a class of users behind what it misses: ` of agent`; empty without one."""
    return f" of {user_class}" if user_class else ""


def wall_name(code: str) -> str:
    """Returns the name of a wall (a limit on users) in words; an unknown code is returned unchanged."""
    return next((name for wall, name in WALL_NAMES.items() if wall == code), code)


def sentences(found: Sequence[Note]) -> list[str]:
    """Returns the text of each note, in the same order."""
    return [words(note) for note in found]


@singledispatch
def words(note: Note) -> str:
    """Returns a note as text.

    Most notes become sentences. Doubts about a level and options become clauses without a full stop.
    """
    raise NotImplementedError(type(note).__name__)


def _because(why: Sequence[Note]) -> str:
    return "; ".join(sentences(why))


@words.register
def _(note: notes.PlainSentence) -> str:
    return note.sentence


# Why a level is not trusted: clauses that follow "Level 8 not trusted:".


@words.register
def _(note: notes.NotSteady) -> str:
    return "not steady: request durations or KV usage drift, or something slowed the server for a while"


@words.register
def _(note: notes.ServerAway) -> str:
    return f"the server was away from {_clock(note.from_unix_s)} to {_clock(note.to_unix_s)} UTC"


@words.register
def _(note: notes.EngineRestarted) -> str:
    return f"an engine restarted at {_clock(note.unix_s)} UTC"


@words.register
def _(note: notes.EnginesChanged) -> str:
    return f"an engine (replica) came or went: {note.least} to {note.most} engines"


@words.register
def _(note: notes.FewerEngines) -> str:
    return f"an engine (replica) was not there: {note.engines} of {note.most} engines"


@words.register
def _(note: notes.AnotherPool) -> str:
    return (
        f"the KV cache had {note.tokens:,} tokens here, and {note.tokens_later:,} since the server came back "
        "with another pool"
    )


def _clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(unix_s))


@words.register
def _(note: notes.TooFewRequests) -> str:
    return f"too few: {note.ended} requests ended in the window, {note.needed} are needed"


@words.register
def _(note: notes.GeneratorLate) -> str:
    return f"load generator late: event-loop lag {1e3 * note.lag_s:.1f} ms, limit {1e3 * note.limit_s:.1f} ms"


@words.register
def _(note: notes.GeneratorFroze) -> str:
    return (
        f"load generator stood still for {1e3 * note.lag_s:.0f} ms, and {percent(note.share)} of the answers "
        "may have a stall only because of that"
    )


@words.register
def _(note: notes.GeneratorBusy) -> str:
    return f"load generator busy: {100 * note.cpu:.0f} % of a core, limit {100 * note.limit:.0f} %"


@words.register
def _(note: notes.ClientErrors) -> str:
    return f"{note.failed} of {note.ended} requests never left the load generator"


@words.register
def _(note: notes.LoadNotReached) -> str:
    paused = f", {note.paused:.1f} pausing after errors" if note.paused >= 0.05 else ""
    return f"load not reached: {note.in_flight:.1f} in flight of {note.users}{paused}"


@words.register
def _(note: notes.TooMuchLoad) -> str:
    return (
        f"more load than users: {note.in_flight:.1f} in flight of {note.users}, as when a worker that is cut "
        "off keeps its users"
    )


@words.register
def _(note: notes.LittlesLawOff) -> str:
    return f"Little's law is off by {100 * note.off:+.0f} %: rows are missing, or clocks differ"


@words.register
def _(note: notes.TokensDisagree) -> str:
    more = "more" if note.off > 0 else "fewer"
    return (
        f"tokens disagree: the server counted {100 * abs(note.off):.0f} % {more} than our rows, over the "
        "whole run"
    )


@words.register
def _(note: notes.ForeignLoad) -> str:
    return f"foreign load: the server holds {note.requests:.1f} requests more than we sent"


# Why there is no answer.


@words.register
def _(note: notes.NoRequests) -> str:
    return "The run holds no request: let a level finish, then analyse again."


@words.register
def _(note: notes.NoSuccess) -> str:
    return "No request succeeded, for the reason that follows."


@words.register
def _(note: notes.OpenLoop) -> str:
    return (
        "This is an open loop: requests came when they were due, so there is no number of users. The table "
        "shows what the server did with them; for a number of users, run levels."
    )


OWN_LONGER_LEVELS = "use longer levels (--level-s)"
LONGER_LEVELS = {
    "guidellm": "run guidellm for longer at each rate (--max-seconds, or more --max-requests)",
    "aiperf": "run aiperf for longer at each concurrency (--benchmark-duration, or more --request-count)",
    "vllm bench serve": "send more requests at each concurrency (--num-prompts)",
}


@words.register
def _(note: notes.NoLevels) -> str:
    return (
        f"No level ran longer than its settling time: {LONGER_LEVELS.get(note.scenario, OWN_LONGER_LEVELS)}."
    )


@words.register
def _(note: notes.NoTrustedLevel) -> str:
    return f"No level can be trusted: {'; '.join(sorted(sentences(note.why)))}."


@words.register
def _(note: notes.PastWallAtLowest) -> str:
    return (
        f"Already the lowest trusted level, {note.users} users, is past the {wall_name(note.wall)} wall: "
        "measure at fewer users."
    )


@words.register
def _(note: notes.TooFewToHold) -> str:
    return (
        f"Not enough data at {note.users} users: {MISSED[note.wall]}{of_class(note.user_class)} may be up to "
        f"{percent(note.share_at_most)} ({percent(note.limit)} allowed){_wanting(note)}."
    )


def _wanting(note: notes.TooFewToHold) -> str:
    if note.more_requests is None or note.more_s is None:
        return ""
    seconds = f"about {math.ceil(note.more_s):,} s of this level"
    return f"; {note.more_requests:,} more requests ({seconds}) would tell"


# Warnings.


@words.register
def _(note: notes.NotPooled) -> str:
    names = " and ".join(filter(None, [", ".join(note.differing[:-1]), note.differing[-1]]))
    differ = "differs" if len(note.differing) == 1 else "differ"
    return f"Not pooled, because {names} {differ}: {', '.join(note.run_ids)} (choose with --run)."


@words.register
def _(note: notes.SeveralReplicas) -> str:
    seen = (
        "the metrics come from one and another by turns"
        if note.seen_share is None
        else f"the metrics show {percent(note.seen_share)} of our requests and tokens"
    )
    return (
        f"Several replicas behind one address: {seen}, so they are left out, and the memory wall with them. "
        "Name the metrics of every replica: --metrics-url http://REPLICA1/metrics,http://REPLICA2/metrics."
    )


@words.register
def _(note: notes.GatheredChunks) -> str:
    own = [
        f"time {name} {1e3 * value:.1f} ms"
        for name, value in (("to first token", note.engine_ttft_s), ("per output token", note.engine_tpot_s))
        if value is not None
    ]
    engine = f" The engine's own means at {users_text(note.users)}: {', '.join(own)}." if own else ""
    return (
        f"A gateway gathers chunks: at {users_text(note.users)}, {1.0 / note.arrivals_per_chunk:.0f} chunks "
        "came at once. Users wait for its buffer (this is in the time to first token), and the time per "
        f"output token cannot be seen here.{engine} Switch the buffer off: nginx `proxy_buffering off; gzip "
        "off;`, HAProxy `option http-no-delay`."
    )


@words.register
def _(note: notes.DelayOutsideEngine) -> str:
    late = note.ttft_s - note.engine_ttft_s
    whole = (
        ""
        if note.engine_duration_s is None
        else f"; whole requests took {1e3 * (note.duration_s - note.engine_duration_s):+.0f} ms"
    )
    return (
        f"Outside the engine: at {users_text(note.users)} the first token came {1e3 * late:.0f} ms later "
        f"than by the engine's own clock ({1e3 * note.ttft_s:.0f} against {1e3 * note.engine_ttft_s:.0f} ms, "
        f"means{whole}): the network, a gateway, or a queue before the engine."
    )


@words.register
def _(note: notes.SimulatorLate) -> str:
    return (
        f"The simulated server was late itself: half of the time some tokens came {1e3 * note.late_s:.0f} ms "
        "or more after they were due, because its process lacked CPU. Give it a core of its own."
    )


@words.register
def _(note: notes.PoolUnknown) -> str:
    return (
        "The memory wall is missing: the server's /metrics did not say how many KV blocks it has "
        "(--kv-cache-tokens says it). Latency and throughput walls still answer."
    )


@words.register
def _(note: notes.TooFewLengths) -> str:
    return f"The memory wall is missing: fewer than {note.needed} finished requests carried token counts."


@words.register
def _(note: notes.SuspectedMaxNumSeqs) -> str:
    return (
        f"Suspected: max_num_seqs is {note.slots}. Requests waited with memory free while about {note.slots} "
        "ran, and the server's metrics do not state the number. State it with --max-num-seqs."
    )


@words.register
def _(note: notes.SpreadOverEngines) -> str:
    return f"{note.engines} engines: the memory wall takes users as spread evenly over equal pools."


@words.register
def _(note: notes.GaugeDisagrees) -> str:
    more = "more" if note.off > 0 else "less"
    return (
        f"The server's gauge shows {100 * abs(note.off):.0f} % {more} KV cache a request than the requests' "
        "lengths explain: hidden tokens, shared prefixes or a hybrid cache layout."
    )


@words.register
def _(note: notes.Lockstep) -> str:
    return (
        f"Lockstep: output lengths hardly vary (CV {note.cv:.2f}). Requests march in step, preemptions then "
        "depend on how users started, and the memory wall may be off by users. Vary the lengths."
    )


@words.register
def _(note: notes.HeavyTail) -> str:
    return (
        f"Output lengths are heavy-tailed (CV {note.cv:.2f}): {note.requests} requests are few, the interval "
        f"may be too narrow. Measure {note.needed}, or cap max_tokens."
    )


@words.register
def _(note: notes.SeedRepeated) -> str:
    return "Runs with the same seed are pooled: their lengths repeat, so the interval is too narrow."


@words.register
def _(note: notes.LevelsNotTrusted) -> str:
    plural = "s" * (len(note.users) > 1)
    return f"Level{plural} {', '.join(map(str, note.users))} not trusted: {_because(note.why)}."


@words.register
def _(note: notes.Extrapolated) -> str:
    if note.side == "above":
        return (
            f"Extrapolated: the highest trusted level is {note.users} users, below the "
            f"{wall_name(note.wall)} wall. Run one level above it."
        )
    return (
        f"Extrapolated: the lowest trusted level is {note.users} users, above the {wall_name(note.wall)} "
        "wall. Run one level below it."
    )


@words.register
def _(note: notes.FormulaAlone) -> str:
    return "No trusted level near the memory wall counted preemptions: it rests on the formula alone."


@words.register
def _(note: notes.SentLate) -> str:
    return (
        f"{note.run_id}: requests were sent late, p99 {1e3 * note.late_p99_s:.0f} ms after they were due "
        f"(limit {1e3 * note.limit_s:.0f} ms). TTFT p95 is {_seconds(note.due_p95_s)} from due, "
        f"{_seconds(note.sent_p95_s)} from sent: the load generator was the bottleneck; use more workers, or "
        "a lower rate."
    )


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} s"


# Changes of the deployment: clauses without a full stop.


@words.register
def _(note: notes.RaiseMemoryUtilization) -> str:
    return f"--gpu-memory-utilization {note.to:g} (now {note.now:g})"


@words.register
def _(note: notes.LargerPool) -> str:
    return (
        f"A KV pool {100 * note.by:.0f} % larger (--gpu-memory-utilization, or fewer other users of the GPU)"
    )


@words.register
def _(note: notes.Fp8Cache) -> str:
    return "--kv-cache-dtype fp8 (twice the tokens; check answer quality)"


@words.register
def _(note: notes.ShorterContext) -> str:
    return (
        f"--max-model-len {note.max_model_len} (1 in {1 / note.cut_share:.0f} requests was longer and would "
        "be cut)"
    )


@words.register
def _(note: notes.OffloadHistories) -> str:
    return (
        "KV offloading to the host's memory (--kv-offloading-size): evicted histories are loaded, not "
        "computed"
    )


@words.register
def _(note: notes.ShorterHistories) -> str:
    return "Shorter histories: fewer turns sent back, or summaries of old ones"


@words.register
def _(note: notes.RaiseMaxNumSeqs) -> str:
    return "Raise --max-num-seqs"


@words.register
def _(note: notes.SmallerTokenBudget) -> str:
    return "A smaller --max-num-batched-tokens: long prompts are computed in shorter steps, and start later"


@words.register
def _(note: notes.LighterWork) -> str:
    return "Shorter prompts, a faster GPU, or a looser objective"


@words.register
def _(note: notes.FasterGateway) -> str:
    whole, own = 1e3 * note.ttft_s, 1e3 * note.engine_s
    return (
        f"A faster way to the engine: of {whole:.0f} ms to the first token at {users_text(note.users)} "
        f"(mean), {own:.0f} ms are the engine's own. The rest passes before the engine, in a gateway, the "
        "network or the server's front end"
    )


@words.register
def _(note: notes.LessRefusal) -> str:
    return "A higher limit where requests are turned away: the gateway's rate, or the server's queue"


@words.register
def _(note: notes.SecondReplica) -> str:
    text = "A second replica, users spread evenly"
    if note.keep_conversations:
        return f"{text} and each conversation sent where its history is (a prefix-aware router)"
    return text

"""Run -> Level: the steady window of every plateau, what was seen in it, and whether it can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis import metrics
from analysis.reading.rows import Bools, Floats, Ints, Requests, Server
from analysis.reading.runs import Run
from analysis.statistics.samples import Clock, Quantiles, Share, design_effect, quantiles, share, trend
from loadtest.record import Outcome, Slo

FEWEST_REQUESTS = 20
LOCKSTEP_CV = 0.1
LAG_FLOOR_S = 0.005
CPU_LIMIT = 0.85
CLIENT_ERROR_LIMIT = 0.01
MISCOUNT_LIMIT = 0.01
FEWEST_TOKENS = 1000
OVERLOAD_STATUS = (429, 500, 502, 503, 504, 529)
TREND_P = 0.001
TREND_CHANGE = 0.25
CUTS = (0.0, 0.25, 0.5)
UNDER_WAY_LIVES = 4.0  # mean response times after which nearly every request has ended
QUEUE_LIMIT = 0.1  # share of time with a queue for seats that is a wall
FEWEST_QUEUES = 8  # scrapes
ROOM = 0.9  # of the pool in use: where lengths are not known, a queue below that is not for blocks
AT_TOP, NEAR_TOP, ALWAYS = 0.1, 0.9, 0.8  # shares of scrapes: benchmarks/coverage.py names the walls


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """KV blocks that requests can hold (the null block taken off), in tokens each, all engines alike."""

    blocks: int
    block_tokens: int
    engines: int = 1

    @property
    def tokens(self) -> int:
        """Of all engines together."""
        return self.blocks * self.block_tokens * self.engines


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a level is judged against."""

    slo: Slo
    pool: Pool | None
    largest_prompt_blocks: int
    """Bounds what one arrival asks of the pool."""
    mean_output: float
    """Tokens, and so steps, of a request."""
    mean_end_blocks: float
    """What an ending gives back."""
    thinks: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Level:
    """A plateau of constant users. Server figures are nan where /metrics did not give them."""

    users: int
    run_id: str
    clock: Clock
    n: int
    """Requests that ended in the window, whatever their outcome, ours-cancelled left out."""
    cancelled: int
    errors: int
    in_flight: float
    e2e_mean_s: float
    e2e: Quantiles
    ttft: Quantiles
    tpot: Quantiles
    decode: Quantiles
    gap: Quantiles
    gap_is_itl: bool
    ttft_miss: Share
    tpot_miss: Share
    overload: Share
    output_tok_s: float
    output_tok_se: float
    goodput_rps: float
    running: float
    kv_usage: float
    waiting_fraction: float
    """Share of scrapes in which somebody waited, for whatever reason."""
    preemptions: float
    finished: int
    blocked: Share | None
    """Scrapes in which a request waited for KV blocks."""
    queue: Share
    """Scrapes in which a request waited while the pool had room: for a seat, where there are `seats`."""
    seats: int | None
    """`max_num_seqs`, where running stood flat at it with a queue and room in the pool."""
    most_running: int | None
    """Of requests, where the pool had room and others waited."""
    prefix_hit_rate: float
    """Prompt tokens that the prefix cache held, of those looked up."""
    vram_bytes: float
    lag_s: float
    why_not: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        return not self.why_not

    @property
    def preempted_fraction(self) -> float:
        return self.preemptions / self.finished if self.finished else math.nan


def levels_of(run: Run, context: Context) -> list[Level]:
    """Every plateau of the run that has a window left after its settling time, in order of time."""
    settle_s = _number(run.info.settings.get("settle_s"), 0.0)
    miscount = token_miscount(run)
    return [
        _level(run, context, users=users, plateau=(begin + settle_s, end), miscount=miscount)
        for begin, end, users in run.info.schedule
        if end - begin - settle_s > 0.0
    ]


def token_miscount(run: Run) -> float:
    """Growth of the server's token counter over the drained run against the tokens in our rows, less 1; nan
    where it cannot be told. Of requests without usage, such as unfinished ones, the chunks are counted."""
    rows, counter = run.requests, run.server.generation_tokens_total
    known = counter[~np.isnan(counter)]
    if run.info.ended_unix_s is None or len(known) < 2 or np.isnan(rows.output_tokens[rows.ok]).any():
        return math.nan
    ours = float(rows.tokens.sum())
    return float(known[-1] - known[0]) / ours - 1.0 if ours >= FEWEST_TOKENS else math.nan


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float | str) and value != "" else default


def _level(run: Run, context: Context, *, users: int, plateau: tuple[float, float], miscount: float) -> Level:
    clock, steady = _steady_window(run, plateau)
    rows = run.requests
    inside = ended_inside(rows, clock)
    ours = rows.with_outcome(Outcome.CANCELLED)
    seen = _Seen.of(rows, inside & ~ours, inside & ours, clock, context.slo)
    scrapes = (run.server.unix_s >= clock.begin_unix_s) & (run.server.unix_s <= clock.end_unix_s)
    in_flight = in_flight_of(run, clock)
    lag = worst_worker(run, run.client.loop_lag_s, clock)
    most_running = _most_running(run.server, scrapes, context)
    seats = _seats(run.server, scrapes, context, users, most_running)
    gates = _Gates(
        run=run,
        context=context,
        users=users,
        clock=clock,
        seen=seen,
        in_flight=in_flight,
        miscount=miscount,
    )
    tokens, tokens_se = _output_rate(rows, clock)
    return Level(
        users=users,
        run_id=run.info.run_id,
        clock=clock,
        n=seen.n,
        cancelled=seen.cancelled,
        errors=seen.errors,
        in_flight=in_flight,
        e2e_mean_s=seen.e2e_mean_s,
        e2e=seen.e2e,
        ttft=seen.ttft,
        tpot=seen.tpot,
        decode=seen.decode,
        gap=seen.gap,
        gap_is_itl=seen.gap_is_itl,
        ttft_miss=seen.ttft_miss,
        tpot_miss=seen.tpot_miss,
        overload=seen.overload,
        output_tok_s=tokens,
        output_tok_se=tokens_se,
        goodput_rps=seen.good / clock.window_s,
        running=_mean(run.server.running[scrapes]),
        kv_usage=_mean(run.server.kv_cache_usage[scrapes]),
        waiting_fraction=_fraction(run.server.waiting[scrapes] > 0, run.server.waiting[scrapes]),
        preemptions=_growth(run.server.unix_s, run.server.preemptions_total, clock),
        finished=int((inside & rows.ok).sum()),
        blocked=_blocked(run.server, scrapes, context, clock, seats),
        queue=_queue(run.server, scrapes, context, clock),
        seats=seats,
        most_running=most_running,
        prefix_hit_rate=_prefix_hit_rate(run, inside & rows.ok, clock),
        vram_bytes=_mean(run.server.vram_used_bytes[scrapes]),
        lag_s=lag,
        why_not=tuple(gates.reasons(steady=steady)),
    )


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _fraction(events: Bools, values: Floats) -> float:
    known = ~np.isnan(values)
    return float(events[known].mean()) if known.any() else math.nan


def _window_mean(unix_s: Floats, values: Floats, clock: Clock) -> float:
    return _mean(values[(unix_s >= clock.begin_unix_s) & (unix_s <= clock.end_unix_s)])


def _growth(unix_s: Floats, counter: Floats, clock: Clock) -> float:
    """Growth of a counter over the window, between scrapes by straight lines; nan where it was not read."""
    known = ~np.isnan(counter)
    at, value = unix_s[known], counter[known]
    gap = 0.2 * clock.window_s
    if len(at) < 2 or at[0] > clock.begin_unix_s + gap or at[-1] < clock.end_unix_s - gap:
        return math.nan
    ends = np.interp([clock.begin_unix_s, clock.end_unix_s], at, value)
    return float(ends[1] - ends[0])


def _prefix_hit_rate(run: Run, ended: Bools, clock: Clock) -> float:
    """By the server's counters, else by the usage of the requests that ended; nan where neither says."""
    server, rows = run.server, run.requests
    queries = _growth(server.unix_s, server.prefix_cache_queries_total, clock)
    if queries > 0:
        return _growth(server.unix_s, server.prefix_cache_hits_total, clock) / queries
    told = ended & ~np.isnan(rows.cached_tokens) & (rows.prompt_tokens >= 1)
    return float(rows.cached_tokens[told].sum() / rows.prompt_tokens[told].sum()) if told.any() else math.nan


def ended_inside(rows: Requests, clock: Clock) -> Bools:
    """Which requests ended in the window, shape (n,)."""
    end = rows.end_unix_s
    return (end >= clock.begin_unix_s) & (end < clock.end_unix_s)


def _begin_unix_s(rows: Requests) -> Floats:
    return rows.start_unix_s + np.nan_to_num(rows.sent_s)


def in_flight_of(run: Run, clock: Clock) -> float:
    """Requests in flight, mean over the window. A run that goes on, or was killed, has no rows yet of what is
    under way; there the load generator's own count, once a second, says more."""
    rows, window = run.requests, (clock.begin_unix_s, clock.end_unix_s)
    ended = metrics.mean_in_flight(
        begin_unix_s=_begin_unix_s(rows), end_unix_s=rows.end_unix_s, window=window
    )
    known_until = float(rows.end_unix_s.max(initial=0.0)) - UNDER_WAY_LIVES * clock.lifetime_s
    if run.info.ended_unix_s is not None or clock.end_unix_s < known_until:
        return ended
    return max(ended, sum(_means_by_worker(run, run.client.in_flight, clock)))


def _output_rate(rows: Requests, clock: Clock) -> tuple[float, float]:
    """Output tokens a second inside the window, and its standard error by batches."""
    tokens = rows.tokens
    some = rows.chunks > 0
    first, last = (
        (rows.start_unix_s + rows.first_chunk_s)[some],
        (rows.start_unix_s + rows.last_chunk_s)[some],
    )
    edges = np.linspace(clock.begin_unix_s, clock.end_unix_s, clock.batches + 1)
    near = (last >= edges[0]) & (first <= edges[-1])
    by = [
        metrics.tokens_by(
            edge, first_unix_s=first[near], last_unix_s=last[near], tokens=tokens[some][near]
        ).sum()
        for edge in edges
    ]
    rates = np.diff(by) * clock.batches / clock.window_s
    return float(rates.mean()), float(rates.std(ddof=1) * math.sqrt(clock.short_batches / clock.batches))


def _steady_window(run: Run, plateau: tuple[float, float]) -> tuple[Clock, bool]:
    """The part without a trend in response time and KV usage: all of it, its last 3/4, or its last half."""
    first = _clock(run.requests, *plateau)
    for cut in CUTS:
        begin = plateau[0] + cut * (plateau[1] - plateau[0])
        clock = _clock(run.requests, begin, plateau[1])
        if not _drifts(run, clock):
            return clock, True
    return first, False


def _clock(rows: Requests, begin: float, end: float) -> Clock:
    ended = rows.end_unix_s
    inside = rows.ok & (ended >= begin) & (ended < end)
    life = (rows.end_s - np.nan_to_num(rows.sent_s))[inside]
    return Clock(
        begin_unix_s=begin, end_unix_s=end, lifetime_s=float(life.mean()) if len(life) else end - begin
    )


def _drifts(run: Run, clock: Clock) -> bool:
    rows = run.requests
    inside = rows.ok & ended_inside(rows, clock)
    life = (rows.end_s - np.nan_to_num(rows.sent_s))[inside]
    scrapes = (run.server.unix_s >= clock.begin_unix_s) & (run.server.unix_s <= clock.end_unix_s)
    scrapes &= ~np.isnan(run.server.kv_cache_usage)
    series = [
        (life, rows.end_unix_s[inside]),
        (run.server.kv_cache_usage[scrapes], run.server.unix_s[scrapes]),
    ]
    for values, at in series:
        if len(values) >= clock.batches:
            change, p = trend(values, at, clock)
            if p < TREND_P and abs(change) > TREND_CHANGE:
                return True
    return False


def _blocked(
    server: Server, scrapes: Bools, context: Context, clock: Clock, seats: int | None
) -> Share | None:
    """Scrapes in which a request waited for blocks; a queue while any prompt would fit is not that."""
    usage = server.kv_cache_usage[scrapes]
    waiting = server.waiting_capacity[scrapes]
    if np.isnan(waiting).all():
        waiting = server.waiting[scrapes]
    known = ~(np.isnan(waiting) | np.isnan(usage))
    if not known.any():
        return None
    room = _room(context, server.running[scrapes])
    blocked = (waiting[known] > 0) & (usage[known] >= room) & (seats is None)
    return _share_of_scrapes(blocked, server.unix_s[scrapes][known], clock)


def _share_of_scrapes(events: Bools, at_unix_s: Floats, clock: Clock) -> Share:
    """What is a response time apart is independent at best."""
    effect = max(
        design_effect(events.astype(np.float64), at_unix_s, clock),
        len(events) * clock.lifetime_s / clock.window_s,
    )
    return Share(misses=int(events.sum()), n=len(events), effect=float(effect))


def _room(context: Context, running: Floats) -> float:
    """Pool usage from which on a scrape may show a request that waits for blocks: the largest prompt may lack
    them, and what a step's endings give back is in the gauge before the next admissions."""
    if context.pool is None:
        return ROOM
    unseen = context.largest_prompt_blocks + _endings(context, running) * context.mean_end_blocks
    return 1.0 - unseen / context.pool.blocks


def _queues_with_room(server: Server, scrapes: Bools, context: Context) -> Bools:
    """In which of these scrapes a request waited, and not for blocks."""
    room = min(_room(context, server.running[scrapes]), ROOM)
    return (server.waiting[scrapes] > 0) & ~(server.kv_cache_usage[scrapes] >= room)


def _queue(server: Server, scrapes: Bools, context: Context, clock: Clock) -> Share:
    known = ~np.isnan(server.waiting[scrapes])
    queue = _queues_with_room(server, scrapes, context)
    return _share_of_scrapes(queue[known], server.unix_s[scrapes][known], clock)


def _seats(server: Server, scrapes: Bools, context: Context, users: int, top: int | None) -> int | None:
    """max_num_seqs where, with a queue for over 10 % of the time and room in the pool, running stands at a
    maximum or as far below as a step's endings explain, because the gauge is read after them.

    A queue for blocks or for the step's token budget has no such edge; but with all but one of few users
    running, it looks as if it had: then the queue must hardly ever be empty.
    """
    queue = _queues_with_room(server, scrapes, context)
    if top is None or (users - top <= 1 and queue.mean() < ALWAYS):
        return None
    running = server.running[scrapes][queue]
    below = max(1.0, 0.02 * top, _endings(context, running))
    return top if float(np.mean(running >= top - below)) >= NEAR_TOP else None


def _most_running(server: Server, scrapes: Bools, context: Context) -> int | None:
    """Of requests, where one in ten scrapes of a queue with room shows so many."""
    running, waiting = server.running[scrapes], server.waiting[scrapes]
    queue = _queues_with_room(server, scrapes, context)
    if not len(running) or queue.mean() <= QUEUE_LIMIT or queue.sum() < FEWEST_QUEUES:
        return None
    top = float(np.nanmax(running[waiting > 0]))
    return round(top) if float(np.mean(running[queue] == top)) >= AT_TOP else None


def _endings(context: Context, running: Floats) -> float:
    """Requests that one step may end, with two standard deviations of a Poisson law."""
    mean = _mean(running) / context.mean_output
    return mean + 2.0 * math.sqrt(mean)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Seen:
    """What the rows of a level say."""

    n: int
    cancelled: int
    errors: int
    client_errors: int
    e2e_mean_s: float
    e2e: Quantiles
    ttft: Quantiles
    tpot: Quantiles
    decode: Quantiles
    gap: Quantiles
    gap_is_itl: bool
    ttft_miss: Share
    tpot_miss: Share
    overload: Share
    good: int
    output_cv: float

    @classmethod
    def of(cls, rows: Requests, ended: Bools, ours: Bools, clock: Clock, slo: Slo) -> "_Seen":
        """ended: not cancelled by us; ours: cancelled by us. Both ended in the window, shape (n,)."""
        times = _Times.of(rows)
        index = np.flatnonzero(ended)
        at, ok = rows.end_unix_s[index], rows.ok[index]
        ttft, tpot, e2e = times.ttft_s[index], times.tpot_s[index], times.e2e_s[index]
        late, slow = ~ok | (ttft > slo.ttft_p95_s), ~ok | (tpot > slo.tpot_p95_s)
        overload = np.isin(rows.http_status[index], OVERLOAD_STATUS)
        counted = ~ok | ~np.isnan(tpot)
        gap = _rows_gaps(rows, index[ok])
        return cls(
            n=len(index),
            cancelled=int(ours.sum()),
            errors=int((~ok).sum()),
            client_errors=int((ended & rows.with_outcome(Outcome.CONNECT_ERROR, Outcome.TIMEOUT)).sum()),
            e2e_mean_s=_mean(e2e[ok]),
            e2e=quantiles(e2e[ok], at[ok], clock),
            ttft=quantiles(ttft[ok], at[ok], clock),
            tpot=quantiles(tpot[ok], at[ok], clock),
            decode=quantiles(metrics.decode_tok_s(tpot[ok]), at[ok], clock),
            gap=_gap_quantiles(gap),
            gap_is_itl=bool(len(index)) and bool(np.all(times.chunks_are_tokens[index[ok]])),
            ttft_miss=_ttft_share(late, ttft, at, times.ttft_so_far_s[ours], slo, clock),
            tpot_miss=share(slow[counted], tpot[counted], at[counted], clock),
            overload=share(overload, e2e, at, clock),
            good=int((ok & ~late & ~slow).sum()),
            output_cv=_cv(rows.output_tokens[index[ok]]),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Times:
    """The metrics of every row, shape (n,) each."""

    ttft_s: Floats
    ttft_so_far_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    chunks_are_tokens: Bools

    @classmethod
    def of(cls, rows: Requests) -> "_Times":
        ttft = metrics.ttft_s(sent_s=rows.sent_s, first_chunk_s=rows.first_chunk_s)
        e2e = metrics.e2e_s(sent_s=rows.sent_s, end_s=rows.end_s)
        return cls(
            ttft_s=ttft,
            ttft_so_far_s=np.where(np.isnan(ttft), e2e, ttft),
            e2e_s=e2e,
            tpot_s=tpot_of(rows),
            chunks_are_tokens=metrics.chunks_are_tokens(chunks=rows.chunks, output_tokens=rows.output_tokens),
        )


def tpot_of(rows: Requests) -> Floats:
    """Time per output token of every request, shape (n,)."""
    return metrics.tpot_s(
        first_chunk_s=rows.first_chunk_s,
        last_chunk_s=rows.last_chunk_s,
        output_tokens=rows.output_tokens,
        first_chunk_tokens=rows.first_chunk_tokens,
    )


def _ttft_share(
    late: Bools, ttft: Floats, at: Floats, cancelled_after_s: Floats, slo: Slo, clock: Clock
) -> Share:
    """Misses of the TTFT objective; one that we cancelled is a miss if it was late already, else censored."""
    base = share(late, ttft, at, clock)
    also = int((cancelled_after_s > slo.ttft_p95_s).sum())
    return Share(misses=base.misses + also, n=base.n + also, effect=base.effect)


def _rows_gaps(rows: Requests, index: Ints) -> Floats:
    """Chunk gaps of these requests, one after the other."""
    parts = [rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]] for row in index]
    return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)


def _gap_quantiles(gap: Floats) -> Quantiles:
    """Gaps of one request are far from independent: no interval is given."""
    if len(gap) < 100 * 3:
        return Quantiles()
    p50, p95, p99 = (float(q) for q in np.quantile(gap, [0.5, 0.95, 0.99]))
    return Quantiles(p50=p50, p95=p95, p99=p99)


def _cv(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.std() / known.mean()) if len(known) > 1 and known.mean() > 0 else math.nan


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Gates:
    """When a level is trusted. Server errors and queues are evidence and no reason to distrust."""

    run: Run
    context: Context
    users: int
    clock: Clock
    seen: _Seen
    in_flight: float
    miscount: float

    def reasons(self, *, steady: bool) -> list[str]:
        """Why the level is not trusted; empty when it is."""
        found = [] if steady else ["not steady: response times or KV usage still drift at the end"]
        if self.seen.n < FEWEST_REQUESTS:
            found.append(f"too few: {self.seen.n} requests ended in the window, {FEWEST_REQUESTS} are needed")
        return found + self._client() + self._load()

    def _client(self) -> list[str]:
        found = client_doubts(self.run, self.clock, tpot_s=self.seen.tpot.p50 or 0.0)
        if self.seen.client_errors > CLIENT_ERROR_LIMIT * max(self.seen.n, 1):
            found.append(f"{self.seen.client_errors} of {self.seen.n} requests failed on the client's side")
        return found

    def _load(self) -> list[str]:
        found = []
        if not self.context.thinks and self.in_flight < 0.9 * self.users:
            found.append(f"load not reached: {self.in_flight:.1f} in flight of {self.users}")
        if self.in_flight > 1.1 * self.users + 0.5:
            found.append(
                f"more load than users: {self.in_flight:.1f} in flight of {self.users}, as when a worker "
                "that is cut off keeps its users"
            )
        off, allowed = self._littles_law()
        if abs(off) > allowed:
            found.append(f"Little's law is off by {100 * off:+.0f} %: rows are missing, or clocks differ")
        if abs(self.miscount) > MISCOUNT_LIMIT:
            more = "more" if self.miscount > 0 else "fewer"
            found.append(
                f"tokens disagree: the server counted {100 * abs(self.miscount):.0f} % {more} than our rows, "
                "over the whole run"
            )
        foreign = self._foreign()
        if foreign > max(0.5, 0.05 * self.in_flight):
            found.append(f"foreign load: the server holds {foreign:.1f} requests more than we sent")
        return found

    def _littles_law(self) -> tuple[float, float]:
        """Rate times response time against requests in flight, and what the window's edges allow."""
        life, window = self.clock.lifetime_s, self.clock.window_s
        if window < 20 * life or self.in_flight <= 0 or self.seen.cancelled:
            return 0.0, 1.0
        off = self.seen.n / window * life / self.in_flight - 1.0
        # Of people who think, all may have begun before the window.
        edges = self.users / self.seen.n if self.context.thinks else 0.0
        return off, 0.05 + 3.0 * math.sqrt(2.0 / self.in_flight) * 0.6 * life / window + edges

    def _foreign(self) -> float:
        """Requests on the server that are not ours, mean over the window; 0 where it cannot be told."""
        server = self.run.server
        held = _window_mean(server.unix_s, server.running + server.waiting, self.clock)
        return 0.0 if math.isnan(held) else held - self.in_flight


def worst_worker(run: Run, values: Floats, clock: Clock) -> float:
    """Mean over the window of the load generator's process that fares worst: others must not hide it."""
    return max(_means_by_worker(run, values, clock), default=math.nan)


def _means_by_worker(run: Run, values: Floats, clock: Clock) -> list[float]:
    """Means over the window, of the load generator's processes that say something in it."""
    client = run.client
    means = [
        _window_mean(client.unix_s[client.worker == worker], values[client.worker == worker], clock)
        for worker in np.unique(client.worker)
    ]
    return [mean for mean in means if not math.isnan(mean)]


def client_doubts(run: Run, clock: Clock, *, tpot_s: float) -> list[str]:
    """Why the load generator's own times are not good enough in this window; empty when they are."""
    found = []
    lag_s, limit_s = worst_worker(run, run.client.loop_lag_s, clock), max(LAG_FLOOR_S, 0.1 * tpot_s)
    if lag_s > limit_s:
        found.append(
            f"load generator late: event-loop lag {1e3 * lag_s:.0f} ms, limit {1e3 * limit_s:.0f} ms"
        )
    cpu = worst_worker(run, run.client.cpu, clock)
    if cpu > CPU_LIMIT:
        found.append(f"load generator busy: {100 * cpu:.0f} % of a core, limit {100 * CPU_LIMIT:.0f} %")
    return found


def output_cv(runs: Sequence[Run]) -> float:
    """Coefficient of variation of the output lengths; below 0.1 requests march in lockstep."""
    return _cv(np.concatenate([run.requests.output_tokens[run.requests.ok] for run in runs]))

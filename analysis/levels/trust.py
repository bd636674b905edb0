"""Doubts about a level. A level with any doubt is left out of every fit."""

import math
from dataclasses import dataclass

import numpy as np

from analysis.levels.context import Context
from analysis.levels.requests import RequestFigures
from analysis.levels.window import ended_inside, window_mean, worst_worker
from analysis.notes import (
    AnotherPool,
    ClientErrors,
    EngineRestarted,
    EnginesChanged,
    FewerEngines,
    ForeignLoad,
    GeneratorBusy,
    GeneratorFroze,
    GeneratorLate,
    LittlesLawOff,
    LoadNotReached,
    Note,
    NotSteady,
    ServerAway,
    TokensDisagree,
    TooFewRequests,
    TooMuchLoad,
)
from analysis.reading.runs import Run
from analysis.statistics.samples import Window
from loadtest.lateness_limits import CPU_LIMIT, LAG_FLOOR_S, LAG_SHARE

MIN_REQUESTS = 20
CLIENT_ERROR_LIMIT = 0.01
MISCOUNT_LIMIT = 0.01
FROZEN_LIMIT = (
    0.01  # share of answers whose miss of the objective for stalls the load generator may have made
)
HEALTH_S = 1.0  # what an entry of the load generator's health covers, before its time


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrustGates:
    """Tests that a level must pass to be trusted.

    Server errors and queues raise no doubt, because they show that a limit of the server is reached.
    """

    run: Run
    context: Context
    users: int
    span: tuple[float, float]
    """Begin and end of the whole level, in seconds since 1970, without its settling time."""
    window: Window
    requests: RequestFigures
    in_flight: float
    paused: float
    miscount: float

    def doubts(self, *, steady: bool) -> tuple[Note, ...]:
        """Returns the doubts about the level; empty where it can be trusted.

        Where the server was interrupted, or the load generator was late, what follows from that is not named
        as a doubt of its own.
        """
        if interrupted := self._of_server():
            return (*interrupted, *self._of_generator())
        found: list[Note] = [] if steady else [NotSteady()]
        if self.requests.attempts < MIN_REQUESTS:
            found.append(TooFewRequests(ended=self.requests.n, needed=MIN_REQUESTS))
        generator = self._of_generator()
        is_late = any(isinstance(doubt, GeneratorLate | GeneratorBusy) for doubt in generator)
        return (*found, *generator, *(() if is_late else self._of_load()))

    def _of_server(self) -> list[Note]:
        """Returns doubts because engines went, came, restarted, were fewer than in other levels, or had
        another KV cache."""
        server = self.run.server
        away = [gap for gap in self.run.info.away if self._meets(gap)]
        if away:
            return [ServerAway(from_unix_s=begin, to_unix_s=end) for begin, end in away]
        restarted = [gap for gap in server.restarts if self._meets(gap)]
        if restarted:
            return [EngineRestarted(unix_s=end) for _, end in restarted]
        there = server.engines_there[(server.unix_s >= self.span[0]) & (server.unix_s <= self.span[1])]
        if len(there) and there.min() != there.max():
            return [EnginesChanged(least=int(there.min()), most=int(there.max()))]
        if len(there) and there.max() < server.engines:
            return [FewerEngines(engines=int(there.max()), most=server.engines)]
        return self._of_pool()

    def _of_pool(self) -> list[Note]:
        """Returns a doubt if the server came back with another KV cache after this level."""
        server, pool = self.run.server, self.context.pool
        during = (server.unix_s >= self.span[0]) & (server.unix_s <= self.span[1])
        here = server.blocks_each[during & ~np.isnan(server.blocks_each)]
        if pool is None or not len(here) or here[0] == server.last_blocks_each:
            return []
        blocks, later = (round(float(number)) - 1 for number in (here[0], server.last_blocks_each))
        return [AnotherPool(tokens=blocks * pool.block_tokens, tokens_later=later * pool.block_tokens)]

    def _meets(self, gap: tuple[float, float]) -> bool:
        return gap[0] < self.span[1] and gap[1] > self.span[0]

    def _of_generator(self) -> list[Note]:
        found = generator_doubts(self.run, self.window, tpot_s=self.requests.tpot_s.p50 or 0.0)
        failed, ended = self.requests.not_sent, self.requests.ended
        if failed > CLIENT_ERROR_LIMIT * max(ended, 1):
            found.append(ClientErrors(failed=failed, ended=ended))
        return found + self._frozen()

    def _frozen(self) -> list[Note]:
        """Returns a doubt if the load generator itself stood still while answers missed the objective for
        stalls: one such moment holds up every answer, and the mean lag does not show it.

        A moment counts from half the objective on. A shorter one is the smaller part of any miss.
        """
        limit_s, client, rows = self.context.slo.stall_p95_s, self.run.client, self.run.requests
        answers = ended_inside(rows, self.window) & ~np.isnan(rows.longest_gap_s)
        if limit_s is None or not answers.any():
            return []
        first, last = rows.start_unix_s + rows.first_chunk_s, rows.start_unix_s + rows.last_chunk_s
        frozen = client.loop_lag_max_s > limit_s / 2
        frozen &= (client.unix_s >= first[answers].min()) & (
            client.unix_s <= self.window.end_unix_s + HEALTH_S
        )
        at_unix_s, lag_s = (
            np.sort(client.unix_s[frozen]),
            float(client.loop_lag_max_s[frozen].max(initial=0.0)),
        )
        met = np.searchsorted(at_unix_s, first) < np.searchsorted(at_unix_s, last + HEALTH_S + lag_s)
        share = float((met & (rows.longest_gap_s > limit_s))[answers].mean())
        return [GeneratorFroze(lag_s=lag_s, share=share)] if share > FROZEN_LIMIT else []

    def _of_load(self) -> list[Note]:
        found: list[Note] = []
        if not self.context.thinks and self.in_flight < 0.9 * (self.users - self.paused):
            found.append(LoadNotReached(in_flight=self.in_flight, users=self.users, paused=self.paused))
        if self.in_flight > 1.1 * self.users + 0.5:
            found.append(TooMuchLoad(in_flight=self.in_flight, users=self.users))
        off, allowed = self._littles_law()
        if abs(off) > allowed:
            found.append(LittlesLawOff(off=off))
        if abs(self.miscount) > MISCOUNT_LIMIT:
            found.append(TokensDisagree(off=self.miscount))
        foreign = self._foreign_requests()
        if foreign > max(0.5, 0.05 * self.in_flight):
            found.append(ForeignLoad(requests=foreign))
        return found

    def _littles_law(self) -> tuple[float, float]:
        """Returns the level's relative deviation from Little's law, and the largest deviation allowed.

        The deviation is (request rate) * (duration) / (requests in flight) - 1. Where the law cannot be
        tested, returns 0 and 1.
        """
        rows, length = self.run.requests, self.window.length_s
        duration_s = (rows.end_s - np.nan_to_num(rows.sent_s))[ended_inside(rows, self.window)]
        if not len(duration_s) or self.in_flight <= 0 or self.requests.cancelled:
            return 0.0, 1.0
        # Requests that last long, such as timeouts among refusals, decide what the window's edges cut off.
        typical = float(np.sum(duration_s**2) / max(np.sum(duration_s), 1e-9))
        if length < 20 * typical:
            return 0.0, 1.0
        off = float(duration_s.sum()) / length / self.in_flight - 1.0
        # The requests of users who think may all have begun before the window.
        edges = self.users / len(duration_s) if self.context.thinks else 0.0
        return off, 0.05 + 3.0 * math.sqrt(2.0 / self.in_flight) * 0.6 * typical / length + edges

    def _foreign_requests(self) -> float:
        """Returns the mean number of the server's requests that other clients sent; 0 where unknown."""
        server = self.run.server
        held = window_mean(server.unix_s, server.running + server.waiting, self.window)
        return 0.0 if math.isnan(held) else held - self.in_flight


def generator_doubts(run: Run, window: Window, *, tpot_s: float) -> list[Note]:
    """Returns doubts about the load generator's times in this window; empty where they can be trusted."""
    found: list[Note] = []
    lag_s, limit_s = worst_worker(run, run.client.loop_lag_s, window), max(LAG_FLOOR_S, LAG_SHARE * tpot_s)
    if lag_s > limit_s:
        found.append(GeneratorLate(lag_s=lag_s, limit_s=limit_s))
    cpu = worst_worker(run, run.client.cpu, window)
    if cpu > CPU_LIMIT:
        found.append(GeneratorBusy(cpu=cpu, limit=CPU_LIMIT))
    return found

"""A load test in virtual time, with what it would have recorded. Users come and go without a restart."""

from dataclasses import replace

import numpy as np

from analysis.reading.columns import (
    NAN,
    NO_CLASS,
    NO_ERROR_TEXT,
    OUTCOME_CODES,
    SCALAR_COLUMNS,
    ClientSamples,
    ServerSamples,
    ordered_requests,
)
from analysis.reading.runs import Run
from analysis.statistics.arrays import Floats
from analysis.virtual.crowd import VirtualUser, virtual_users
from analysis.virtual.service import ChattingClass, Service
from loadtest.record import ClassObjectives, Outcome, RunInfo, ServerInfo, Slo, UserClass
from loadtest.simulator.engine.requests import Request, RequestState
from loadtest.simulator.routers import first_replica
from loadtest.simulator.virtual import EngineTrace, Simulation, TimedRequest

_SAMPLE_S = 1.0
SETTLE_S = 5.0
"""Seconds in which users start and a level settles: the load test's default."""
THINKS_S = 0.01
"""Mean pause in seconds above which users count as thinking; a shorter one is the client's own delay."""
LAG_S = 0.0002
"""Loop lag, in seconds, of a load generator that is never late."""


class VirtualLoad:
    """One load test of a service. Call `hold` for each level, and `run` at any time."""

    def __init__(
        self,
        service: Service,
        slo: Slo,
        *,
        seed: int,
        settle_s: float = SETTLE_S,
        with_gaps: bool = False,
        lag_s: float = LAG_S,
    ) -> None:
        """`with_gaps`: whether to record the time of every token, which doubles the computing time."""
        self.now_s = 0.0
        self._lag_s = lag_s
        self._finished = False
        self._gaps: list[Floats] | None = [] if with_gaps else None
        self._service, self._slo, self._seed, self._settle_s = service, slo, seed, settle_s
        self._simulation = Simulation(
            [service.engine],
            route=first_replica,
            on_end=self._again,
            gateway=replace(service.gateway, seed=seed) if service.gateway else None,
            timeout_s=service.timeout_s,
        )
        self._coming = virtual_users(service, seed=seed)
        self._people: list[VirtualUser] = []
        self._sent: list[tuple[int, int]] = []  # for each person: turn and step of the last request
        self._ended: list[
            tuple[Request, int, int]
        ] = []  # each with turn and step, in the order of their ends
        self._users = 0
        self._idle: set[int] = set()
        self._schedule: list[tuple[float, float, int]] = []
        self._samples: list[tuple[float, ...]] = []
        self._rows: list[tuple[float, ...]] = []
        self._labels: list[tuple[int, ...]] = []
        self._next_sample_s = _SAMPLE_S / 2

    def hold(self, users: int, seconds: float) -> None:
        """Holds a level of `users` for `seconds`; extends the current level if it has the same users."""
        if users != self._users or not self._schedule:
            self._change(users)
            self._schedule.append((self.now_s, self.now_s, users))
        self._advance(self.now_s + seconds)
        begin, _, _ = self._schedule[-1]
        self._schedule[-1] = (begin, self.now_s, users)

    def finish(self) -> None:
        """Ends the load: no new requests, and those under way end."""
        self._users = 0
        self._simulation.run()
        self._sample(self._simulation.traces[0].step_end_s[-1])
        self._finished = True

    @property
    def ended(self) -> int:
        """Number of requests that have ended."""
        return len(self._ended)

    def run(self) -> Run:
        """Returns the run so far, as the analysis reads it."""
        self._take_rows()
        table = np.array(self._rows, dtype=np.float64).reshape(-1, len(SCALAR_COLUMNS))
        labels = np.array(self._labels, dtype=np.int64).reshape(-1, 6)
        gaps = self._gaps
        return Run(
            info=self._info(),
            requests=ordered_requests(
                dict(zip(SCALAR_COLUMNS, table.T, strict=True)),
                labels=labels,
                error_texts=(),
                gap_s=np.concatenate(gaps).astype(np.float32) if gaps else np.empty(0, dtype=np.float32),
                gaps=np.array([len(one) for one in gaps] if gaps else [0] * len(table), dtype=np.int64),
                class_names=[one.name for one in self._service.chatting.classes],
            ),
            server=self._server(),
            client=self._client(),
        )

    def _change(self, users: int) -> None:
        while len(self._people) < users:
            place = len(self._people)
            self._people.append(next(self._coming))
            self._sent.append((0, 0))
            self._idle.add(place)
        self._users = users
        for place in [place for place in self._idle if place < users]:
            self._idle.discard(place)
            person = self._people[place]
            start_s = self.now_s + person.random.uniform(0.0, self._settle_s)
            self._simulation.push(start_s, self._next(person))

    def _again(self, ended: Request, now_s: float) -> TimedRequest | None:
        person = self._people[ended.user]
        self._ended.append((ended, *self._sent[ended.user]))
        if ended.user >= self._users:
            self._idle.add(ended.user)
            return None
        return now_s + (self._service.overhead_s + person.pause_s(ended)), self._next(person)

    def _next(self, person: VirtualUser) -> Request:
        request = person.request()
        self._sent[request.user] = person.turn, person.step
        return request

    def _advance(self, until_s: float) -> None:
        while self._next_sample_s <= until_s:
            self._simulation.run(self._next_sample_s)
            self._sample(self._next_sample_s)
            self._next_sample_s += _SAMPLE_S
        self._simulation.run(until_s)
        self.now_s = until_s

    def _sample(self, at_s: float) -> None:
        (trace,) = self._simulation.traces
        counters = trace.counters
        self._samples.append(
            (
                at_s,
                trace.running[-1] if trace.running else 0,
                trace.waiting[-1] if trace.waiting else 0,
                trace.used_blocks[-1] / trace.pool_blocks if trace.used_blocks else 0.0,
                counters.preemptions,
                counters.generation_tokens,
                counters.prefix_queries,
                counters.prefix_hits,
            )
        )

    def _take_rows(self) -> None:
        (trace,) = self._simulation.traces
        has_classes = bool(self._service.chatting.classes)
        for request, turn, step in self._ended[len(self._rows) :]:
            kind = self._people[request.user].kind if has_classes else NO_CLASS
            values = _row(request, trace)
            self._rows.append(tuple(values.get(name, NAN) for name in SCALAR_COLUMNS))
            if self._gaps is not None:
                self._gaps.append(np.diff(np.asarray(trace.token_times_s(request))))
            self._labels.append(
                (OUTCOME_CODES[_outcome(request)], request.user, turn, NO_ERROR_TEXT, kind, step)
            )

    def _server(self) -> ServerSamples:
        samples = np.array(self._samples, dtype=np.float64).reshape(-1, 8)
        unix_s, running, waiting, usage, preemptions, tokens, queries, hits = samples.T
        nothing = np.full(len(unix_s), NAN)
        return ServerSamples(
            unix_s=unix_s,
            engines=1,
            running=running,
            waiting=waiting,
            waiting_capacity=waiting,
            num_gpu_blocks=nothing,
            kv_cache_usage=usage,
            preemptions_total=preemptions,
            generation_tokens_total=tokens,
            prefix_cache_queries_total=queries,
            prefix_cache_hits_total=hits,
            vram_used_bytes=nothing,
            simulated_lateness_s=nothing,
            ttft_sum_s=nothing,
            ttft_count=nothing,
            tpot_sum_s=nothing,
            tpot_count=nothing,
            e2e_sum_s=nothing,
            e2e_count=nothing,
            queue_sum_s=nothing,
            queue_count=nothing,
            engines_there=np.ones(len(unix_s), dtype=np.int64),
            failed_scrapes=0,
        )

    def _client(self) -> ClientSamples:
        samples = np.array(self._samples, dtype=np.float64).reshape(-1, 8)
        count = len(samples)
        return ClientSamples(
            unix_s=samples[:, 0],
            worker=np.zeros(count, dtype=np.int64),
            loop_lag_s=np.full(count, self._lag_s),
            loop_lag_max_s=np.full(count, self._lag_s),
            cpu=np.full(count, 0.1),
            in_flight=samples[:, 1] + samples[:, 2],
        )

    def _info(self) -> RunInfo:
        engine = self._service.engine
        thinks = float(np.mean(self._service.chatting.pauses_s)) > THINKS_S
        return RunInfo(
            run_id=f"virtual-{self._seed}",
            model="virtual",
            scenario="virtual",
            host="http://127.0.0.1",
            started_unix_s=0.0,
            ended_unix_s=self._simulation.traces[0].step_end_s[-1] if self._finished else None,
            settings={
                "settle_s": self._settle_s,
                "think_s": "measured" if thinks else "0",
                "seed": self._seed,
                "error_pause_s": self._service.chatting.error_pause_s,
                "request_timeout_s": self._service.timeout_s,
            },
            server=ServerInfo(
                engine="vllm",
                max_model_len=engine.max_model_len,
                block_size=engine.block_size,
                num_gpu_blocks=engine.num_gpu_blocks,
                kv_cache_tokens=engine.num_gpu_blocks * engine.block_size,
                enable_prefix_caching=engine.enable_prefix_caching,
            ),
            schedule=list(self._schedule),
            classes=[_user_class(one, self._slo) for one in self._service.chatting.classes] or None,
        )


def _user_class(one: ChattingClass, slo: Slo) -> UserClass:
    """Returns the class as a workload file would have it; lengths and pauses are those measured."""
    own, chatting = one.objectives(slo), one.chatting
    return UserClass(
        name=one.name,
        weight=one.weight,
        shared_tokens=chatting.shared_prefix_tokens,
        shared_prompts=len(chatting.shared_texts),
        prompt_tokens="1",
        output_tokens="1",
        think_s="measured" if float(np.mean(chatting.pauses_s)) > THINKS_S else "0",
        tool_s="0" if chatting.tool_pauses_s is None else "measured",
        objectives=ClassObjectives(
            ttft_p95_s=own.ttft_p95_s, tpot_p95_s=own.tpot_p95_s, stall_p95_s=own.stall_p95_s
        ),
    )


def _outcome(request: Request) -> Outcome:
    if request.state is RequestState.FINISHED:
        return Outcome.OK
    return Outcome.TIMEOUT if request.state is RequestState.ABORTED else Outcome.HTTP_ERROR


def _row(request: Request, trace: EngineTrace) -> dict[str, float]:
    """Returns the scalar columns of an ended request, as a load test would have recorded them.

    A request that ran into its time limit has the chunks that had come, but no usage.
    """
    assert request.end_s is not None
    start_s = request.arrival_s
    found = {
        "start_unix_s": start_s,
        "sent_s": 0.0,
        "end_s": request.end_s - start_s,
        "http_status": float(request.refused_with or 200),
        "pause_s": NAN if request.pause_s is None else request.pause_s,
        "chunks": 0.0,
    }
    if request.first_token_s is None:
        return found
    first_s, last_s, chunks = request.first_token_s - start_s, request.end_s - start_s, request.output_tokens
    if request.state is RequestState.FINISHED:
        found |= {
            "prompt_tokens": request.prompt_tokens,
            "output_tokens": request.output_tokens,
            "cached_tokens": request.cached_tokens,
        }
    else:
        tokens_s = trace.token_times_s(request)
        last_s, chunks = tokens_s[-1] - start_s, len(tokens_s)
    return found | {
        "first_chunk_s": first_s,
        "first_answer_s": first_s,
        "last_chunk_s": last_s,
        "chunks": chunks,
        "first_chunk_tokens": 1,
    }

"""A deterministic model of one vLLM 0.32 engine: scheduler, paged KV pool, prefix cache and step times.

Knows no I/O, no clock and no text: the caller passes the time, and a prompt is a length with optional block
hashes.
"""

import math
import random
from collections import deque
from collections.abc import Callable

from loadtest.simulator.engine.block_pool import BlockPool
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request, RequestState
from loadtest.simulator.engine.steps import Counters, Gauges, OnStep, Shortage, Step


class Engine:
    """Schedules requests step by step. Its driver calls `begin(now)`, waits until the instant that `begin`
    returns, calls `end()`, and starts again. `submit` and `abort` may be called at any time.

    The computing cost of a step grows with the number of its events (blocks filled, requests begun or ended),
    not with the number of running requests. The state of each decode is derived from the number of the step.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_gpu_blocks - 1)
        self.counters = Counters()
        self.gauges = Gauges()
        self._shortage = Shortage.NOTHING
        self._arrived: list[Request] = []  # enter the queue, and so the gauges, at the next step
        self._waiting: deque[Request] = deque()
        # Dicts serve as ordered sets: in order of admission, with removal anywhere and popitem() for the
        # last.
        self._running: dict[Request, None] = {}
        self._decoding: dict[Request, None] = {}
        # Each decode fills a block at steps of one residue modulo the block size, and ends at a known step.
        self._growers: list[dict[Request, None]] = [{} for _ in range(config.block_size)]
        self._ends_at: dict[int, list[Request]] = {}
        self._prefilling: Request | None = (
            None  # at most one prefill is split by the token budget, that of the last admitted request
        )
        self._decode_kv_tokens = 0
        self._step_number = -1
        self._admissions = 0
        self._current: Step | None = None
        self._current_end_s = math.nan
        self._next: Step | None = None
        self._settled = False  # the next schedule could neither admit a request nor split a prefill
        self._queued_tokens = 0
        self._random = random.Random(config.seed)
        sigma2 = math.log1p(config.jitter_cv**2)
        self._jitter = (-sigma2 / 2, math.sqrt(sigma2)) if config.jitter_cv else None

    @property
    def unfinished(self) -> int:
        """Number of running and waiting requests."""
        return len(self._running) + len(self._waiting) + len(self._arrived)

    @property
    def usage(self) -> float:
        """Fraction of blocks in use, without the null block: `vllm:kv_cache_usage_perc`."""
        return self.gauges.used_blocks / self.pool.blocks

    def submit(self, request: Request, now_s: float) -> bool:
        """Queues a request. Returns False when a queue limit rejects it.

        Raises ValueError for a request longer than max_model_len, which vLLM's front end refuses.
        """
        if request.prompt_tokens + request.output_tokens > self.config.max_model_len:
            raise ValueError(
                f"{request.prompt_tokens} + {request.output_tokens} tokens exceed max_model_len "
                f"({self.config.max_model_len})."
            )
        limit, limit_tokens = self.config.max_num_queued_reqs, self.config.max_num_queued_tokens
        if limit is not None and self.unfinished >= limit:
            self.counters.rejected += 1
            return False
        if limit_tokens is not None and self._queued_tokens >= limit_tokens:
            self.counters.rejected_for_tokens += 1
            return False
        request.arrival_s = now_s
        self._queued_tokens += request.prompt_tokens
        self._arrived.append(request)
        return True

    def abort(self, request: Request, now_s: float) -> None:
        """Aborts a request at once and frees its blocks. Does nothing if the request has ended already."""
        if request.state in (RequestState.FINISHED, RequestState.ABORTED):
            return
        self._settled = False
        if request.first_token_s is None:
            self._queued_tokens -= request.prompt_tokens
        if request in self._running:
            self._leave_batch(request)
            del self._running[request]
            self._free(request)
        elif request.state is RequestState.WAITING:
            (self._arrived if request in self._arrived else self._waiting).remove(request)
        for step in (self._current, self._next):
            if step is not None:
                step.drop(request)
        request.state = RequestState.ABORTED
        request.end_s = now_s
        self.counters.aborted += 1

    def begin(self, now_s: float) -> float | None:
        """Starts a step. Returns the instant at which the step ends, or None if there is nothing to compute.

        Raises RuntimeError if a step is in progress already.
        """
        if self._current is not None:
            raise RuntimeError("A step is under way: call end() first.")
        self._waiting.extend(self._arrived)
        self._arrived.clear()
        step = self._next or self._schedule(now_s)
        self._next = None
        if step is None:
            return None
        self._current = step
        self._current_end_s = now_s + step.duration_s
        if self.config.async_scheduling:
            self._next = self._schedule(now_s)
        return self._current_end_s

    def end(self) -> Step:
        """Ends the step in progress: counts tokens, frees the blocks of ended requests and updates the
        gauges. Returns the step.

        Raises RuntimeError if no step is in progress.
        """
        step = self._current
        if step is None:
            raise RuntimeError("No step is under way: call begin() first.")
        self._current = None
        step.end_s = self._current_end_s
        for request in step.first:
            self._report_prefill(request, step.end_s)
        for request in step.finished:
            self._finish(request, step.end_s)
        self.counters.generation_tokens += len(step.tokens)
        self.counters.steps += 1
        self._take_gauges()
        return step

    def leap(self, now_s: float, until_s: float, on_step: OnStep) -> float:
        """Runs several decode steps at once, while neither the batch nor the queue can change.

        The result is the same as with `begin` and `end` for each step, at a fraction of the cost. Call it
        only between two steps. It runs no step if a request has arrived, could be admitted or is in prefill.
        It stops before a step that:
        - would begin at or after `until_s`,
        - would end a request,
        - would need more blocks than are free.

        Returns the instant at which the next step may begin; this is `now_s` if no step was run.
        """
        ahead = self._next
        if not self._settled or self._arrived or self._prefilling is not None or not self._decoding:
            return now_s
        if self.config.async_scheduling and (ahead is None or ahead.first or ahead.finished):
            return now_s
        batch, first, kv_tokens = len(self._decoding), self._step_number + 1, self._decode_kv_tokens
        running, waiting, used = len(self._running), len(self._waiting), self.pool.blocks - self.pool.free
        shortage = self._shortage
        growers, ends_at, block_size = self._growers, self._ends_at, self.config.block_size
        duration_of = self._decode_steps(batch)
        ahead_s = math.nan if ahead is None else ahead.duration_s
        number = first
        while now_s < until_s and number not in ends_at:
            if growing := len(growers[number % block_size]):
                if growing > self.pool.free:
                    break
                self.pool.take(growing)
                used += growing
            number += 1
            kv_tokens += batch
            duration_s = duration_of(kv_tokens)
            now_s += duration_s if ahead is None else ahead_s
            ahead_s = duration_s
            on_step(now_s, running, waiting, used, shortage)
        if number > first:
            self._count_leap(number - first, kv_tokens, ahead_s)
        return now_s

    def _count_leap(self, steps: int, kv_tokens: int, ahead_s: float) -> None:
        self._step_number += steps
        self._decode_kv_tokens = kv_tokens
        self.counters.steps += steps
        self.counters.generation_tokens += steps * len(self._decoding)
        if self._next is not None:
            self._next = Step(
                number=self._step_number,
                duration_s=ahead_s,
                prefill_tokens=0,
                tokens=list(self._decoding),
            )

    def _take_gauges(self) -> None:
        self.gauges.running = len(self._running)
        self.gauges.waiting = len(self._waiting)
        self.gauges.used_blocks = self.pool.blocks - self.pool.free
        self.gauges.shortage = self._shortage

    def _report_prefill(self, request: Request, now_s: float) -> None:
        if request.first_token_s is None:
            request.first_token_s = now_s
            self._queued_tokens -= request.prompt_tokens
            self.counters.prompt_tokens += request.prompt_tokens
        if request.unreported_preemptions:
            self.counters.preemptions += request.unreported_preemptions
            request.unreported_preemptions = 0

    def _finish(self, request: Request, now_s: float) -> None:
        # With asynchronous scheduling a request may have been preempted while its last token was computed.
        if request in self._running:
            del self._running[request]
            self._free(request)
            self._settled = False
        self.counters.preemptions += request.unreported_preemptions
        request.unreported_preemptions = 0
        request.state = RequestState.FINISHED
        request.end_s = now_s
        self.counters.finished += 1

    def _schedule(self, now_s: float) -> Step | None:
        self._settled = False
        preempted = self._grow()
        budget = self.config.max_num_batched_tokens - len(self._decoding)
        completed: list[Request] = []
        prefill = PrefillTotals()
        if self._prefilling is not None:
            preempted |= not self._continue_prefill(self._prefilling, budget, prefill, completed)
        self._shortage = Shortage.BLOCKS if preempted else Shortage.NOTHING
        if not preempted:
            self._admit(now_s, budget - prefill.tokens, prefill, completed)
        if not self._decoding and not prefill.tokens:
            return None
        self._step_number += 1
        self._decode_kv_tokens += len(self._decoding)
        step = Step(
            number=self._step_number,
            duration_s=self._duration_s(
                len(self._decoding),
                prefill.sequences,
                self._decode_kv_tokens + prefill.kv_tokens,
                prefill.tokens,
                prefill.pairs,
            ),
            prefill_tokens=prefill.tokens,
            tokens=[*self._decoding, *completed],
        )
        step.first = completed
        for request in completed:
            self._start_decoding(request)
        step.finished = self._ends_at.pop(self._step_number, [])
        for request in step.finished:
            self._leave_batch(request)
            request.state = RequestState.ENDING
        return step

    def _duration_s(
        self, decodes: int, prefills: int, kv_tokens: int, prefill_tokens: int, pairs: float = 0.0
    ) -> float:
        config = self.config
        if config.step_time is not None:
            duration_s = config.step_time.seconds(
                decodes=decodes,
                prefills=prefills,
                kv_tokens=kv_tokens,
                prefill_tokens=prefill_tokens,
                pairs=pairs,
            )
        else:
            duration_s = (
                config.step_base_s
                + config.step_per_seq_s * (decodes + prefills)
                + config.step_per_kv_token_s * kv_tokens
                + config.prefill_per_token_s * prefill_tokens
            )
        captured = config.max_cudagraph_capture_size
        if captured is not None and decodes + prefill_tokens > captured:
            duration_s += config.step_eager_s
        return duration_s if self._jitter is None else duration_s * self._random.lognormvariate(*self._jitter)

    def _decode_steps(self, decodes: int) -> Callable[[int], float]:
        """Returns `_duration_s` of steps that only decode so many requests: a function of their KV tokens."""
        config = self.config
        captured = config.max_cudagraph_capture_size
        if config.step_time is None or captured is not None or self._jitter is not None:
            return lambda kv_tokens: self._duration_s(decodes, 0, kv_tokens, 0)
        return config.step_time.decode_steps(decodes)

    def _grow(self) -> bool:
        """Gives one more block to each decode whose last block is full, and preempts requests if blocks are
        lacking. Returns whether a request was preempted."""
        growers = self._growers[(self._step_number + 1) % self.config.block_size]
        if len(growers) <= self.pool.free:
            self.pool.take(len(growers))
            return False
        preempted = False
        for request in sorted(growers, key=_admission_number):
            if request not in growers:
                continue  # preempted for a request before it
            while not self.pool.free:
                preempted = True
                if self._preempt_last() is request:
                    return True
            self.pool.take(1)
            # The block counts as held from the next step on. Until then the request cannot be preempted,
            # because only requests admitted after it are.
        return preempted

    def _preempt_last(self) -> Request:
        """Preempts the request that was admitted last: frees its blocks and puts it at the front of the
        queue, to be recomputed. Returns the request."""
        victim, _ = self._running.popitem()
        victim.preemptions += 1
        victim.unreported_preemptions += 1
        self._leave_batch(victim)
        self._free(victim)
        if victim.state is not RequestState.ENDING:
            victim.state = RequestState.WAITING
            self._waiting.appendleft(victim)
        return victim

    def _continue_prefill(
        self, request: Request, budget: int, prefill: "PrefillTotals", completed: list[Request]
    ) -> bool:
        """Computes the next chunk of a prompt. Returns False if blocks were lacking and the request was
        preempted."""
        if budget <= 0:
            return True
        chunk = min(request.prefill_target - request.computed_tokens, budget)
        needed = self._blocks(request.computed_tokens + chunk) - self._blocks(request.computed_tokens)
        if needed > self.pool.free:
            # The request was admitted last, so it is the one that is preempted.
            self._preempt_last()
            return False
        self.pool.take(needed)
        self._compute(request, chunk, prefill, completed)
        return True

    def _admit(self, now_s: float, budget: int, prefill: "PrefillTotals", completed: list[Request]) -> None:
        """Admits waiting requests, first come, first served. A request is admitted only if blocks for its
        whole sequence are free, but it takes only the blocks of its first chunk."""
        while budget > 0 and self._waiting and len(self._running) < self.config.max_num_seqs:
            request = self._waiting[0]
            target = request.prompt_tokens + request.made_tokens
            hits = self._cached_blocks(request, target)
            shared = request.block_hashes[:hits]
            if self._blocks(target) - hits > self.pool.free - self.pool.idle_among(shared):
                self._settled, self._shortage = True, Shortage.BLOCKS
                return
            self._waiting.popleft()
            self.pool.share(shared)
            request.registered_blocks = hits
            request.prefill_target = target
            request.computed_tokens = hits * self.config.block_size
            chunk = min(target - request.computed_tokens, budget)
            self.pool.take(self._blocks(request.computed_tokens + chunk) - hits)
            self._enter_batch(request, now_s)
            budget -= chunk
            self._compute(request, chunk, prefill, completed)
        self._settled = budget > 0 or not self._waiting
        if self._waiting and len(self._running) >= self.config.max_num_seqs:
            self._shortage = Shortage.SLOTS

    def _cached_blocks(self, request: Request, target: int) -> int:
        # The last token is always computed, for its logits.
        if not self.config.enable_prefix_caching:
            return 0
        return self.pool.hits(request.block_hashes, (target - 1) // self.config.block_size)

    def _enter_batch(self, request: Request, now_s: float) -> None:
        self._admissions += 1
        request.admission_number = self._admissions
        request.state = RequestState.PREFILL
        self._running[request] = None
        if request.admitted_s is None:
            request.admitted_s = now_s
        if self.config.enable_prefix_caching and not request.preemptions:
            request.cached_tokens = request.computed_tokens
            self.counters.prefix_queries += request.prompt_tokens
            self.counters.prefix_hits += request.cached_tokens

    def _compute(
        self, request: Request, chunk: int, prefill: "PrefillTotals", completed: list[Request]
    ) -> None:
        prefill.pairs += chunk * (request.computed_tokens + (chunk + 1) / 2)
        request.computed_tokens += chunk
        prefill.sequences += 1
        prefill.tokens += chunk
        prefill.kv_tokens += request.computed_tokens
        self._register(request, request.computed_tokens)
        if request.computed_tokens == request.prefill_target:
            self._prefilling = None
            completed.append(request)
        else:
            self._prefilling = request

    def _start_decoding(self, request: Request) -> None:
        """Adds a request to the decodes when its prefill completes in the current step. The current step and
        each later step make one token of the request."""
        number = self._step_number
        request.state = RequestState.DECODE
        request.run_start_step = number
        self._decoding[request] = None
        self._decode_kv_tokens += request.prefill_target
        self._growers[self._growth_residue(request)][request] = None
        self._ends_at.setdefault(self._last_step(request), []).append(request)

    def _growth_residue(self, request: Request) -> int:
        # The step after `number` stores token target + 1, which needs a block when target is whole blocks.
        return (request.run_start_step + 1 - request.prefill_target) % self.config.block_size

    @staticmethod
    def _last_step(request: Request) -> int:
        return request.run_start_step + request.output_tokens - request.made_tokens - 1

    def _leave_batch(self, request: Request) -> None:
        """Stops computing for a request. The request keeps its blocks."""
        if request.state is RequestState.PREFILL:
            self._prefilling = None
        elif request.state is RequestState.DECODE:
            steps = self._step_number - request.run_start_step
            request.computed_tokens = request.prefill_target + steps
            self._decode_kv_tokens -= request.computed_tokens
            del self._decoding[request]
            del self._growers[self._growth_residue(request)][request]
            if ending := self._ends_at.get(self._last_step(request)):
                ending.remove(request)
            request.step_runs.append((request.run_start_step, self._step_number + 1))
            request.made_tokens += steps + 1

    def _free(self, request: Request) -> None:
        """Frees all blocks of a request. The last block is freed first, so that the blocks of a prefix stay
        cached longer than the blocks after it."""
        self._register(request, request.computed_tokens)
        held = self._blocks(request.computed_tokens)
        self.pool.give_back(held - request.registered_blocks + len(request.duplicate_blocks))
        hashes, duplicates = request.block_hashes[: request.registered_blocks], request.duplicate_blocks
        own = [one for at, one in enumerate(hashes) if at not in duplicates] if duplicates else hashes
        self.pool.unshare(reversed(own))
        request.registered_blocks = 0
        request.duplicate_blocks.clear()
        request.computed_tokens = 0

    def _register(self, request: Request, computed: int) -> None:
        """Puts a request's full blocks into the prefix cache. Blocks that decoding filled are put there only
        when the request frees its blocks."""
        if not request.block_hashes or not self.config.enable_prefix_caching:
            return
        first = request.registered_blocks
        full = min(computed // self.config.block_size, len(request.block_hashes))
        if full > first:
            duplicates = self.pool.register(request.block_hashes[first:full])
            request.duplicate_blocks.update(first + position for position in duplicates)
            request.registered_blocks = full

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)


class PrefillTotals:
    """Sums over all prefill chunks of one step."""

    __slots__ = ("kv_tokens", "pairs", "sequences", "tokens")

    def __init__(self) -> None:
        self.sequences = 0
        self.tokens = 0
        self.kv_tokens = 0
        self.pairs = 0.0
        """Sum over the tokens of the tokens that each attends to."""


def _admission_number(request: Request) -> int:
    return request.admission_number

"""The only file where gevent and asyncio meet. A uvloop event loop runs on a native thread, and greenlets
wait for its results.

`import locust` replaces Python's threads, sockets and selectors by gevent's, so this file uses the originals.
If the event loop ran in a greenlet, every busy greenlet would delay the time stamps.
"""

import asyncio
import collections
import gc
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import gevent
import uvloop
from gevent.hub import Waiter
from gevent.monkey import get_original

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

SWITCH_INTERVAL_S = 0.0005
"""Seconds after which a busy thread gives up the GIL. Beside one busy thread, time stamps are 1 ms late at
p99 with this value, and 5 ms with Python's default of 5 ms."""

GC_THRESHOLD = 5_000
"""Number of new objects after which the garbage collector runs. Rows and streams form no reference cycles, so
it finds little. At 400 streams, Python's default of 700 costs 4 % of the CPU; 50,000 stops the event loop
for 40 ms every 25 s; 5,000 stops it for 2 to 5 ms every 2 s."""

_start_native_thread = get_original("_thread", "start_new_thread")
_allocate_native_lock = get_original("_thread", "allocate_lock")
_native_sleep = get_original("time", "sleep")


class _Call(Generic[_T]):
    """A coroutine on the event loop, together with the greenlet that waits for its result."""

    def __init__(self, coroutine: Coroutine[Any, Any, _T], waiter: "Waiter[None]") -> None:
        self.coroutine = coroutine
        self.waiter = waiter
        self.task: asyncio.Task[_T] | None = None
        self.abandoned = False


class LoopThread:
    """Runs one event loop on one native thread. Create it after any fork. Its public methods must be called
    from greenlets of the thread that created it."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()  # a full collection that looks at the modules too would stop the loop for 50 ms
        gc.set_threshold(GC_THRESHOLD)
        self._loop = uvloop.new_event_loop()
        self._finished: collections.deque[_Call[Any]] = collections.deque()
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._deliver)
        self._stopped = _allocate_native_lock()
        self._stopped.acquire()
        self._jobs: list[_Periodic] = []
        _start_native_thread(self._serve, ())

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs `coroutine` on the event loop while the calling greenlet waits, and returns its result. If the
        greenlet is killed, the coroutine is cancelled, and nobody waits for its end."""
        call = _Call(coroutine, Waiter())
        self._loop.call_soon_threadsafe(self._begin, call)
        try:
            call.waiter.get()
        except BaseException:
            call.abandoned = True
            self._loop.call_soon_threadsafe(self._abandon, call)
            raise
        assert call.task is not None
        return call.task.result()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Runs `function` on the event loop's thread and returns at once."""
        self._loop.call_soon_threadsafe(function)

    def every(self, seconds: float, job: Callable[[], object]) -> "_Periodic":
        """Runs `job` every `seconds` seconds on a native thread of its own, so the job may block (a disk, a
        driver). Returns an object whose `stop` runs the job a last time and ends the thread."""
        periodic = _Periodic(seconds, job)
        self._jobs.append(periodic)
        return periodic

    def stop(self) -> None:
        """Stops the periodic jobs, each after a last run. Then stops the event loop and cancels the
        coroutines that still run there."""
        for job in self._jobs:
            job.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        _wait_native(self._stopped, seconds=5.0)
        self._wake.stop()
        self._wake.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
        finally:
            self._stopped.release()

    def _begin(self, call: _Call[Any]) -> None:
        if call.abandoned:
            call.coroutine.close()
            return
        call.task = self._loop.create_task(call.coroutine)
        call.task.add_done_callback(lambda _task: self._end(call))

    def _end(self, call: _Call[Any]) -> None:
        self._finished.append(call)
        self._wake.send()  # the one gevent operation that another thread may do

    def _abandon(self, call: _Call[Any]) -> None:
        if call.task is not None:
            call.task.cancel()

    def _deliver(self) -> None:
        while self._finished:
            call = self._finished.popleft()
            if not call.abandoned:
                call.waiter.switch(None)
            elif call.task is not None and not call.task.cancelled():
                call.task.exception()  # asyncio warns of exceptions that nobody retrieved


class _Periodic:
    """Runs a blocking job on a native thread, at a fixed interval."""

    def __init__(self, seconds: float, job: Callable[[], object]) -> None:
        self._seconds = seconds
        self._job = job
        self._said: set[type[Exception]] = set()
        self._stopping = False
        self._stopped = _allocate_native_lock()
        self._stopped.acquire()
        _start_native_thread(self._serve, ())

    def stop(self) -> None:
        """Ends the thread after a last run of the job. May be called twice."""
        if not self._stopping:
            self._stopping = True
            _wait_native(self._stopped, seconds=5.0)

    def _serve(self) -> None:
        while not self._stopping:
            _nap(self._seconds, lambda: self._stopping)
            self._run()
        self._stopped.release()

    def _run(self) -> None:
        try:
            self._job()
        except Exception as error:
            # A thread that dies in silence would lose every later row. Each kind of error is said once.
            if type(error) not in self._said:
                logger.exception("A background job of the load test failed; it is tried again.")
            self._said.add(type(error))


def _nap(seconds: float, ended: Callable[[], bool]) -> None:
    step = min(seconds, 0.05)
    for _ in range(max(1, round(seconds / step))):
        if ended():
            return
        _native_sleep(step)


def _wait_native(lock: Any, *, seconds: float) -> None:
    """Waits up to `seconds` for another thread to release `lock`; other greenlets run meanwhile."""
    for _ in range(round(seconds / 0.01)):
        if lock.acquire(False):
            return
        gevent.sleep(0.01)

"""Spreads independent simulations over the machine's cores. Knows nothing of them."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_task: tuple[Callable[[Any], Any], list[Any]] | None = None
"""Work and items of the call under way: forked processes inherit them, so that neither must be pickled."""


def for_each(work: Callable[[_Item], _Result], items: Iterable[_Item], /) -> Iterator[_Result]:
    """Yields what `work` returns for each item, in their order; works like `map`, on all cores.

    Results are pickled. One after the other where processes cannot be forked, and in a process that is one of
    several already.
    """
    global _task
    listed, cores = list(items), _cores()
    alone = multiprocessing.parent_process() is None
    if len(listed) < 2 or cores < 2 or not alone or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, listed)
        return
    _task = (work, listed)
    # Not multiprocessing.Pool: it ends its workers by force, and waits for ever for one that holds a lock.
    with ProcessPoolExecutor(
        min(cores, len(listed)),
        mp_context=multiprocessing.get_context("fork"),
        # Ctrl-C ends the workers at once and without a word: the parent says it.
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    ) as pool:
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of threads beside a fork: those of numpy and of the progress bar hold no
                # lock that the work needs.
                warnings.simplefilter("ignore", DeprecationWarning)
                results = pool.map(_work_on, range(len(listed)))
            yield from results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work_on(position: int) -> Any:
    assert _task is not None
    work, items = _task
    return work(items[position])

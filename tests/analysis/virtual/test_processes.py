"""Work that is spread over several processes."""

import os

import pytest

from analysis.virtual.processes import for_each


def test_work_in_several_processes_keeps_its_order_and_its_errors() -> None:
    offset = 100
    assert list(for_each(lambda item: item + offset, range(7))) == list(range(100, 107))
    if len(os.sched_getaffinity(0)) > 1:
        assert os.getpid() not in set(for_each(lambda _: os.getpid(), range(4)))

    nested = for_each(lambda _: [os.getpid(), *for_each(lambda _: os.getpid(), range(2))], range(2))
    assert all(len(set(pids)) == 1 for pids in nested)

    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(for_each(fail, range(2)))

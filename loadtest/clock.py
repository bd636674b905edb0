"""The time of a load test: wall-clock time that never steps. Knows nothing else."""

import time

_WALL_MINUS_MONOTONIC_S = time.time() - time.monotonic()


def unix_now() -> float:
    """Returns the time in seconds since 1970: the wall clock as it was when this process began, moved on by
    the monotonic clock. So all time stamps of a process fit together, even if somebody sets the machine's
    clock while a test runs."""
    return _WALL_MINUS_MONOTONIC_S + time.monotonic()

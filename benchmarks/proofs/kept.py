"""Reads and completes the rows of a long benchmark, one JSON line each, in benchmarks/data."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"

Row = dict[str, Any]
"""One measured row, with at least the key `number`."""


def read_rows(path: Path) -> dict[int, Row]:
    """Reads the rows by number; an empty dict if there is no file yet."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {row["number"]: row for row in map(json.loads, file)}


def measure_missing(path: Path, numbers: Iterable[int], measure: Callable[[int], Row]) -> dict[int, Row]:
    """Measures the numbers that have no row in the file, on all cores that the process may use (`taskset`
    names others), and appends each row when it is ready.

    Returns all rows. `measure` must be a function at module level, because other processes import it.
    """
    rows = read_rows(path)
    missing = [number for number in numbers if number not in rows]
    if not missing:
        return rows
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file, ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        futures = [pool.submit(measure, number) for number in missing]
        for done, future in enumerate(as_completed(futures), start=1):
            row = future.result()
            rows[row["number"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"\r{done} of {len(missing)}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    return rows

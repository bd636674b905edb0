"""Rows of a long benchmark, one JSON line each, kept in benchmarks/data: what is missing is measured."""

import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"

Row = dict[str, Any]
"""One measured row; it holds its `number`."""


def read_rows(path: Path) -> dict[int, Row]:
    """Rows by their numbers; empty where nothing was measured yet."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {row["number"]: row for row in map(json.loads, file)}


def measure_missing(path: Path, numbers: Iterable[int], measure: Callable[[int], Row]) -> dict[int, Row]:
    """Measures the missing numbers on all cores and keeps each row as soon as it is there. Returns all that
    are kept. `measure` is a module's own function: it goes to other processes."""
    rows = read_rows(path)
    missing = [number for number in numbers if number not in rows]
    if not missing:
        return rows
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file, ProcessPoolExecutor() as pool:
        futures = [pool.submit(measure, number) for number in missing]
        for done, future in enumerate(as_completed(futures), start=1):
            row = future.result()
            rows[row["number"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"\r{done} of {len(missing)}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    return rows

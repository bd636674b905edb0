"""Runs the cases of the field and prints one line for each.

Environment variable SEATCOUNT_FIELD: names of cases, separated by commas; only these run. The runs are kept
in build/field.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from testing.field.case import FieldCase, Judged
from testing.field.cases import ALL_CASES

_FOLDER = Path("build/field").resolve()


def main() -> None:
    """Runs the cases and prints the table of docs/benchmarks.md."""
    print("| case | right | ours | |\n|---|---|---|---|", flush=True)
    wrong = 0
    ran = list(_chosen())
    for one in ran:
        began = time.monotonic()
        found = run_case(one)
        wrong += not found.ok
        mark = "ok" if found.ok else "WRONG"
        took = f"{time.monotonic() - began:.0f} s"
        print(f"| {one.name}: {one.title} | {found.right} | {found.ours} | {mark}, {took} |", flush=True)
    print(f"\n{len(ran) - wrong} of {len(ran)} are right.")


def _chosen() -> Iterator[FieldCase]:
    names = [name for name in os.environ.get("SEATCOUNT_FIELD", "").split(",") if name]
    for one in ALL_CASES:
        if not names or one.name in names:
            yield one


def run_case(one: FieldCase) -> Judged:
    """Runs one case in an empty folder. A case that raises is wrong, with the exception as its answer."""
    folder = _FOLDER / one.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return one.judge(folder)
    except Exception as error:  # noqa: BLE001 (one case that breaks must not end the table)
        return Judged(right="-", ours=f"{type(error).__name__}: {error}"[:200], ok=False)

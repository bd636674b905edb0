"""Prints figures of docs/benchmarks.md: those of the benchmarks named on the command line.

Without a name it runs `BENCHMARKS`, as `make bench` does. `gpu --fit` also writes the fitted table.
"""

import sys

from benchmarks.field import table
from benchmarks.gpu import table as gpu
from benchmarks.instrument import analysis, client, peers, simulator
from benchmarks.proofs import (
    coverage,
    gate,
    held_out,
    mixes,
    prefix_cache,
    real_truth,
    real_ttft,
    search_cost,
    sizing,
    stalls,
)
from benchmarks.proofs.fidelity import benchmark as fidelity

BENCHMARKS = {
    "client": client.main,
    "analysis": analysis.main,
    "peers": peers.main,
    "sizing": sizing.main,
    "simulator": simulator.main,
}
ON_DEMAND = {
    "coverage": coverage.main,
    "field": table.main,
    "fidelity": fidelity.main,
    "gate": gate.main,
    "gpu": gpu.main,
    "held_out": held_out.main,
    "mixes": mixes.main,
    "prefix_cache": prefix_cache.main,
    "real_truth": real_truth.main,
    "real_ttft": real_ttft.main,
    "search_cost": search_cost.main,
    "stalls": stalls.main,
}
"""Benchmarks that run only when they are named."""


def main() -> int:
    known = BENCHMARKS | ON_DEMAND
    chosen = [word for word in sys.argv[1:] if not word.startswith("--")] or list(BENCHMARKS)
    if unknown := [name for name in chosen if name not in known]:
        print(f"No benchmark is called {unknown[0]}; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    for name in chosen:
        known[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())

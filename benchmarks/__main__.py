"""`make bench`: prints the figures that README.md quotes. Names on the command line choose benchmarks."""

import sys

from benchmarks.instrument import analysis, client, peers, simulator
from benchmarks.proofs import (
    coverage,
    fidelity,
    gate,
    held_out,
    prefix_cache,
    real_truth,
    search_cost,
    sizing,
)

BENCHMARKS = {
    "client": client.run,
    "analysis": analysis.run,
    "peers": peers.run,
    "sizing": sizing.run,
    "simulator": simulator.run,
}
ON_DEMAND = {
    "coverage": coverage.run,
    "fidelity": fidelity.run,
    "gate": gate.run,
    "held_out": held_out.run,
    "prefix_cache": prefix_cache.run,
    "real_truth": real_truth.run,
    "search_cost": search_cost.run,
}
"""Not part of `make bench`."""


def main() -> int:
    known = BENCHMARKS | ON_DEMAND
    chosen = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [name for name in chosen if name not in known]:
        print(f"No benchmark is called {unknown[0]}; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    for name in chosen:
        known[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make bench`: prints the figures that README.md quotes. Names on the command line choose benchmarks."""

import sys

from benchmarks import analysis, client, gate, peers

BENCHMARKS = {"client": client.run, "analysis": analysis.run, "gate": gate.run, "peers": peers.run}


def main() -> int:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        print(f"No benchmark is called {unknown[0]}; there are: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    for name in chosen:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make demo`: the whole path against the embedded server, in under two minutes. Runs the user's own commands
as processes and ends every one of them, also when interrupted."""

import sys
from pathlib import Path

from scenarios import embedded

PRESET = "qwen3-1.7b-t4"
BLOCKS = 201
"""A pool of 3,200 tokens instead of the T4's 79,568: so small that requests of a second reach its wall."""
REPORTS = Path("reports") / "demo"
FLAGS = {
    "--levels": "4,8,12,16,20",
    "--level-s": "18",
    "--settle-s": "2",
    "--prompt-tokens": "lognormal:128,0.5",
    "--output-tokens": "lognormal:32,0.5",
    "--reports-dir": str(REPORTS),
}


def demo() -> None:
    """Serves, loads, analyses."""
    with embedded.served(PRESET, "--num-gpu-blocks-override", str(BLOCKS)) as host:
        embedded.say(
            f"The pool is reduced to {BLOCKS - 1} blocks, so that short chats reach its wall in a minute: "
            "the answer below is for that pool, not for a whole T4."
        )
        embedded.load_test(host, FLAGS)
        embedded.run([sys.executable, "-m", "analysis.capacity", str(REPORTS)])


if __name__ == "__main__":
    sys.exit(embedded.guarded(demo))

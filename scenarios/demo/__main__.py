"""`make demo`: a load test of the embedded (simulated) server and its analysis, in under two minutes.

Runs the commands of a normal user as processes, and ends all of these processes even when interrupted.
"""

import sys
from pathlib import Path

from scenarios.demo import embedded

_PRESET = "qwen3-1.7b-t4"
_BLOCKS = 201
"""Blocks of the KV-cache pool, one of which is vLLM's null block. The other 200 hold 3,200 tokens, so few
that short chats fill the pool within a minute."""
_REPORTS = Path("reports") / "demo"
_FLAGS = {
    "--levels": "4,8,12,16,20",
    "--level-s": "18",
    "--settle-s": "2",
    "--prompt-tokens": "lognormal:128,0.5",
    "--output-tokens": "lognormal:32,0.5",
    "--reports-dir": str(_REPORTS),
}


def demo() -> None:
    """Starts the server, runs the load test and analyses it. Raises ProcessFailedError if a process fails."""
    with embedded.served(_PRESET, "--num-gpu-blocks-override", str(_BLOCKS)) as host:
        embedded.tell(
            f"The pool is reduced to {_BLOCKS - 1} blocks, so that short chats reach its wall in a minute: "
            "the answer below is for that pool, not for a whole T4."
        )
        embedded.run_chat(host, _FLAGS)
        embedded.finish_command([sys.executable, "-m", "analysis.capacity", str(_REPORTS)])


if __name__ == "__main__":
    sys.exit(embedded.demo_exit_code(demo))

"""Runs a real vLLM with a tiny model on the CPU. It listens on 127.0.0.1 only.

    python -m testing.vllm            installs what is missing and serves until Ctrl-C
    python -m testing.vllm --prepare  only installs what is missing

The environment is made once. A marker file is written last, so an interrupted installation is detected and
made again. A lock prevents two processes from making it at the same time. Knows nothing of the load test.
"""

import argparse
import signal
import sys
import time

from testing.processes import session_members
from testing.vllm.environment import VllmUnavailableError, prepare, say_aside, vllm_home
from testing.vllm.server import BLOCK_SIZE, Vllm, VllmStartError, log_tail, start_vllm

HOW_TO_USE = """\
{server.model} answers at {server.url} with a pool of {tokens} KV tokens. Ctrl-C ends it. In another terminal:
  locust -f scenarios/chat.py --host {server.url} --headless \\
    --prompt-tokens lognormal:124,0.6 --output-tokens lognormal:96,0.6"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m testing.vllm", description=__doc__.split("\n")[0])
    parser.add_argument("--prepare", action="store_true", help="only make the environment and the model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--blocks", type=int, default=128, help="KV blocks of 32 tokens (default: 128)")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("extra", nargs="*", help="further flags of `vllm serve`, after --")
    return parser.parse_args()


def _serve(arguments: argparse.Namespace) -> None:
    # A supervisor ends this process with SIGTERM. It is handled like Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    say_aside("Starting vLLM (about 20 seconds) ...")
    with start_vllm(
        num_gpu_blocks_override=arguments.blocks,
        max_num_seqs=arguments.max_num_seqs,
        port=arguments.port,
        extra=arguments.extra,
        log=vllm_home() / f"server-{arguments.port}.log",
    ) as server:
        print(HOW_TO_USE.format(server=server, tokens=(arguments.blocks - 1) * BLOCK_SIZE), flush=True)
        _watch(server)


def _watch(server: Vllm) -> None:
    """Waits until the server ends by itself, then raises VllmStartError."""
    while session_members(server.pid):
        time.sleep(1)
    raise VllmStartError(f"vLLM ended by itself.\n{log_tail(server.log)}")


def main() -> int:
    arguments = _arguments()
    try:
        prepare()
        if not arguments.prepare:
            _serve(arguments)
    except (VllmUnavailableError, VllmStartError) as error:
        say_aside(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

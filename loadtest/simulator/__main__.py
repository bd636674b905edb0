"""Runs the embedded server as a process of its own, on 127.0.0.1: `python -m loadtest.simulator`."""

import argparse
import asyncio
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from dataclasses import replace

import uvloop

from loadtest.simulator.presets import DEFAULT_PRESET, PRESETS, Preset, find_preset
from loadtest.simulator.server import ServerOptions, SimulatorServer

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM and returns 0. With `--list`, prints the presets instead. Returns 2,
    with a message on stderr, if the flags cannot be served or the port is in use."""
    flags = _parser().parse_args(arguments)
    if flags.list:
        _print_presets()
        return 0
    try:
        options = _options(flags)
        tls = _tls(flags)
        uvloop.run(_serve(options, port=flags.port, tls=tls))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    return 0


def _print_presets() -> None:
    """Prints one line for each preset. A closed pipe (`| head`) stops the printing and is no error."""
    try:
        sys.stdout.writelines(f"{_describe(preset)}\n" for preset in PRESETS.values())
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _serve(options: ServerOptions, *, port: int, tls: ssl.SSLContext | None) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    server = SimulatorServer(options)
    try:
        url = await server.start(port, tls)
        preset = options.preset
        pool = f"pool {options.config.pool_tokens} tokens"
        sys.stdout.write(f"Serving {preset.model} (simulated, preset {preset.name}, {pool}) on {url}\n")
        sys.stdout.flush()
        signalled = asyncio.ensure_future(ended.wait())
        failed = asyncio.ensure_future(server.live.failure())
        done, waiting = await asyncio.wait([signalled, failed], return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        for task in done:
            await task
    finally:
        await server.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.simulator",
        description="A simulated vLLM on 127.0.0.1. Flags have vLLM's names where vLLM has them.",
    )
    add = parser.add_argument
    add("--preset", default=DEFAULT_PRESET, help=f"model and GPU to simulate (default {DEFAULT_PRESET})")
    add("--list", action="store_true", help="list the presets and exit")
    add("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default 8000)")
    add("--served-model-name", help="name of the served model (default: the model's own)")
    add("--max-model-len", type=int, help="longest request in tokens, prompt and answer together")
    add("--max-num-seqs", type=int, help="most requests in one batch")
    add("--max-num-batched-tokens", type=int, help="most tokens computed in one step")
    add("--block-size", type=int, help="tokens in a block of the KV cache")
    add("--num-gpu-blocks-override", type=int, help="blocks of the KV pool, including the null block")
    add("--gpu-memory-utilization", type=float, help="fraction of the GPU's memory that is used")
    add("--no-enable-prefix-caching", action="store_true", help="switch the prefix cache off")
    add("--async-scheduling", action="store_true", help="schedule each step while the one before it runs")
    add("--max-num-queued-reqs", type=int, help="answer 503 above this many unfinished requests")
    add(
        "--max-num-queued-tokens",
        type=int,
        help="answer 503 from this many prompt tokens without a first token",
    )
    add("--enable-prompt-tokens-details", action="store_true", help="report cached tokens in usage")
    add(
        "--api-key",
        default=os.environ.get("VLLM_API_KEY"),
        help="key that clients must send (default: $VLLM_API_KEY)",
    )
    add("--root-path", default="", help="prefix of every path, such as /gateway")
    add("--certfile", help="PEM certificate, with which the server speaks https")
    add("--keyfile", help="PEM key of --certfile")
    add("--jitter-cv", type=float, default=0.0, help="coefficient of variation of step times")
    add("--seed", type=int, default=0, help="random seed of the jitter")
    return parser


def _options(flags: argparse.Namespace) -> ServerOptions:
    """Builds the server's options from the flags. Raises ValueError for flags that cannot be served."""
    given = {
        "model": flags.served_model_name,
        "max_model_len": flags.max_model_len,
        "max_num_seqs": flags.max_num_seqs,
        "max_num_batched_tokens": flags.max_num_batched_tokens,
        "block_size": flags.block_size,
        "num_gpu_blocks_override": flags.num_gpu_blocks_override,
        "gpu_memory_utilization": flags.gpu_memory_utilization,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    preset = replace(find_preset(flags.preset), **changes)
    if flags.root_path and not flags.root_path.startswith("/"):
        raise ValueError("--root-path must start with a slash.")
    return ServerOptions(
        preset=preset,
        config=preset.engine_config(
            enable_prefix_caching=not flags.no_enable_prefix_caching,
            async_scheduling=flags.async_scheduling,
            max_num_queued_reqs=flags.max_num_queued_reqs,
            max_num_queued_tokens=flags.max_num_queued_tokens,
            jitter_cv=flags.jitter_cv,
            seed=flags.seed,
        ),
        api_key=flags.api_key or None,
        enable_prompt_tokens_details=flags.enable_prompt_tokens_details,
        root_path=flags.root_path.rstrip("/"),
    )


def _tls(flags: argparse.Namespace) -> ssl.SSLContext | None:
    if flags.certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(flags.certfile, flags.keyfile)
    return context


def _describe(preset: Preset) -> str:
    pool = preset.pool()
    return f"{preset.name:<20} {preset.model} on {preset.gpu.name}: {pool.tokens:,} tokens of KV cache"


if __name__ == "__main__":
    sys.exit(main())

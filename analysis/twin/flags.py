"""Flags that the commands which fit a twin have in common."""

import argparse

from analysis.cli import positive_integer


def add_measured_server_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for settings of the measured server that vLLM does not export."""
    add = parser.add_argument_group("the measured server, where vLLM does not export it").add_argument
    add(
        "--measured-replicas",
        type=positive_integer,
        metavar="N",
        help="replicas behind its address (default: its engines)",
    )
    add("--measured-max-num-seqs", type=positive_integer, metavar="N")
    add("--measured-max-num-batched-tokens", type=positive_integer, metavar="N")
    add(
        "--async-scheduling",
        action=argparse.BooleanOptionalAction,
        help="default: on with a GPU, off on CPUs, as in vLLM 0.32",
    )

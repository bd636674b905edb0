"""Kinds of traffic for both the real vLLM and its twin, and the flags of the server."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.record import Slo

OBJECTIVES = Slo()


BLOCKS, SERVER_SLOTS, BUDGET = 128, 64, 2048


CONDITION_S, OPEN_S = 24.0, 30.0


RUNS_FOLDER = Path("build/fidelity")


CHAT_LENGTHS = ("--prompt-tokens", "lognormal:124,0.6", "--output-tokens", "lognormal:96,0.6")


SHORT = ("--prompt-tokens", "lognormal:62,0.6", "--output-tokens", "lognormal:48,0.6")


LONG = ("--prompt-tokens", "lognormal:700,0.4", "--output-tokens", "lognormal:60,0.6")


CHATS = (
    *("--prompt-tokens", "lognormal:60,0.5", "--output-tokens", "lognormal:40,0.5"),
    *("--turns", "4", "--think-s", "exp:1"),
)


@dataclass(frozen=True, kw_only=True)
class VllmFlags:
    """vLLM flags that differ between conditions: KV blocks, max_num_seqs, max_num_batched_tokens."""

    blocks: int = BLOCKS
    slots: int = SERVER_SLOTS
    budget: int = BUDGET


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One kind of traffic: an open loop if `trace` is given, otherwise a closed loop of `users`.

    `trace` returns the lines of a trace file. `fitted`: whether the twin is calibrated on it.
    """

    name: str
    server: VllmFlags = VllmFlags()
    fitted: bool
    users: int = 0
    load: Sequence[str] = CHAT_LENGTHS
    trace: Callable[[random.Random], list[str]] | None = None


def _csv(
    rate: float, prompt: tuple[float, float], output: tuple[float, float]
) -> Callable[[random.Random], list[str]]:
    """Returns a function that draws a Poisson trace with lognormal lengths, given as (mean, CV)."""

    def lines(rng: random.Random) -> list[str]:
        found, at_s = ["time_s,prompt,output"], 0.0
        while (at_s := at_s + rng.expovariate(rate)) < OPEN_S:
            lengths = (min(_lognormal(rng, *prompt), 900), min(_lognormal(rng, *output), 900))
            found.append(f"{at_s:.4f},{max(lengths[0], 20)},{max(lengths[1], 2)}")
        return found

    return lines


def _lognormal(rng: random.Random, mean: float, cv: float) -> int:
    sigma2 = math.log1p(cv**2)
    return round(rng.lognormvariate(math.log(mean) - sigma2 / 2, math.sqrt(sigma2)))


def _shared(rng: random.Random) -> list[str]:
    """Draws a trace in Mooncake's format. Each prompt begins with one of three prefixes of 512 tokens."""
    found: list[str] = []
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(6.0)) < OPEN_S:
        own = 100 + len(found)
        row = {
            "timestamp": round(at_s * 1e3),
            "input_length": 512 + rng.randint(40, 160),
            "output_length": _lognormal(rng, 50, 0.5) + 2,
            "hash_ids": [rng.choice((1, 1, 2, 3)), own],
        }
        found.append(json.dumps(row))
    return found


CONDITIONS = (
    Condition(name="light", fitted=True, users=4),
    Condition(name="knee", fitted=True, users=12),
    Condition(name="long prompts", fitted=True, users=4, load=LONG),
    Condition(name="light, open loop", fitted=False, trace=_csv(4.0, (124, 0.6), (96, 0.6))),
    Condition(name="small max_num_seqs", fitted=False, server=VllmFlags(slots=8), users=16),
    Condition(name="knee, open loop", fitted=False, trace=_csv(9.0, (124, 0.6), (96, 0.6))),
    Condition(name="past the pool", fitted=False, users=22),
    Condition(name="heavy tails, open loop", fitted=False, trace=_csv(5.0, (124, 1.2), (96, 1.5))),
    Condition(name="shared prefix, open loop", fitted=False, trace=_shared),
    Condition(name="multi-turn with think time", fitted=False, users=16, load=CHATS),
    Condition(
        name="small token budget, open loop",
        fitted=False,
        server=VllmFlags(budget=64),
        trace=_csv(5.0, (250, 0.6), (40, 0.6)),
    ),
)


REPLICA_USERS = 36


WHAT_IFS = (
    ("twice the pool", VllmFlags(blocks=2 * BLOCKS - 1), CHAT_LENGTHS, 32),
    ("half the lengths", VllmFlags(), SHORT, 32),
    ("max_num_seqs 8", VllmFlags(slots=8), CHAT_LENGTHS, 24),
)

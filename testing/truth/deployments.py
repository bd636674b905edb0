"""Random deployments in virtual time, and their true maxima, with which answers are compared."""

import contextlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.levels.queues import QUEUE_LIMIT
from analysis.statistics.crossings import MISS_LIMIT
from analysis.twin.maximum import find_maximum
from analysis.virtual.run import VirtualFigures, simulate_users
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, Service
from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.gpus import A10G, H100, L4, T4
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.presets import Preset

BLOCK_TOKENS = 16
_PAIRS = 20_000  # pairs of prompt and output lengths from which people draw
LONGEST = 5.0  # times the mean: lengths are cut there, as by max_tokens
PLAY_REQUESTS = 3000  # requests of a play, or 40 a user if that is more
PLAYS = (6, 40, 100)  # plays of each of the two levels: fewest; most to reach SE_ROOT; most of all
SE_USERS, SE_SHARE = 0.1, 0.005  # limit of a resolved truth's standard error, the larger: users; share of x
SE_ROOT = 0.018  # standard error to reach, times the root of x: a fifth of most intervals'
WIDE = 0.01  # distance of the two levels as a share of the lower one, but at least one user
SHIFTS = 12  # how often the two levels may move to bracket the wall

Crossings = dict[str, float]
"""Users at which walls are crossed, by the name of the wall."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VirtualDeployment:
    """A server, the people who use it, and the objectives."""

    number: int
    service: Service
    slo: Slo
    traits: dict[str, float]
    """The drawn values, for tables."""


def deployment(number: int) -> VirtualDeployment:
    """Draws a deployment with its number as the seed: a random model on a random GPU.

    The pool has room for 7 to 60 users, so that the wall can be measured. Lengths are narrow to heavy-tailed,
    objectives strict to loose. Some deployments have think times, a shared prefix or few slots.
    """
    rng = random.Random(f"deployment/{number}")
    speed = _speed(rng)
    prompt, prompt_cv = _log_uniform(rng, 40, 800), rng.uniform(0.1, 1.0)
    output, output_cv = _log_uniform(rng, 20, 150), rng.uniform(0.15, 1.1)
    pairs = np.column_stack([_lengths(number, 0, prompt, prompt_cv), _lengths(number, 1, output, output_cv)])
    held = (
        float(np.mean(pairs[:, 1] * (pairs[:, 0] + pairs[:, 1] / 2)) / np.mean(pairs[:, 1]))
        + BLOCK_TOKENS / 2
    )
    fit = _log_uniform(rng, 7, 60)
    shared = int(rng.uniform(0.3, 1.5) * prompt) // BLOCK_TOKENS * BLOCK_TOKENS if rng.random() < 0.2 else 0
    longest = int(pairs.sum(axis=1).max())
    slots = max(round(fit * rng.uniform(0.5, 1.5)), 2) if rng.random() < 0.2 else 256
    engine = replace(
        speed,
        num_gpu_blocks=1 + -(-(shared + max(math.ceil(fit * held), longest)) // BLOCK_TOKENS),
        max_model_len=shared + longest,
        max_num_seqs=slots,
        enable_prefix_caching=shared > 0,
    )
    step_s = engine.step_base_s + fit * (
        engine.step_per_seq_s
        + engine.step_per_kv_token_s * held
        + engine.prefill_per_token_s * prompt / output
    )
    think_s = output * step_s * _log_uniform(rng, 0.3, 4.0) if rng.random() < 0.35 else 0.0
    alone_s = engine.step_base_s + engine.step_per_seq_s + engine.step_per_kv_token_s * held
    long_prefill_s = engine.prefill_per_token_s * prompt * (1 + 2 * prompt_cv)
    slo = _objectives(rng, step_s=step_s, alone_s=alone_s, long_prefill_s=long_prefill_s)
    pauses_s = np.random.default_rng([number, 2]).exponential(think_s, 5000 if think_s else 1)
    return VirtualDeployment(
        number=number,
        service=Service(
            engine=engine,
            chatting=ChatBehaviour(
                conversations=[[(int(s) + shared, int(o))] for s, o in pairs],
                pauses_s=CLIENT_TURNAROUND_S + pauses_s,
                shared_prefix_tokens=shared,
            ),
        ),
        slo=slo,
        traits={
            "prompt": prompt,
            "prompt_cv": prompt_cv,
            "output": output,
            "output_cv": output_cv,
            "shared": shared,
            "think_s": think_s,
            "step_s": step_s,
            "fit": fit,
            "slots": slots,
        },
    )


def _objectives(rng: random.Random, *, step_s: float, alone_s: float, long_prefill_s: float) -> Slo:
    """Draws objectives from strict to loose, for steps with the pool full (step_s) and with one user
    (alone_s)."""
    return Slo(
        ttft_p95_s=(long_prefill_s + 2 * step_s) * _log_uniform(rng, 1.5, 20.0),
        tpot_p95_s=1.1 * alone_s + (step_s - alone_s) * _log_uniform(rng, 0.4, 4.0),
    )


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _lengths(number: int, which: int, mean: float, cv: float) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    sigma2 = math.log1p(cv**2)
    drawn = np.random.default_rng([number, which]).lognormal(
        math.log(mean) - sigma2 / 2, math.sqrt(sigma2), _PAIRS
    )
    return np.clip(np.rint(drawn), 1, LONGEST * mean).astype(np.int64)


def _speed(rng: random.Random) -> EngineConfig:
    """Returns an engine with the step times of a random dense model on a random GPU that holds it."""
    shape = _model(rng)
    gpus = [T4, L4, A10G, H100]
    rng.shuffle(gpus)
    jitter_cv, seed = rng.uniform(0.0, 0.2), rng.randrange(2**31)
    for gpu in gpus:
        preset = Preset(name="", model="", shape=shape, gpu=gpu, max_model_len=2048, dtype="float16")
        with contextlib.suppress(ValueError):  # a model that this GPU cannot hold
            return preset.engine_config(jitter_cv=jitter_cv, seed=seed)
    raise AssertionError("An H100 holds every model that is drawn here.")


def _model(rng: random.Random) -> ModelShape:
    heads = rng.choice([8, 16, 24, 32, 40])
    return parse_config(
        {
            "model_type": "llama",
            "num_hidden_layers": rng.randint(16, 40),
            "hidden_size": 128 * heads,
            "intermediate_size": int(rng.uniform(2.5, 4.0) * heads) * 128,
            "num_attention_heads": heads,
            "num_key_value_heads": rng.choice([4, 8, heads]) if heads % 8 == 0 else heads,
            "vocab_size": rng.choice([32000, 128256, 151936]),
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The true maximum of a deployment: `x` (real-valued users), its standard error and its wall.

    `requests`: requests in the windows of the simulations.
    """

    x: float
    se: float
    wall: str
    crossings: Crossings
    """Users at which the walls are crossed that the upper of the two levels is past. The smallest is `x`."""
    requests: int

    @property
    def resolved(self) -> bool:
        """Whether the standard error is small enough to judge answers."""
        return self.se <= _allowed_se(self.x)


def sought_se(x: float) -> float:
    """Returns the standard error that a truth at x users should reach within PLAYS[1] plays."""
    return SE_ROOT * math.sqrt(x)


def _allowed_se(x: float) -> float:
    return max(SE_USERS, SE_SHARE * x)


def truth_of(one: VirtualDeployment) -> Truth | None:
    """Measures the maximum as docs/method.md defines it, by long simulations of two levels.

    Returns None if one user breaks an objective, if no wall is met, or if no two levels bracket the wall.
    """
    rough = find_maximum(one.service, one.slo, requests=2000, seed=one.number)
    if rough is None or not math.isfinite(rough.x):
        return None
    plays = _Plays(one)
    low, count = rough.users, PLAYS[0]
    while True:
        bracket = _bracket(plays, low, count)
        if bracket is None:
            return None
        low, found = bracket
        sought = sought_se(found.x) if count < PLAYS[1] else _allowed_se(found.x)
        if found.se <= sought or count >= PLAYS[2]:
            return found
        more = math.ceil(count * min(1.1 * (found.se / sought) ** 2, 2.0))
        count = min(more, PLAYS[1] if count < PLAYS[1] else PLAYS[2])


def _bracket(plays: "_Plays", low: int, count: int) -> tuple[int, Truth] | None:
    """Finds two levels with the wall between them. Returns the lower one and the truth, else None."""
    for _ in range(SHIFTS):
        high = low + max(1, int(WIDE * low))
        found = plays.first_wall(low, high, count)
        if found is None:
            low -= 1
        elif math.isinf(found.x):
            low = high
        else:
            return low, found
        if low < 1:
            return None
    return None


class _Plays:
    """Simulates levels several times (plays). Play number i has the same people at every level."""

    def __init__(self, one: VirtualDeployment) -> None:
        self._one = one
        self._seen: dict[int, list[VirtualFigures]] = {}

    def first_wall(self, low: int, high: int, count: int) -> Truth | None:
        """Returns the first wall from `count` plays of each level, with a jackknife error over the plays.

        Returns None if the lower level is past a wall, and an infinite `x` if the upper level is past none.
        """
        below, above = self._of(low, count), self._of(high, count)
        whole = self._crossings(low, high, below, above)
        if whole is None:
            return None
        if not whole:
            return Truth(x=math.inf, se=0.0, wall="not_reached", crossings={}, requests=0)
        wall = min(whole, key=lambda name: whole[name])
        left_out = []
        for place in range(count):
            rest = self._crossings(
                low, high, below[:place] + below[place + 1 :], above[:place] + above[place + 1 :]
            )
            left_out.append(min(rest.values(), default=float(high)) if rest is not None else float(low))
        spread = np.array(left_out) - np.mean(left_out)
        return Truth(
            x=whole[wall],
            se=math.sqrt(float(np.sum(spread**2)) * (count - 1) / count),
            wall=wall,
            crossings=whole,
            requests=sum(seen.requests for seen in below + above),
        )

    def _of(self, users: int, count: int) -> list[VirtualFigures]:
        plays = self._seen.setdefault(users, [])
        while len(plays) < count:
            seed = 1000 * self._one.number + len(plays)
            requests = max(PLAY_REQUESTS, 40 * users)
            plays.append(
                simulate_users(self._one.service, users, requests=requests, seed=seed).figures(self._one.slo)
            )
        return plays[:count]

    def _crossings(
        self, low: int, high: int, below: Sequence[VirtualFigures], above: Sequence[VirtualFigures]
    ) -> Crossings | None:
        here, there = (_margins(plays, self._one.slo) for plays in (below, above))
        if max(here.values()) > 0.0:
            return None
        found: Crossings = {}
        for name in here:
            if there[name] > 0.0:
                x = low + (high - low) * here[name] / (here[name] - there[name])
                wall = name.partition(" ")[0]
                found[wall] = min(found.get(wall, math.inf), x)
        slots = self._one.service.engine.max_num_seqs
        if "max_num_seqs" in found and not self._one.traits["think_s"]:
            found["max_num_seqs"] = float(slots)  # by definition: without think time all users need a slot
        return found


def _margins(plays: Sequence[VirtualFigures], slo: Slo) -> dict[str, float]:
    """Returns ln(rate / limit) or logit(share) - logit(limit) for each limit: positive if it is broken."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(seen, name) for seen in plays]))

    return {
        "kv_cache preempted": math.log(max(mean("preempted_fraction"), 1e-6) / slo.preempted_fraction),
        "kv_cache blocked": _logit(mean("blocked_fraction")) - _logit(slo.kv_blocked_fraction),
        "max_num_seqs": _logit(mean("queue_fraction")) - _logit(QUEUE_LIMIT),
        "ttft": _logit(mean("ttft_miss")) - _logit(MISS_LIMIT),
        "tpot": _logit(mean("tpot_miss")) - _logit(MISS_LIMIT),
    }


def _logit(share: float) -> float:
    kept = min(max(share, 1e-6), 1.0 - 1e-6)
    return math.log(kept / (1.0 - kept))

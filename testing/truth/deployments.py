"""Random deployments in virtual time, whose true maxima `truths` measures."""

import contextlib
import math
import random
from dataclasses import dataclass, replace

import numpy as np

from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, Service
from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.gpus import A10G, H100, L4, T4
from loadtest.model.weights import parameter_count, step_bytes
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.presets import Preset

BLOCK_TOKENS = 16
_PAIRS = 20_000  # pairs of prompt and output lengths from which people draw
LONGEST = 5.0  # times the mean: lengths are cut there, as by max_tokens


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VirtualDeployment:
    """A server, the people who use it, and the objectives."""

    number: int
    service: Service
    slo: Slo
    traits: dict[str, float]
    """The drawn values, for tables."""
    kind: str = "any"
    """The wall that it was drawn for; "any" if no wall was aimed at."""


def deployment(number: int) -> VirtualDeployment:
    """Draws a deployment with its number as the seed: a random model on a random GPU.

    The pool has room for 7 to 60 users, so that the wall can be measured. Lengths are narrow to heavy-tailed,
    objectives strict to loose. Some deployments have think times, a shared prefix or few slots.
    """
    rng = random.Random(f"deployment/{number}")
    speed = random_engine(rng)
    prompt, prompt_cv = log_uniform(rng, 40, 800), rng.uniform(0.1, 1.0)
    output, output_cv = log_uniform(rng, 20, 150), rng.uniform(0.15, 1.1)
    pairs = np.column_stack(
        [drawn_lengths(number, 0, prompt, prompt_cv), drawn_lengths(number, 1, output, output_cv)]
    )
    held = tokens_held(pairs)
    fit = log_uniform(rng, 7, 60)
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
    think_s = output * step_s * log_uniform(rng, 0.3, 4.0) if rng.random() < 0.35 else 0.0
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


def tokens_held(pairs: "np.ndarray[tuple[int, int], np.dtype[np.int64]]") -> float:
    """Returns the mean tokens that a request in flight holds, for pairs of prompt and output tokens.

    pairs: shape (n, 2).
    """
    prompt, output = pairs.T
    return float(np.mean(output * (prompt + output / 2)) / np.mean(output)) + BLOCK_TOKENS / 2


def _objectives(rng: random.Random, *, step_s: float, alone_s: float, long_prefill_s: float) -> Slo:
    """Draws objectives from strict to loose, for steps with the pool full (step_s) and with one user
    (alone_s)."""
    return Slo(
        ttft_p95_s=(long_prefill_s + 2 * step_s) * log_uniform(rng, 1.5, 20.0),
        tpot_p95_s=1.1 * alone_s + (step_s - alone_s) * log_uniform(rng, 0.4, 4.0),
    )


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def drawn_lengths(
    number: int, which: int, mean: float, cv: float
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    sigma2 = math.log1p(cv**2)
    drawn = np.random.default_rng([number, which]).lognormal(
        math.log(mean) - sigma2 / 2, math.sqrt(sigma2), _PAIRS
    )
    return np.clip(np.rint(drawn), 1, LONGEST * mean).astype(np.int64)


def random_engine(rng: random.Random) -> EngineConfig:
    """Returns an engine with the step times of a random dense model on a random GPU that holds it."""
    shape = _model(rng)
    gpus = [T4, L4, A10G, H100]
    rng.shuffle(gpus)
    jitter_cv, seed = rng.uniform(0.0, 0.2), rng.randrange(2**31)
    for gpu in gpus:
        preset = Preset(name="", model="", shape=shape, gpu=gpu, max_model_len=2048, dtype="float16")
        with contextlib.suppress(ValueError):  # a model that this GPU cannot hold
            return _with_linear_steps(preset, preset.engine_config(jitter_cv=jitter_cv, seed=seed))
    raise AssertionError("An H100 holds every model that is drawn here.")


def _with_linear_steps(preset: Preset, engine: EngineConfig) -> EngineConfig:
    """Returns the engine with steps whose time is a sum of terms: a plain roofline at 0.75 of the bandwidth
    and 0.4 of the FLOP/s. The true maxima that are kept are those of these engines."""
    shape, gpu, pool = preset.shape, preset.gpu, preset.pool()
    bandwidth = 0.75 * gpu.bandwidth_bytes_s
    return replace(
        engine,
        step_time=None,
        step_base_s=step_bytes(shape, dtype=preset.dtype) / bandwidth,
        step_per_kv_token_s=pool.bytes_per_block / pool.block_size / bandwidth,
        step_per_seq_s=38.8 * shape.vocab_size / bandwidth,
        prefill_per_token_s=2 * parameter_count(shape) / (0.4 * gpu.flops_s),
    )


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

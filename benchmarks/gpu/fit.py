"""Fits the shares of `loadtest.model.step_time` to published measurements, with deployments as groups."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import least_squares

from analysis.sizing.latency.steady import SteadyLoad, means_s
from analysis.statistics.arrays import Floats
from benchmarks.gpu.published import PublishedRow
from loadtest.model.step_time import PredictedStepTime, StepEfficiency, predict_step_time

PRIORS: Mapping[str, tuple[float, float]] = {
    "bandwidth": (0.82, 0.08),
    "bandwidth_turing": (1.0, 0.06),
    "bandwidth_ampere": (1.0, 0.06),
    "bandwidth_ada": (1.0, 0.06),
    "bandwidth_hopper": (1.0, 0.06),
    "bandwidth_blackwell": (1.0, 0.06),
    "bandwidth_cdna": (0.85, 0.1),
    "expert_bandwidth": (0.95, 0.1),
    "expert_bandwidth_4bit": (0.35, 0.5),
    "cache_bandwidth": (0.65, 0.3),
    "products": (0.7, 0.1),
    "products_8bit": (0.75, 0.2),
    "products_4bit": (0.7, 0.4),
    "products_experts": (0.6, 0.4),
    "products_cdna": (0.6, 0.3),
    "attention": (0.4, 0.5),
    "host_s": (0.5e-3, 0.7),
    "host_v0_s": (4.3e-3, 0.3),
    "layer_s": (45e-6, 0.4),
    "expert_layer_s": (60e-6, 0.6),
    "all_reduce_s": (10e-6, 0.4),
    "all_reduce_pcie_s": (40e-6, 0.4),
    "sequence_s": (10e-6, 1.0),
    "logit_bytes": (4.0, 0.7),
    "request_s": (8e-3, 0.5),
    "request_token_s": (4e-6, 0.7),
}
"""Expected value of each share and how well it is known before the fit (standard deviation of its logarithm).
From data sheets, kernel benchmarks, and vLLM's source; `host_v0_s` from offline batches of 2024."""
HABITS: Mapping[str, tuple[float, float]] = {
    "inference-sim fresh": (0.3, 0.7),
    "llm-d-planner fresh": (0.7, 0.4),
    "inference-sim late": (0.8, 1.0),
}
"""What belongs to a source, not to GPUs: the share of its prompts that is not in the prefix cache, and the
steps by which its client times the first token late (it counts two events a token)."""
TTFT_WEIGHT, TPOT_WEIGHT = 0.5, 1.5
"""Weights of a row's two figures. TTFT is noisier: it holds what sources do besides."""
NOISE, GROSS = 0.1, 0.2
"""Residual (logarithm) that counts as one standard deviation, and the one from which it counts less."""


PLAIN_ROOFLINE = StepEfficiency(
    bandwidth=0.75,
    bandwidth_turing=1.0,
    bandwidth_ampere=1.0,
    bandwidth_ada=1.0,
    bandwidth_hopper=1.0,
    bandwidth_blackwell=1.0,
    bandwidth_cdna=1.0,
    expert_bandwidth=1.0,
    expert_bandwidth_4bit=1.0,
    cache_bandwidth=0.75,
    products=0.4,
    products_8bit=1.0,
    products_4bit=1.0,
    products_experts=1.0,
    products_cdna=1.0,
    attention=1.0,
    host_s=1e-3,
    host_v0_s=0.0,
    layer_s=0.0,
    expert_layer_s=0.0,
    all_reduce_s=10e-6,
    all_reduce_pcie_s=40e-6,
    sequence_s=0.0,
    logit_bytes=38.8 / 0.75,
    request_s=0.0,
    request_token_s=0.0,
)
"""What is usually assumed, and was here before anything was fitted: fixed shares of the data sheet."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Shares, and the habits of sources."""

    efficiency: StepEfficiency
    habits: Mapping[str, float]

    def means_s(self, row: PublishedRow, *, habits: bool) -> tuple[float, float]:
        """Predicts mean TTFT and mean TPOT of a row, seconds. habits: whether what the source is known to do
        counts; otherwise only what it states."""
        return _means_s(step_time_of(row, self.efficiency), row, self.habits if habits else {})


def step_time_of(row: PublishedRow, efficiency: StepEfficiency | None = None) -> PredictedStepTime:
    """Returns the step time of a row's deployment; by default with the shares of the repository."""
    return predict_step_time(
        row.shape,
        row.gpu,
        tp=row.tp,
        kv_bytes_per_token=row.kv_bytes_per_token,
        efficiency=efficiency,
    )


def _means_s(steps: PredictedStepTime, row: PublishedRow, habits: Mapping[str, float]) -> tuple[float, float]:
    load = SteadyLoad(
        prompt=row.prompt,
        output=row.output,
        users=row.users,
        rate=row.rate,
        max_num_seqs=row.max_num_seqs,
        max_num_batched_tokens=row.max_num_batched_tokens,
        together=row.together,
    )
    computed, late = computed_and_late(row, habits)
    ttft_s, tpot_s = means_s(steps, load, computed=computed)
    return ttft_s + late * tpot_s, tpot_s


def computed_and_late(row: PublishedRow, habits: Mapping[str, float]) -> tuple[float, float]:
    """Returns what the row's source does by `HABITS`: the share of its prompts' tokens that is computed, and
    the decode steps by which its client times the first token late."""
    fresh, late = 1.0, 0.0
    for name, value in habits.items():
        source, _, habit = name.partition(" ")
        if source in row.source:
            fresh, late = (value, late) if habit == "fresh" else (fresh, value)
    return min(fresh, 1.0), late


def fit_shares(rows: Sequence[PublishedRow], *, start: Fitted | None = None, rounds: int = 15) -> Fitted:
    """Fits shares and habits to the rows. Every deployment has the same weight, however many rows it has.

    start: a fit to almost the same rows, from which fewer rounds are needed.
    """
    names, habit_names = list(PRIORS), list(HABITS)
    priors = list(PRIORS.values()) + list(HABITS.values())
    known = [row for row in rows if row.doubt is None]
    counts = Counter(row.deployment for row in known)

    def unpacked(x: Floats) -> Fitted:
        values = [value * math.exp(shift) for (value, _), shift in zip(priors, x, strict=True)]
        return Fitted(
            efficiency=StepEfficiency(**dict(zip(names, values, strict=False))),
            habits=dict(zip(habit_names, values[len(names) :], strict=True)),
        )

    def residuals(x: Floats) -> Floats:
        found, errors = unpacked(x), []
        for row in known:
            predicted, weight = found.means_s(row, habits=True), 1 / math.sqrt(counts[row.deployment])
            measured = ((row.ttft_s, TTFT_WEIGHT), (row.tpot_s, TPOT_WEIGHT))
            for got, (true, importance) in zip(predicted, measured, strict=True):
                if true is not None:
                    error = GROSS * math.atan(math.log(got / true) / GROSS)
                    errors.append(weight * importance * error / NOISE)
        return np.array(errors + [0.5 * shift / sd for (_, sd), shift in zip(priors, x, strict=True)])

    x = np.zeros(len(priors))
    if start is not None:
        ends = [getattr(start.efficiency, name) for name in names] + [start.habits[n] for n in habit_names]
        x = np.array([math.log(end / value) for end, (value, _) in zip(ends, priors, strict=True)])
    solved = least_squares(residuals, x, diff_step=[1e-3], max_nfev=rounds)
    return unpacked(solved.x)


def table_text(
    fitted: Fitted, *, date: str, cards: Sequence[str], bands: Mapping[str, Sequence[float]]
) -> str:
    """Returns the text of the fitted table, as TOML."""
    lines = [
        "# What GPUs reach of their data sheets. Written by `python -m benchmarks gpu --fit`; docs/sizing.md",
        "# says what each figure means and how well it predicts deployments that were left out.",
        f'date = "{date}"',
        "sources = [",
        *(f'  "{name}",' for name in SOURCES),
        "]",
        "# GPUs with measurements in the fit; the bands of others are wider.",
        f"cards = [{', '.join(repr(card).replace(chr(39), chr(34)) for card in cards)}]",
        "",
        "[efficiency]",
        *(f"{field.name} = {getattr(fitted.efficiency, field.name):.4g}" for field in fields(StepEfficiency)),
        "",
        "# Measured over predicted, 5 % and 95 %, of deployments and of cards that were left out, and of",
        "# those whose other loads calibrate the times.",
        "[bands]",
        *(f"{name} = [{low:.3f}, {high:.3f}]" for name, (low, high) in bands.items()),
    ]
    return "\n".join(lines) + "\n"


SOURCES = (
    "github:inference-sim/training",
    "github:inference-sim/sim-to-real-accuracy-validation",
    "github:llm-d-incubation/llm-d-planner",
    "runpod: gpt-oss-20b on B200 and MI300X",
    "ai.wmx.dev/benchmarks",
    "github: LLM-benchmarking, Qwen2 on A100, vLLM 0.10.1.1",
)

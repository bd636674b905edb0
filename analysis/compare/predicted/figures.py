"""Puts each predicted figure beside the measured one, judges it, and says what to correct."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.answers.sizing import FloatBand, Sizing
from analysis.answers.sizing_check import CheckedFigure, MeasuredInterval
from analysis.capacity.headline import CONFIDENCE
from analysis.compare.predicted.conditions import LENGTHS_BAND, Mismatch, Subject, blocking
from analysis.compare.predicted.verdicts import BandVerdict, judge_band
from analysis.compare.predicted.walls import MeasuredUsers, measured_headline, measured_wall
from analysis.compare.sides import (
    MeasuredDeployment,
    decode_tok_s_of,
    kv_tokens,
    latency_sample,
    throughput_of,
    ttft_s_of,
)
from analysis.levels.definitions import e2e_s
from analysis.levels.requests import tpot_of
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Floats
from analysis.statistics.ratios import Quantity, quantile
from analysis.statistics.samples import finite_or_none
from analysis.walls.names import WallName

SERVER: tuple[Subject, ...] = ("model", "card", "cache type")
LOAD: tuple[Subject, ...] = ("lengths", "pauses")
WALL_SUBJECTS: dict[WallName, tuple[Subject, ...]] = {
    "kv_cache": (*SERVER, "pool flags", *LOAD),
    "max_num_seqs": ("slots", *LOAD),
    "ttft": (*SERVER, "slots", *LOAD, "objectives"),
    "tpot": (*SERVER, "slots", *LOAD, "objectives"),
}
EVERYTHING: tuple[Subject, ...] = (*SERVER, "pool flags", "slots", *LOAD, "objectives")
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizedAndMeasured:
    """A sizing, the load test of the same deployment, and what differs between the two."""

    sizing: Sizing
    side: MeasuredDeployment
    differs: Sequence[Mismatch]
    folder: Path
    """The run's folder as the user named it, for advice."""

    @property
    def can_calibrate(self) -> bool:
        """Whether `analysis.sizing --calibrate` takes pool and times of this run over."""
        server = self.side.info.server
        return (
            server.num_gpu_blocks is not None
            and server.num_gpu_blocks_override is None
            and server.simulated is None
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A predicted figure to be judged."""

    figure: str
    predicted: FloatBand
    subjects: tuple[Subject, ...]
    users: int | None = None


def checked_figures(both: SizedAndMeasured) -> list[CheckedFigure]:
    """Judges every figure that the sizing predicts: memory, users, and latencies."""
    return [*_memory(both), *_users(both), *_alone(both), *_at_load(both)]


# Memory.


def _memory(both: SizedAndMeasured) -> list[CheckedFigure]:
    sizing, memory = both.sizing, both.side.answer.memory
    found = []
    if sizing.pool_tokens is not None:
        engines = sizing.replicas
        low, x, high = (float(tokens * engines) for tokens in sizing.pool_tokens)
        asked = _Asked(figure="pool_tokens", predicted=(low, x, high), subjects=(*SERVER, "pool flags"))
        found.append(_fact(both, asked, memory.pool_tokens, _pool_advice))
    if sizing.kv_bytes_per_token is not None:
        each = float(sizing.kv_bytes_per_token)
        subjects: tuple[Subject, ...] = ("model", "cache type")
        asked = _Asked(figure="kv_bytes_per_token", predicted=(each, each, each), subjects=subjects)
        measured = memory.bytes_per_token
        if measured == sizing.kv_bytes_per_token * sizing.tensor_parallel:
            measured = (
                sizing.kv_bytes_per_token
            )  # a run with the model's config.json counts all GPUs together
        found.append(_fact(both, asked, measured, lambda _: "Check --config, --kv-cache-dtype and --tp."))
    if sizing.tokens_per_user is not None and not sizing.classes:
        x = sizing.tokens_per_user
        asked = _Asked(
            figure="tokens_per_user",
            predicted=(x / LENGTHS_BAND, x, x * LENGTHS_BAND),
            subjects=("lengths",),
        )
        found.append(_quantity(both, asked, _own_tokens(both.side), "too few requests with token counts"))
    return found


def _own_tokens(side: MeasuredDeployment) -> Quantity | None:
    """Returns the mean KV tokens of a request without the prefix that all share: as a sizing counts them."""
    found, pairs = kv_tokens(side), side.judgement.evidence.pairs
    if found is None or pairs is None or not pairs.shared_prefix:
        return found
    shared = pairs.shared_prefix

    def bounds(error: float) -> tuple[float, float]:
        low, high = found.bounds(error)
        return max(low - shared, 0.0), high - shared

    return Quantity(value=found.value - shared, bounds=bounds)


def _pool_advice(both: SizedAndMeasured) -> str:
    if both.can_calibrate:
        return f"Size again with --calibrate {both.folder}: it takes the pool of this start-up over."
    return "Size again with --vllm-log and the log of this start-up."


def _fact(
    both: SizedAndMeasured,
    asked: _Asked,
    value: float | None,
    advice: Callable[[SizedAndMeasured], str],
) -> CheckedFigure:
    if value is None:
        return _checked(both, asked, why_not="the server did not say")
    return _checked(both, asked, value=float(value), interval=(value, value), advice=advice)


def _quantity(both: SizedAndMeasured, asked: _Asked, found: Quantity | None, why_not: str) -> CheckedFigure:
    if found is None:
        return _checked(both, asked, why_not=why_not)
    low, high = found.bounds((1.0 - CONFIDENCE) / 2)
    return _checked(both, asked, value=found.value, interval=(low, finite_or_none(high)))


# Users.


def _users(both: SizedAndMeasured) -> list[CheckedFigure]:
    sizing = both.sizing
    assert sizing.users_x is not None
    first = _Asked(figure="users", predicted=sizing.users_x, subjects=EVERYTHING)
    found = [_of_users(both, first, measured_headline(both.side))]
    for bound in sizing.bounds:
        low, high = bound.interval_x
        asked = _Asked(
            figure=f"users_{bound.name}",
            predicted=(low, bound.users_x, high),
            subjects=WALL_SUBJECTS.get(bound.name, EVERYTHING),
        )
        found.append(_of_users(both, asked, measured_wall(both.side, bound.name)))
    return found


def _of_users(both: SizedAndMeasured, asked: _Asked, found: MeasuredUsers) -> CheckedFigure:
    if found.interval is None:
        return _checked(both, asked, why_not=found.open_reason)
    advice = None
    if asked.figure == "users_max_num_seqs":
        advice = _slots_advice
    open_reason = found.open_reason
    if found.up_to_users is not None:
        wanted = int(asked.predicted[2]) + 1
        open_reason += f" up to {found.up_to_users} users"
        open_reason += f": load it up to {wanted}" if wanted > found.up_to_users else ""
    return _checked(
        both, asked, value=found.value, interval=found.interval, advice=advice, open_reason=open_reason
    )


def _slots_advice(both: SizedAndMeasured) -> str:
    slots = both.side.judgement.evidence.max_num_seqs
    return (
        f"Size again with --max-num-seqs {slots}."
        if slots
        else "Size again with the server's --max-num-seqs."
    )


# Latency.


def _alone(both: SizedAndMeasured) -> list[CheckedFigure]:
    """Judges the decode rate of a request that runs alone: the time of a step, without load."""
    predicted = both.sizing.decode_tok_s_alone
    if predicted is None:
        return []
    asked = _Asked(figure="decode_tok_s_alone", predicted=predicted, subjects=SERVER, users=1)
    sample = latency_sample(both.side, 1, decode_tok_s_of)
    return [_quantity(both, asked, quantile(sample, 0.5) if sample else None, _no_level(both, 1))]


def _at_load(both: SizedAndMeasured) -> list[CheckedFigure]:
    """Judges latencies and throughput at the load that the sizing was asked about."""
    load = both.sizing.at
    if load is None or load.users is None:
        return []
    found, why_not = [], _no_level(both, load.users)
    subjects: tuple[Subject, ...] = (*SERVER, "slots", *LOAD)
    kinds = (("ttft", load.ttft_s, ttft_s_of), ("tpot", load.tpot_s, tpot_of), ("e2e", load.e2e_s, _e2e_of))
    for kind, bands, of in kinds:
        sample = latency_sample(both.side, load.users, of)
        for name, share in PERCENTILES.items() if bands is not None else ():
            asked = _Asked(
                figure=f"{kind}_{name}_s",
                predicted=getattr(bands, name),
                subjects=subjects,
                users=load.users,
            )
            found.append(_quantity(both, asked, quantile(sample, share) if sample else None, why_not))
    asked = _Asked(figure="output_tok_s", predicted=load.output_tok_s, subjects=subjects, users=load.users)
    return [*found, _quantity(both, asked, throughput_of(both.side, load.users), why_not)]


def _e2e_of(rows: Requests) -> Floats:
    return np.asarray(e2e_s(sent_s=rows.sent_s, end_s=rows.end_s))


def _no_level(both: SizedAndMeasured, users: int) -> str:
    """Says why a figure at a number of users is not known."""
    trusted = both.side.judgement.evidence.trusted
    if users in trusted:
        return f"too few requests at {users} users for it: hold the level for longer"
    levels = ", ".join(map(str, trusted)) or "none"
    return f"no trusted level with {users} user{'s' * (users > 1)} (levels: {levels})"


# One figure.


def _checked(
    both: SizedAndMeasured,
    asked: _Asked,
    *,
    value: float | None = None,
    interval: MeasuredInterval | None = None,
    advice: Callable[[SizedAndMeasured], str] | None = None,
    why_not: str = "",
    open_reason: str = "",
) -> CheckedFigure:
    """Judges one figure. why_not: why it was not measured. open_reason: why only a lower bound is known."""
    ratio = value / asked.predicted[1] if value is not None and asked.predicted[1] > 0 else None
    differs = blocking(both.differs, asked.subjects)
    if differs is not None:
        judged = BandVerdict(verdict="not established", reason=differs)
    elif interval is None:
        judged = BandVerdict(verdict="not established", reason=why_not)
    else:
        judged = judge_band(asked.predicted, value, interval)
    reason = judged.reason
    if judged.verdict == "not established" and differs is None and open_reason:
        reason = open_reason
    return CheckedFigure(
        figure=asked.figure,
        users=asked.users,
        predicted=asked.predicted,
        measured=value,
        interval=interval,
        verdict=judged.verdict,
        ratio=ratio,
        off_at_least=judged.off_at_least,
        reason=reason,
        correct=_correction(both, asked, ratio, advice) if judged.verdict == "refuted" else None,
    )


def _correction(
    both: SizedAndMeasured,
    asked: _Asked,
    ratio: float | None,
    advice: Callable[[SizedAndMeasured], str] | None,
) -> str | None:
    """Says what to correct in the sizing; None where nothing but the users themselves was off."""
    if advice is not None:
        return advice(both)
    if asked.figure == "decode_tok_s_alone" and ratio:
        return _step_advice(both, 1 / ratio, "With one user steps take")
    if asked.figure.startswith("tpot_") and ratio:
        return _step_advice(both, ratio, "At this load steps take")
    if asked.figure == "tokens_per_user":
        return measured_lengths_advice(both)
    return None


def _step_advice(both: SizedAndMeasured, times: float, subject: str) -> str:
    how = (
        f"Size again with --calibrate {both.folder}: it takes the times of its levels over."
        if both.can_calibrate
        else f"analysis.twin {both.folder} predicts with the measured ones."
    )
    return f"{subject} {times:.2f} times as long as predicted. {how}"


def measured_lengths_advice(both: SizedAndMeasured) -> str | None:
    """Returns the flags that give the sizing the measured lengths; None where these are not known, and where
    a workload file states them."""
    pairs = both.side.judgement.evidence.pairs
    if pairs is None or both.side.info.classes:
        return None
    flags = [
        f"--{name}-tokens lognormal:{values.mean():.0f},{values.std() / values.mean():.2g}"
        for name, values in (("prompt", pairs.prompt), ("output", pairs.output))
    ]
    return f"Size again with the measured lengths: {' '.join(flags)}."

"""Says in what a sizing and a load test differ, and which figures cannot be compared therefore."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from analysis.answers.sizing import Sizing, StatedWorkload
from analysis.compare.differences import gpu_of
from analysis.compare.sides import MeasuredDeployment
from loadtest.model.gpus import find_gpu
from loadtest.record import ClassObjectives, RunInfo, UserClass
from loadtest.workload.distributions import Distribution

LENGTHS_BAND = 1.1
"""Factor by which measured mean lengths may be off the stated ones: the error that the bands of a sizing
allow for (`analysis.sizing.engine.LENGTHS_KNOWN`)."""
Subject = Literal["model", "card", "cache type", "pool flags", "slots", "lengths", "pauses", "objectives"]
"""What a figure depends on. pool flags: those that move the pool, such as the utilization."""
_COMPARED: dict[str, Subject] = {
    "shared_tokens": "lengths",
    "shared_prompts": "lengths",
    "shared_zipf": "lengths",
    "context_tokens": "lengths",
    "prompt_tokens": "lengths",
    "output_tokens": "lengths",
    "turns": "lengths",
    "steps": "lengths",
    "tool_tokens": "lengths",
    "think_s": "pauses",
    "tool_s": "pauses",
    "objectives": "objectives",
}
"""Fields of a class of users that are compared, and what depends on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """Something that differs between sizing and run."""

    subject: Subject
    text: str
    """A clause, such as `prompts differ (lognormal:512,0.6 against a mean of 128 tokens)`."""


def mismatches_with(sizing: Sizing, side: MeasuredDeployment) -> list[Mismatch]:
    """Lists what is known to differ between the sizing and the deployment that was measured."""
    info = side.info
    found = [_model(sizing, info), _card(sizing, info), *_flags(sizing, side)]
    if sizing.workload is None:
        found.append(
            Mismatch(
                subject="lengths",
                text="the sizing does not say its workload: make it again with this version",
            )
        )
    else:
        found += _workload(sizing.workload, side)
    return [one for one in found if one is not None]


def unknown_conditions(sizing: Sizing, side: MeasuredDeployment) -> list[str]:
    """Returns a warning for each condition that the run does not state, so that it is taken to be equal."""
    found = []
    if gpu_of(side.info) is None:
        found.append(f"The run does not say its GPU: it is taken to be the sizing's, {sizing.gpu}.")
    if side.judgement.evidence.max_num_seqs is None:
        stated = _flag(sizing, "--max-num-seqs")
        found.append(f"The run does not say max_num_seqs: it is taken to be the sizing's, {stated}.")
    if side.info.server.simulated is not None:
        found.append("The run was against Seatcount's embedded server: it says nothing of hardware.")
    if not _named(sizing.model):
        found.append("The sizing does not name its model (--name): it is taken to be the run's.")
    return found


def _model(sizing: Sizing, info: RunInfo) -> Mismatch | None:
    ours, theirs = _plain(sizing.model), _plain(info.model)
    if not _named(sizing.model) or ours in theirs or theirs in ours:
        return None
    return Mismatch(
        subject="model",
        text=f"models differ ({sizing.model} against {info.model}; if they are the same, size with --name)",
    )


def _named(model: str) -> bool:
    """Whether a sizing's model has a name of its own: without --name it is that of the file."""
    return _plain(model) not in ("config", "model")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower())


def _card(sizing: Sizing, info: RunInfo) -> Mismatch | None:
    name = gpu_of(info)
    if name is None:
        return None
    count = info.gpu.count if info.gpu and info.server.simulated is None else sizing.gpus
    if _card_name(sizing.gpu) == _card_name(name) and count == sizing.gpus:
        return None
    return Mismatch(subject="card", text=f"GPUs differ ({sizing.gpus} x {sizing.gpu} against {name})")


def _card_name(text: str) -> str:
    """Returns the catalogue's name of a card, else a plain form of the text."""
    bare = re.sub(r"^(\d+ x |simulated )", "", text)
    try:
        return find_gpu(bare).name
    except ValueError:
        return _plain(bare)


def _flags(sizing: Sizing, side: MeasuredDeployment) -> list[Mismatch | None]:
    server = side.info.server
    slots, engines = side.judgement.evidence.max_num_seqs, sizing.replicas
    stated = _flag(sizing, "--max-num-seqs")
    planned = int(stated) * engines if stated else None
    dtype = server.cache_dtype
    return [
        _different("slots", "another max_num_seqs", planned, slots),
        _different(
            "pool flags", "another gpu_memory_utilization", _number(sizing), server.gpu_memory_utilization
        ),
        _different(
            "cache type", "another type of KV cache", _flag(sizing, "--kv-cache-dtype") or "auto", dtype
        ),
        _different("pool flags", "another pool", "what is left", _by_hand(side.info)),
    ]


def _by_hand(info: RunInfo) -> str | None:
    """Says how the pool of the run was set, if it was not what vLLM found left; else None."""
    blocks = info.server.num_gpu_blocks_override
    return None if blocks is None else f"--num-gpu-blocks-override {blocks}"


def _different(subject: Subject, name: str, ours: object, theirs: object) -> Mismatch | None:
    if ours is None or theirs is None or ours == theirs:
        return None
    return Mismatch(subject=subject, text=f"{name} ({ours} against {theirs})")


def _flag(sizing: Sizing, name: str) -> str | None:
    """Returns the value of one of the sizing's flags of `vllm serve`."""
    flags = sizing.vllm_flags
    return flags[flags.index(name) + 1] if name in flags[:-1] else None


def _number(sizing: Sizing) -> float | None:
    text = _flag(sizing, "--gpu-memory-utilization")
    return float(text) if text else None


def _workload(stated: StatedWorkload, side: MeasuredDeployment) -> list[Mismatch]:
    settings, classes = side.info.settings, side.info.classes or []
    if stated.classes or classes:
        return class_mismatches(stated.classes, classes)
    found = [*_lengths(stated, side), *_prefixes(stated, side)]
    turns = settings.get("turns")
    turns = turns if isinstance(turns, int) else 1
    if turns != stated.turns:
        found.append(Mismatch(subject="lengths", text=f"turns differ ({stated.turns} against {turns})"))
    if _parsed(stated.think_s) != _parsed(str(settings.get("think_s") or "0")):
        text = f"think times differ ({stated.think_s} s against {settings.get('think_s') or 0} s)"
        found.append(Mismatch(subject="pauses", text=text))
    return found


def class_mismatches(ours: Sequence[UserClass], theirs: Sequence[UserClass]) -> list[Mismatch]:
    """Compares the classes of users of two workload files, as they are stated."""
    names = [", ".join(sorted(one.name for one in classes)) or "none" for classes in (ours, theirs)]
    if names[0] != names[1]:
        return [Mismatch(subject="lengths", text=f"classes of users differ ({names[0]} against {names[1]})")]
    measured, found = {one.name: one for one in theirs}, []
    total, others = (sum(one.weight for one in classes) for classes in (ours, theirs))
    for one in ours:
        other = measured[one.name]
        pairs = [(name, getattr(one, name), getattr(other, name)) for name in _COMPARED]
        pairs.append(("share", f"{one.weight / total:.0%}", f"{other.weight / others:.0%}"))
        for name, planned, seen in pairs:
            if planned != seen:
                subject = _COMPARED.get(name, "lengths")
                text = f"{name} of class '{one.name}' differs ({_told(planned)} against {_told(seen)})"
                found.append(Mismatch(subject=subject, text=text))
    return found


def _told(value: object) -> str:
    """Returns the value of a class's field for a message."""
    if not isinstance(value, ClassObjectives):
        return str(value)
    stated = {name: limit_s for name, limit_s in msgspec.structs.asdict(value).items() if limit_s}
    return ", ".join(f"{name} {limit_s:g}" for name, limit_s in stated.items()) or "none"


def _lengths(stated: StatedWorkload, side: MeasuredDeployment) -> list[Mismatch]:
    """Compares lengths by their measured means.

    Prompts of conversations hold the history: they are compared as the settings state them.
    """
    pairs, settings, found = side.judgement.evidence.pairs, side.info.settings, []
    for key, what, values in (
        (
            "prompt_tokens",
            "prompts",
            pairs.prompt - pairs.shared_prefix if pairs and stated.turns == 1 else None,
        ),
        ("output_tokens", "answers", pairs.output if pairs else None),
    ):
        mean = float(values.mean()) if values is not None else None
        if not _same_lengths(getattr(stated, key), settings.get(key), mean):
            theirs = settings.get(key) if mean is None else f"a mean of {mean:,.0f} tokens"
            text = f"{what} differ ({getattr(stated, key)} against {theirs})"
            found.append(Mismatch(subject="lengths", text=text))
    return found


def _prefixes(stated: StatedWorkload, side: MeasuredDeployment) -> list[Mismatch]:
    """Compares the prefix that all requests share; the run tells it in whole blocks."""
    pairs, pool = side.judgement.evidence.pairs, side.judgement.evidence.pool
    if pairs is None or pool is None:
        return []
    if abs(pairs.shared_prefix - stated.shared_prefix_tokens) <= pool.block_tokens:
        return []
    text = f"shared prefixes differ ({stated.shared_prefix_tokens} against {pairs.shared_prefix} tokens)"
    return [Mismatch(subject="lengths", text=text)]


def _same_lengths(stated: str, setting: object, mean: float | None) -> bool:
    """Whether measured lengths are those that the sizing states: the same setting, or nearly the same mean.

    The measured mean decides where it is known, because own prompts have no setting. mean: None if unknown.
    """
    planned = _parsed(stated)
    if planned is None or mean is None:
        return setting is None or _parsed(str(setting)) == planned
    return 1 / LENGTHS_BAND <= mean / planned.mean <= LENGTHS_BAND


def _parsed(text: str | None) -> Distribution | None:
    if text is None:
        return None
    try:
        return Distribution.parse(re.sub(r"^(\d+)\.0$", r"\1", text))
    except ValueError:
        return None


def blocking(found: Sequence[Mismatch], subjects: Sequence[Subject]) -> str | None:
    """Returns what forbids to compare a figure that depends on `subjects`, as a clause; None if nothing."""
    texts = [one.text for one in found if one.subject in subjects]
    return "; ".join(texts) or None

"""Reads the value of --speculative-config into what a draft adds to the deployment.

Knows no card.
"""

from pathlib import Path

import msgspec

from loadtest.errors import InputError
from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.speculation import Speculation, eagle3_draft, mtp_draft


class _Stated(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    num_speculative_tokens: int
    model: str | None = None
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None


def read_speculative_config(text: str, target: ModelShape) -> Speculation:
    """Returns what a JSON such as {"method": "mtp", "num_speculative_tokens": 1} states.

    `model` is the config.json of the draft, or its folder. Raises InputError for a method whose memory is not
    known, and for a draft that cannot be read or does not fit the target.
    """
    try:
        stated = msgspec.json.decode(text, type=_Stated)
    except msgspec.DecodeError as problem:
        raise InputError(f"--speculative-config: {problem}.") from None
    if stated.num_speculative_tokens < 1:
        raise InputError("--speculative-config: num_speculative_tokens must be at least 1.")
    try:
        draft = _draft(stated, target)
    except ValueError as problem:
        raise InputError(f"--speculative-config: {problem}") from None
    return Speculation(
        method=stated.method, tokens=stated.num_speculative_tokens, draft=draft, model=stated.model
    )


def _draft(stated: _Stated, target: ModelShape) -> ModelShape | None:
    method = "mtp" if stated.method.endswith("_mtp") else stated.method
    match method:
        case "ngram":
            return None
        case "mtp":
            return mtp_draft(target)
        case "eagle3":
            return eagle3_draft(_config(stated), target)
        case "draft_model":
            draft = parse_config(_config(stated))
            if draft.vocab_size != target.vocab_size:
                raise InputError(
                    f"--speculative-config: the draft's vocabulary has {draft.vocab_size:,} tokens and the "
                    f"model's {target.vocab_size:,}: vLLM would not start."
                )
            return draft
    raise InputError(
        f"--speculative-config: the memory of the method {stated.method!r} is not known: use one of "
        "draft_model, eagle3, mtp, ngram."
    )


def _config(stated: _Stated) -> dict[str, object]:
    if stated.model is None:
        raise InputError(f"--speculative-config: {stated.method} needs model, the draft's config.json.")
    path = Path(stated.model)
    path = path / "config.json" if path.is_dir() else path
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except OSError as problem:
        raise InputError(f"--speculative-config: {path} cannot be read ({problem.strerror}).") from None
    except msgspec.DecodeError as problem:
        raise InputError(f"--speculative-config: {path}: {problem}.") from None

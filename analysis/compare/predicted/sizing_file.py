"""Reads the JSON that `python -m analysis.sizing --format json` printed."""

from pathlib import Path

import msgspec

from analysis.answers.sizing import SIZING_SCHEMA, Sizing
from analysis.cli import RefusedError
from loadtest.errors import InputError


class _Schema(msgspec.Struct, frozen=True):
    schema: int


def read_sizing(path: Path) -> Sizing:
    """Reads a sizing.

    Raises InputError for a file that is no sizing, and RefusedError for one that predicts no users.
    """
    try:
        text = path.read_bytes()
        schema = msgspec.json.decode(text, type=_Schema).schema
        if schema != SIZING_SCHEMA:
            raise InputError(f"--predicted {path} has schema {schema}, not {SIZING_SCHEMA}: size again.")
        sizing = msgspec.json.decode(text, type=Sizing)
    except OSError as problem:
        raise InputError(f"--predicted {path} cannot be read ({problem.strerror}).") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise InputError(
            f"--predicted {path} is not what `analysis.sizing --format json` prints ({problem})."
        ) from None
    if sizing.refused or sizing.users_x is None:
        why = " ".join(sizing.reasons) or "It holds no users."
        raise RefusedError(f"{path} predicts no users, so there is nothing to compare: {why}")
    return sizing

"""Reads the JSON that `python -m analysis.sizing --format json` printed."""

from pathlib import Path

import msgspec

from analysis.answers.sizing import SIZING_SCHEMA, FloatBand, Sizing
from analysis.cli import RefusedError
from loadtest.errors import InputError

LATENCY_KEYS = ("ttft_s", "tpot_s", "e2e_s")


class PredictedLoad(msgspec.Struct, kw_only=True, frozen=True):
    """The latencies that were predicted for one load (`--at-users`, `--at-rate`): the key `at`."""

    users: int | None = None
    rate_per_s: float | None = None
    output_tok_s: FloatBand | None = None
    ttft_s: dict[str, FloatBand] = {}
    """Bands by `mean`, `p50`, `p95`, `p99`, as in the other two."""
    tpot_s: dict[str, FloatBand] = {}
    e2e_s: dict[str, FloatBand] = {}


class _WithLoad(msgspec.Struct, frozen=True):
    schema: int
    at: PredictedLoad | None = None


def read_sizing(path: Path) -> tuple[Sizing, PredictedLoad | None]:
    """Reads a sizing, and the load for which it predicts latencies; None if it has none.

    Raises InputError for a file that is no sizing, and RefusedError for one that predicts no users.
    """
    try:
        text = path.read_bytes()
        load = msgspec.json.decode(text, type=_WithLoad)
        if load.schema != SIZING_SCHEMA:
            raise InputError(f"--predicted {path} has schema {load.schema}, not {SIZING_SCHEMA}: size again.")
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
    return sizing, load.at

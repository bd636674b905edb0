"""Compares published claims about two models with what was measured here, and with what the models'
architectures allow. Knows no processes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loadtest.model.weights import step_bytes, weights_bytes
from loadtest.simulator.presets import Preset
from loadtest.units import GIB

_CONTEXTS = (32768, 8192, 2048)
"""Tokens of a request; the pool is divided by each of these lengths."""


def claims_beside_measurements(comparison: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    """Returns a table of claimed and measured figures, side by side.

    comparison: the parsed compare.json. claims: the parsed reference_claims.toml.
    """
    rows = {(row["figure"], row["users"]): (row["a"], row["b"]) for row in comparison["rows"]}
    fewest_users = min((users for _, users in rows if users is not None), default=None)

    def here(figure: str, users: int | None = None, scale: float = 1.0, digits: int = 0) -> list[str]:
        figures = rows.get((figure, users), ({}, {}))
        return [_number(figure.get("value"), scale, digits) for figure in figures]

    models = claims["models"]
    first_token = [f"{claim['first_token_ms']} ± {claim['first_token_spread_ms']}" for claim in models]
    requests = _claimed(models, "concurrent_requests")
    unclaimed = ["", ""]
    lines = [
        ("first-token latency, ms", first_token, here("ttft_p50_s", fewest_users, 1e3)),
        ("decode, tokens/s", _claimed(models, "decode_tok_s"), here("decode_tok_s", fewest_users, digits=1)),
        ("concurrent requests, memory alone", requests, here("memory_users")),
        ("users within every objective", unclaimed, [_users(answer) for answer in comparison["answers"]]),
        (
            "peak GPU memory in use, GB",
            _claimed(models, "peak_vram_gb"),
            here("vram_at_peak_bytes", None, 1e-9, 1),
        ),
        ("  held from the start, GB", unclaimed, here("vram_held_bytes", None, 1e-9, 1)),
        ("context, tokens", [f"{claim['context_tokens']:,}" for claim in models], here("max_model_len")),
    ]
    titles = [
        title
        for claim, answer in zip(models, comparison["answers"], strict=True)
        for title in (f"{claim['name']} claimed", f"{answer['model']} here")
    ]
    body = [[label, claimed[0], ours[0], claimed[1], ours[1]] for label, claimed, ours in lines]
    return (
        f"\nBeside what {claims['source']} claims:\n\n{_table([['', *titles], *body])}\n"
        f"Here: simulated; latency and decode with {fewest_users} user, prompts near 128 and answers near 32 "
        "tokens; memory predicted from the architectures. Answer quality is not measured here.\n"
    )


def _number(value: float | None, scale: float, digits: int) -> str:
    return "–" if value is None else f"{scale * value:,.{digits}f}"


def _claimed(models: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return [str(claim[name]) for claim in models]


def _users(answer: Mapping[str, Any]) -> str:
    if answer["max_users"] is None:
        return "–"
    return f"at least {answer['max_users']}" if answer["at_least"] else str(answer["max_users"])


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)],
            ]
        )
        for row in rows
    ]
    return "".join(f"  {line.rstrip()}\n" for line in lines)


def claims_beside_physics(presets: Sequence[Preset], claims: Sequence[Mapping[str, Any]]) -> str:
    """Returns a text that compares the claims with what the architectures and the GPU's data sheet allow."""
    names = " and ".join(preset.model for preset in presets)
    pools = [preset.pool() for preset in presets]
    weights = _both(f"{weights_bytes(preset.shape, dtype=preset.dtype) / GIB:.3f}" for preset in presets)
    peaks = _both(str(claim["peak_vram_gb"]) for claim in claims)
    held = pools[0].budget_bytes / GIB
    kv_kib = _both(f"{preset.pool().kv_bytes_per_token / 1024:.0f}" for preset in presets)
    fit = "; ".join(
        f"{_both(f'{pool.tokens / context:.1f}' for pool in pools)} of {context:,} tokens"
        for context in _CONTEXTS
    )
    counts = [claim["concurrent_requests"] for claim in claims]
    lengths = _both(f"{pool.tokens / count:,.0f}" for pool, count in zip(pools, counts, strict=True))
    ceilings = [
        preset.gpu.bandwidth_bytes_s / step_bytes(preset.shape, dtype=preset.dtype) for preset in presets
    ]
    notes = [
        f"Memory: the weights alone are {weights} GiB. The claimed peaks, {peaks} GB, are the bare weights "
        f"and leave nothing for a request. vLLM holds {held:.1f} GiB of this card from its start, whatever "
        "the load.",
        f"Requests: a token's keys and values take {kv_kib} KiB, the pools hold "
        f"{_both(f'{pool.tokens:,}' for pool in pools)} tokens. That is {fit}. {_both(map(str, counts))} "
        f"requests would be {lengths} tokens each: no one length gives {counts[0]} against {counts[1]}.",
        f"Decode: with a short context a step reads the weights once, so {presets[0].gpu.name} makes at most "
        f"{_both(f'{ceiling:.0f}' for ceiling in ceilings)} tokens/s of one request. "
        f"{_both(str(claim['decode_tok_s']) for claim in claims)} are in the opposite order.",
        "Names: no model is called Qwen2-1.8B; Qwen1.5-1.8B is the nearest.",
    ]
    return f"What the architectures of {names} say of these claims:\n\n" + "".join(
        f"  - {note}\n" for note in notes
    )


def _both(values: Iterable[str]) -> str:
    return " and ".join(values)

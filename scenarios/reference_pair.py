"""`make compare`: two small models on a simulated T4, one after the other under the same load, then side by
side and beside what a published comparison claims of them."""

import json
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.model.weights import step_bytes, weights_bytes
from loadtest.simulator.presets import Preset, find_preset
from loadtest.units import GIB
from scenarios import embedded

CLAIMS = Path(__file__).with_name("reference_claims.toml")
REPORTS = Path("reports") / "compare"
LEVELS, LEVEL_S, START_S = "1,88,108,128", 36, 12
"""One user, as the claims have it, for the 59 requests that a p95 needs; then where tokens get slow."""
FLAGS = {
    "--levels": LEVELS,
    "--level-s": str(LEVEL_S),
    "--settle-s": "4",
    "--prompt-tokens": "lognormal:128,0.5",
    "--output-tokens": "lognormal:32,0.5",
}
CONTEXTS = (32768, 8192, 2048)


def compare() -> None:
    """Loads both, compares the two runs, prints the claims beside them."""
    claims = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    presets = [find_preset(claim["preset"]) for claim in claims["models"]]
    count = len(LEVELS.split(","))
    minutes = len(presets) * (count * LEVEL_S + START_S) / 60
    embedded.say(
        f"Two models with the whole memory of a T4, simulated; {count} levels of {LEVEL_S} s each: "
        f"about {minutes:.0f} minutes."
    )
    runs = [_measured(preset) for preset in presets]
    embedded.run([sys.executable, "-m", "analysis.compare", *map(str, runs), "--output", str(REPORTS)])
    found = json.loads((REPORTS / "compare.json").read_text(encoding="utf-8"))
    sys.stdout.write(beside_claims(found, claims) + "\n" + physics(presets, claims["models"]))


def _measured(preset: Preset) -> Path:
    """The run folder of one model's sweep."""
    reports = REPORTS / preset.name
    with embedded.served(preset.name) as host:
        embedded.load_test(host, {**FLAGS, "--reports-dir": str(reports)})
    return max(path.parent for path in reports.glob("*/run.json"))


def beside_claims(found: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    """The claimed table with ours beside it. found: compare.json."""
    rows = {(row["figure"], row["users"]): (row["a"], row["b"]) for row in found["rows"]}
    one = min((users for _, users in rows if users is not None), default=None)

    def ours(figure: str, users: int | None = None, scale: float = 1.0, digits: int = 0) -> list[str]:
        sides = rows.get((figure, users), ({}, {}))
        return [
            "–" if side.get("value") is None else f"{scale * side['value']:,.{digits}f}" for side in sides
        ]

    models = claims["models"]
    spread = [f"{claim['first_token_ms']} ± {claim['first_token_spread_ms']}" for claim in models]
    lines = [
        ("first-token latency, ms", spread, ours("ttft_p50_s", one, 1e3)),
        ("decode, tokens/s", _claimed(models, "decode_tok_s"), ours("decode_tok_s", one, digits=1)),
        (
            "concurrent requests, memory alone",
            _claimed(models, "concurrent_requests"),
            ours("memory_users"),
        ),
        ("users within every objective", ["", ""], [_users(answer) for answer in found["answers"]]),
        (
            "peak GPU memory in use, GB",
            _claimed(models, "peak_vram_gb"),
            ours("vram_at_peak_bytes", None, 1e-9, 1),
        ),
        ("  held from the start, GB", ["", ""], ours("vram_held_bytes", None, 1e-9, 1)),
        ("context, tokens", [f"{n:,}" for n in _numbers(models)], ours("max_model_len")),
    ]
    names = [f"{claim['name']} claimed" for claim in models], [answer["model"] for answer in found["answers"]]
    head = ["", names[0][0], f"{names[1][0]} here", names[0][1], f"{names[1][1]} here"]
    body = [[label, claimed[0], seen[0], claimed[1], seen[1]] for label, claimed, seen in lines]
    return (
        f"\nBeside what {claims['source']} claims:\n\n{_table([head, *body])}\n"
        f"Here: simulated; latency and decode with {one} user, prompts near 128 and answers near 32 tokens; "
        "memory predicted from the architectures. Answer quality is not measured here.\n"
    )


def _claimed(models: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return [str(claim[name]) for claim in models]


def _numbers(models: Sequence[Mapping[str, Any]]) -> list[int]:
    return [claim["context_tokens"] for claim in models]


def _users(answer: Mapping[str, Any]) -> str:
    if answer["max_users"] is None:
        return "–"
    return f"at least {answer['max_users']}" if answer["at_least"] else str(answer["max_users"])


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
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


def physics(presets: Sequence[Preset], claims: Sequence[Mapping[str, Any]]) -> str:
    """What the architectures say against the claims, from their config.json and the card's data sheet."""
    names = " and ".join(preset.model for preset in presets)
    pools = [preset.pool() for preset in presets]
    weights = _both(f"{weights_bytes(preset.shape, dtype=preset.dtype) / GIB:.3f}" for preset in presets)
    peaks = _both(str(claim["peak_vram_gb"]) for claim in claims)
    held = pools[0].budget_bytes / GIB
    per = _both(f"{preset.pool().kv_bytes_per_token / 1024:.0f}" for preset in presets)
    fit = "; ".join(
        f"{_both(f'{pool.tokens / context:.1f}' for pool in pools)} of {context:,} tokens"
        for context in CONTEXTS
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
        f"Requests: a token's keys and values take {per} KiB, the pools hold "
        f"{_both(f'{pool.tokens:,}' for pool in pools)} tokens. That is {fit}. {_both(map(str, counts))} "
        f"requests would be {lengths} tokens each: at no one length is it {counts[0]} against {counts[1]}.",
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


if __name__ == "__main__":
    sys.exit(embedded.guarded(compare))

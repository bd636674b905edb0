"""Sizing -> text, Markdown, JSON. Makes strings; analysis.report prints them. Knows no maths."""

from collections.abc import Sequence

import msgspec

from analysis.answers.capacity import WALL_NAMES, Bound
from analysis.answers.sizing import CheckedClaim, Sizing
from loadtest.units import GIB

WIDTH = 92

WALL_WORDS = {
    "kv_cache": "GPU memory for the KV cache",
    "max_num_seqs": "--max-num-seqs",
    "ttft": "the time to first token",
    "tpot": "the time per output token",
}


def sizing_text(found: Sizing, *, form: str) -> str:
    """form: text, markdown or json."""
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(found), indent=1).decode()
    return _Page(markdown=form == "markdown").sizing(found)


def claims_text(checked: Sequence[CheckedClaim], *, form: str) -> str:
    """form: text, markdown or json."""
    if form == "json":
        rows = [
            {"model": one.model, "figure": one.figure, "claimed": one.claimed}
            | {"verdict": one.verdict, "why": one.why}
            for one in checked
        ]
        return msgspec.json.format(msgspec.json.encode({"schema": 1, "claims": rows}), indent=1).decode()
    return _Page(markdown=form == "markdown").claims(checked)


class _Page:
    """The same words as plain text or as Markdown."""

    def __init__(self, *, markdown: bool) -> None:
        self._markdown = markdown

    def sizing(self, found: Sizing) -> str:
        parts = [self._title(sizing_headline(found)), *self._sentences(summary_sentences(found))]
        parts += [self._heading("Where the memory of one GPU goes"), self._table(memory_cells(found))]
        if not found.refused:
            parts += [
                self._heading("What stands first"),
                self._table([("wall", "users", "90 %"), *map(_wall_cells, found.bounds)]),
                *self._sentences(_beyond(found)),
                self._heading("What vLLM will say"),
                *self._sentences(log_lines(found)),
                self._heading("Start it so"),
                self._code(f"vllm serve {found.model} {' '.join(found.vllm_flags)}"),
                self._heading("What the answer depends on"),
                self._table([("input", "change", "users"), *_effect_cells(found)]),
            ]
        for title, lines in (("Warnings", found.warnings), ("Assumed", found.assumptions)):
            if lines:
                parts += [self._heading(title), self._list(lines)]
        return "\n".join(parts)

    def claims(self, checked: Sequence[CheckedClaim]) -> str:
        parts = []
        for model in dict.fromkeys(one.model for one in checked):
            parts.append(self._heading(model))
            parts += [
                self._list([f"{one.figure}, {one.claimed}: {one.verdict.upper()}. {one.why}"])
                for one in checked
                if one.model == model
            ]
        return "\n".join(parts).lstrip("\n")

    def _title(self, text: str) -> str:
        return f"# {text}\n" if self._markdown else text

    def _heading(self, text: str) -> str:
        return f"\n## {text}\n" if self._markdown else f"\n{text}"

    def _sentences(self, lines: Sequence[str]) -> list[str]:
        return [line if self._markdown else _wrapped(line, "  ") for line in lines]

    def _list(self, lines: Sequence[str]) -> str:
        if self._markdown:
            return "\n".join(f"- {line}" for line in lines)
        return "\n".join(_wrapped(line, "    ", first="  - ") for line in lines)

    def _code(self, text: str) -> str:
        return f"    {text}" if self._markdown else f"  {text}"

    def _table(self, rows: Sequence[tuple[str, ...]]) -> str:
        if self._markdown:
            lines = [f"| {' | '.join(row)} |" for row in rows]
            return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        return "\n".join(
            "  "
            + row[0].ljust(widths[0])
            + "".join(f"  {cell:>{width}}" for cell, width in _rest(row, widths))
            for row in rows
        )


def _rest(row: Sequence[str], widths: Sequence[int]) -> list[tuple[str, int]]:
    return list(zip(row[1:], widths[1:], strict=True))


def _wrapped(text: str, indent: str, *, first: str | None = None) -> str:
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) + 1 > WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    head = indent if first is None else first
    return "\n".join((indent if place else head) + one for place, one in enumerate([*lines, line]))


def sizing_headline(found: Sizing) -> str:
    """How many users, in a few words."""
    where = f"{found.model} on {_cards(found)}"
    if found.users is None:
        return f"{where}: does not fit"
    low, middle, high = found.users
    users = "1 user" if middle == 1 else f"{middle:,} users"
    return f"{where}: about {users} (90 %: {low:,} to {high:,})"


def _cards(found: Sizing) -> str:
    return found.gpu if found.gpus == 1 else f"{found.gpus} x {found.gpu}"


def summary_sentences(found: Sizing) -> list[str]:
    """What limits, and where the estimate comes from."""
    if found.refused:
        return list(found.reasons)
    source = (
        f"Start-up figures corrected by {found.calibrated_by}."
        if found.calibrated_by
        else "Nothing was measured: config.json, data sheet, and what vLLM is known to take."
    )
    flying = found.in_flight_at_estimate or 0.0
    each = f"{(found.kv_bytes_per_user or 0) / 2**20:,.0f} MiB of KV cache"
    if found.tokens_per_user is not None:
        each = f"{found.tokens_per_user:,.0f} KV tokens ({each})"
    wall = WALL_WORDS.get(found.binding, found.binding)
    return [f"Limited by {wall}; {flying:,.0f} requests in flight there, of {each} each on average. {source}"]


def memory_cells(found: Sizing) -> list[tuple[str, ...]]:
    """Label, GiB, band."""
    band = found.overhead_band_bytes
    inside = "" if band.graphs_in_budget else " (on top of the budget)"
    rows: list[tuple[str, ...]] = [
        ("", "GiB", "90 %"),
        ("memory that the driver reports", _gib(found.vram_bytes), ""),
        ("vLLM's budget", _gib(found.budget_bytes or 0), ""),
        ("weights", _gib(found.weights_bytes), _span(found.weights_band_bytes)),
        ("activation peak", _gib(band.activation[1]), _span(band.activation)),
        (f"CUDA graphs{inside}", _gib(band.cuda_graphs[1]), _span(band.cuda_graphs)),
        ("libraries and collectives", _gib(band.non_torch[1]), _span(band.non_torch)),
    ]
    if found.pool_bytes is not None:
        rows.append(("KV pool", _gib(found.pool_bytes[1]), _span(found.pool_bytes)))
    return rows


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"


def _span(band: Sequence[int]) -> str:
    return f"{band[0] / GIB:.2f} to {band[2] / GIB:.2f}"


def _wall_cells(bound: Bound) -> tuple[str, ...]:
    low, high = bound.interval_x
    span = "exact" if high - low < 0.05 else f"{low:,.1f} to {high:,.1f}"
    return WALL_NAMES[bound.name], f"{bound.users_x:,.1f}", span


def _beyond(found: Sizing) -> list[str]:
    if not found.not_met:
        return []
    names = " and ".join(WALL_NAMES[wall] for wall in found.not_met)
    return [f"Beyond twice the first wall: {names}."]


def log_lines(found: Sizing) -> list[str]:
    """The lines to look for when it starts, and what they do not say."""
    if found.pool_tokens is None or found.vllm_max_concurrency is None or found.blocks is None:
        return []
    per = found.kv_bytes_per_token
    each = f", {per / 1024:g} KiB a token on each GPU" if per else ""
    low, _, high = found.vllm_max_concurrency_band or (0.0, 0.0, 0.0)
    return [
        f"GPU KV cache size: {found.vllm_kv_cache_tokens or 0:,} tokens ({found.blocks[1]:,} blocks of "
        f"{found.block_size} tokens{each}).",
        f"Maximum concurrency for {found.max_model_len:,} tokens per request: "
        f"{found.vllm_max_concurrency:.2f}x (90 %: {low:.2f} to {high:.2f}). That is the worst case of "
        "full-length requests, not the number of users.",
    ]


def _effect_cells(found: Sizing) -> list[tuple[str, ...]]:
    return [(one.input, one.change, f"{one.effect_users:+,.1f}") for one in found.sensitivity]

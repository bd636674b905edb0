"""Prints a sizing as text, Markdown or JSON, and writes its figure."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from analysis.answers.capacity import Bound
from analysis.answers.sizing import (
    AtLoad,
    CheckedClaim,
    Effect,
    FleetCandidate,
    OmittedCandidate,
    OmittedStatus,
    Purchase,
    Sizing,
    StatedWorkload,
)
from analysis.reporting.console import print_plain
from analysis.reporting.numbers import NONE, users_text
from analysis.reporting.sizing.workload import class_rows, workload_text
from analysis.reporting.words import WALL_NAMES, of_class
from loadtest.errors import InputError
from loadtest.units import GIB

SIZING_FORMS = ("text", "markdown", "json")
LINE_WIDTH = 94


def show_sizing(sizing: Sizing, workload: StatedWorkload, *, form: str) -> None:
    """Prints the answer in one of SIZING_FORMS."""
    if form == "json":
        print_plain(msgspec.json.format(msgspec.json.encode(sizing), indent=1).decode())
    else:
        print_plain(_Page(markdown=form == "markdown").sizing(sizing, workload))


def show_purchase(purchase: Purchase, workload: StatedWorkload, *, form: str) -> None:
    """Prints what to buy in one of SIZING_FORMS."""
    if form == "json":
        print_plain(msgspec.json.format(msgspec.json.encode(purchase), indent=1).decode())
    else:
        print_plain(_Page(markdown=form == "markdown").purchase(purchase, workload))


def show_claims(checked: Sequence[CheckedClaim], *, form: str) -> None:
    """Prints the verdicts on claimed figures in one of SIZING_FORMS."""
    if form != "json":
        print_plain(_Page(markdown=form == "markdown").claims(checked))
        return
    rows = [
        {"model": claim.model, "figure": claim.figure, "claimed": claim.claimed}
        | {"verdict": claim.verdict, "why": claim.why}
        for claim in checked
    ]
    print_plain(msgspec.json.format(msgspec.json.encode({"schema": 1, "claims": rows}), indent=1).decode())


def write_vram_figure(sizing: Sizing, path: Path) -> None:
    """Writes the figure of one GPU's memory as SVG. Raises InputError if it cannot be written."""
    from analysis.reporting.figures.sizing import draw_vram_parts
    from analysis.reporting.figures.style import svg

    try:
        path.write_text(svg(lambda axes: draw_vram_parts(axes, sizing), (7.2, 2.6)), encoding="utf-8")
    except OSError as problem:
        raise InputError(f"--figure {path} cannot be written ({problem.strerror}).") from None


class _Page:
    """Formats answers as plain text or as Markdown."""

    def __init__(self, *, markdown: bool) -> None:
        self._markdown = markdown

    def sizing(self, sizing: Sizing, workload: StatedWorkload) -> str:
        parts = [self._title(_headline(sizing)), *self._sentences(_summary(sizing, workload))]
        parts += self._section("Warnings", sizing.warnings)
        parts += [self._heading("Where the memory of one GPU goes"), self._table(_memory_cells(sizing))]
        if sizing.bounds:
            parts += [
                self._heading("Users at each limit"),
                self._table([("limit", "users", "90 %"), *map(_wall_cells, sizing.bounds)]),
                *self._sentences(_farther_walls(sizing)),
                *self._classes(sizing),
                *self._at(sizing.at),
            ]
        if not sizing.refused:
            parts += [
                self._heading("What vLLM will log at start-up"),
                *self._sentences(_log_lines(sizing)),
                self._heading("Command"),
                self._code(f"vllm serve {sizing.model} {' '.join(sizing.vllm_flags)}"),
                self._heading("Users more or fewer, if one input changes"),
                self._table([("input", "change", "users"), *map(_effect_cells, sizing.sensitivity)]),
            ]
        parts += self._section("Assumptions", sizing.assumptions)
        return "\n".join(parts)

    def _at(self, at: AtLoad | None) -> list[str]:
        """Returns the section on the load of --at-users or --at-rate; empty without one."""
        if at is None:
            return []
        return [self._heading(_at_heading(at)), *self._sentences(_at_lines(at)), self._table(_at_cells(at))]

    def _classes(self, sizing: Sizing) -> list[str]:
        """Returns the section on the classes of users; empty without a mix."""
        if not sizing.classes:
            return []
        users = sum(one.users for one in sizing.classes)
        title = self._heading(f"Each class at {users_text(users)}, the number to plan with")
        return [title, self._table(class_rows(sizing.classes))]

    def purchase(self, purchase: Purchase, workload: StatedWorkload) -> str:
        parts = [
            self._title(_purchase_headline(purchase)),
            *self._sentences(_purchase_summary(purchase, workload)),
        ]
        parts += self._section("Warnings", _each_once(purchase.fleet, lambda candidate: candidate.warnings))
        if purchase.fleet:
            first = purchase.fleet[0]
            parts += [
                self._heading("Cards that hold them, the best first"),
                self._table(_fleet_cells(purchase)),
                self._heading(f"Command of one replica on {_cards_text(first, 1)}"),
                self._code(f"vllm serve {purchase.model} {' '.join(first.vllm_flags)}"),
            ]
        parts += self._section("Not offered", _omitted_lines(purchase))
        assumed = _each_once(purchase.fleet, lambda candidate: candidate.assumptions)
        parts += self._section("Assumptions", [*assumed, *purchase.assumptions])
        return "\n".join(parts)

    def claims(self, checked: Sequence[CheckedClaim]) -> str:
        parts = []
        for model in dict.fromkeys(claim.model for claim in checked):
            parts.append(self._heading(model))
            parts += [
                self._list([f"{claim.figure}, {claim.claimed}: {claim.verdict.upper()}. {claim.why}"])
                for claim in checked
                if claim.model == model
            ]
        return "\n".join(parts).lstrip("\n")

    def _title(self, text: str) -> str:
        return f"# {text}\n" if self._markdown else text

    def _heading(self, text: str) -> str:
        return f"\n## {text}\n" if self._markdown else f"\n{text}"

    def _section(self, title: str, points: Sequence[str]) -> list[str]:
        return [self._heading(title), self._list(points)] if points else []

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
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  "
            + row[0].ljust(widths[0])
            + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
            for row in rows
        )


def _wrapped(text: str, indent: str, *, first: str | None = None) -> str:
    lines = textwrap.wrap(
        text.replace(" %", "\N{NO-BREAK SPACE}%"),
        width=LINE_WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _headline(sizing: Sizing) -> str:
    where = f"{sizing.model} on {sizing.gpu if sizing.gpus == 1 else f'{sizing.gpus} x {sizing.gpu}'}"
    if sizing.objectives_unmet:
        return f"{where}: not even one user gets what is asked"
    if sizing.users is None:
        return f"{where}: does not fit"
    low = sizing.users[0]
    return f"{where}: plan for {users_text(low)}" if low else f"{where}: no user is sure to be held"


def _summary(sizing: Sizing, workload: StatedWorkload) -> list[str]:
    """Returns sentences on the limit, the workload, the objectives, the KV cache and the basis.

    If the sizing is refused, returns the reasons in place of the limit; if the model does not fit, only them.
    """
    if sizing.users is None:
        return list(sizing.reasons)
    rest = f"the start-up {sizing.calibrated_by}" if sizing.calibrated_by else "what vLLM is known to take"
    basis = f"Predicted, not measured: from config.json, the GPU's data sheet and {rest}."
    if sizing.refused:
        return [*sizing.reasons, workload_text(workload), basis]
    return [
        _limit_text(sizing),
        workload_text(workload),
        f"At the estimate {sizing.in_flight_at_estimate or 0.0:,.0f} requests are in flight, and each holds "
        f"{_kv_per_request(sizing)} on average.",
        basis,
    ]


def _limit_text(sizing: Sizing) -> str:
    low, limit, high = sizing.users_x or (0.0, 0.0, 0.0)
    wall = WALL_NAMES[sizing.binding]
    return (
        f"The limit is {limit:,.1f} users (90 %: {low:,.1f} to {high:,.1f}): {wall}. {math.floor(low):,} is "
        "the lower end, rounded down."
    )


def _kv_per_request(sizing: Sizing) -> str:
    size = f"{(sizing.kv_bytes_per_user or 0) / 2**20:,.0f} MiB"
    if sizing.tokens_per_user is None:
        return f"{size} of KV cache"
    return f"{sizing.tokens_per_user:,.0f} tokens of KV cache ({size})"


def _memory_cells(sizing: Sizing) -> list[tuple[str, ...]]:
    """Returns the rows of the memory table, with its heading row: label, GiB, 90 % band."""
    band = sizing.overhead_band_bytes
    inside = "" if band.graphs_in_budget else " (on top of the budget)"
    rows: list[tuple[str, ...]] = [
        ("", "GiB", "90 %"),
        ("memory that the driver reports", _gib(sizing.vram_bytes), ""),
        ("vLLM's budget", _gib(sizing.budget_bytes or 0), ""),
        ("weights", _gib(sizing.weights_bytes), _span(sizing.weights_band_bytes)),
        ("activation peak", _gib(band.activation[1]), _span(band.activation)),
        (f"CUDA graphs{inside}", _gib(band.cuda_graphs[1]), _span(band.cuda_graphs)),
        ("libraries and collectives", _gib(band.non_torch[1]), _span(band.non_torch)),
    ]
    if sizing.pool_bytes is not None:
        rows.append(("KV pool", _gib(sizing.pool_bytes[1]), _span(sizing.pool_bytes)))
    return rows


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"


def _span(band: Sequence[int]) -> str:
    return f"{band[0] / GIB:.2f} to {band[2] / GIB:.2f}"


def _wall_cells(bound: Bound) -> tuple[str, ...]:
    low, high = bound.interval_x
    span = "exact" if high - low < 0.05 else f"{low:,.1f} to {high:,.1f}"
    return WALL_NAMES[bound.name] + of_class(bound.user_class), f"{bound.users_x:,.1f}", span


def _farther_walls(sizing: Sizing) -> list[str]:
    if not sizing.not_met:
        return []
    names = " and ".join(WALL_NAMES[wall] for wall in sizing.not_met)
    return [f"Not reached at the loads that were simulated: {names}."]


def _at_heading(at: AtLoad) -> str:
    return f"At {users_text(at.users)}" if at.users else f"At {at.rate_per_s:g} requests a second"


def _at_lines(at: AtLoad) -> list[str]:
    if at.stable:
        return []
    return [
        "Requests arrive faster than they end: the queue grows as long as the load lasts, so there is no "
        "steady TTFT."
    ]


def _at_cells(at: AtLoad) -> list[tuple[str, ...]]:
    """Returns the rows of the table of one load, with its heading row: mean, then percentiles with bands."""
    rows: list[tuple[str, ...]] = [("", "mean", "p50", "p95", "p99", "90 % band of the p95")]
    for name, bands in (("TTFT, s", at.ttft_s), ("TPOT, ms", at.tpot_s), ("E2E, s", at.e2e_s)):
        if bands is None:
            continue
        scale, digits = (1000.0, 1) if name.endswith("ms") else (1.0, 2)
        values = (bands.mean, bands.p50, bands.p95, bands.p99)
        low, _, high = bands.p95
        rows.append(
            (
                name,
                *(f"{scale * band[1]:,.{digits}f}" for band in values),
                f"{scale * low:,.{digits}f} to {scale * high:,.{digits}f}",
            )
        )
    rows.append(("output tokens/s", f"{at.output_tok_s[1]:,.0f}", "", "", "", ""))
    rows.append(("requests in flight", f"{at.in_flight[1]:,.1f}", "", "", "", ""))
    return rows


def _log_lines(sizing: Sizing) -> list[str]:
    """Returns the two lines that vLLM will log about its KV cache; empty without a KV-cache pool.

    The second line says that vLLM's "maximum concurrency" is not the number of users.
    """
    if sizing.pool_tokens is None or sizing.vllm_max_concurrency is None or sizing.blocks is None:
        return []
    per = sizing.kv_bytes_per_token
    each = f", {per / 1024:g} KiB a token on each GPU" if per else ""
    low, _, high = sizing.vllm_max_concurrency_band or (0.0, 0.0, 0.0)
    return [
        f"GPU KV cache size: {sizing.vllm_kv_cache_tokens or 0:,} tokens ({sizing.blocks[1]:,} blocks of "
        f"{sizing.block_size} tokens{each}).",
        f"Maximum concurrency for {sizing.max_model_len:,} tokens per request: "
        f"{sizing.vllm_max_concurrency:.2f}x (90 %: {low:.2f} to {high:.2f}). That is the worst case of "
        "full-length requests, not the number of users.",
    ]


def _effect_cells(effect: Effect) -> tuple[str, ...]:
    return effect.input, effect.change, f"{effect.effect_users:+,.1f}"


# What to buy.


def _cards_text(candidate: FleetCandidate, replicas: int) -> str:
    return f"{replicas * candidate.cards // candidate.replicas} x {candidate.gpu}"


def _purchase_headline(purchase: Purchase) -> str:
    asked = f"{purchase.model} for {users_text(purchase.for_users)}"
    if not purchase.fleet:
        return f"{asked}: none of these cards"
    first = purchase.fleet[0]
    return f"{asked}: {_cards_text(first, first.replicas)}"


def _purchase_summary(purchase: Purchase, workload: StatedWorkload) -> list[str]:
    """Returns sentences on the first candidate, the demand, the workload and the basis."""
    lines = [_surely_text(purchase.fleet[0])] if purchase.fleet else list(purchase.reasons)
    if purchase.headcount is not None and purchase.active_fraction is not None:
        lines.append(
            f"Of {purchase.headcount:,} people, {100 * purchase.active_fraction:g} % are active in the "
            f"busiest hour: {users_text(purchase.for_users)}."
        )
    return [
        *lines,
        workload_text(workload),
        "Predicted, not measured: from config.json, the GPUs' data sheets and what vLLM is known to take.",
    ]


def _surely_text(candidate: FleetCandidate) -> str:
    """Says with how many cards the users are surely held, and with how many perhaps."""
    replicas, middle, perhaps = (
        candidate.replicas,
        candidate.replicas_by_estimate,
        candidate.replicas_perhaps,
    )
    verb = "holds" if candidate.cards == 1 else "hold"
    text = f"{_cards_text(candidate, replicas)} {verb} them surely"
    each = candidate.cards // replicas
    if perhaps < middle < replicas:
        text += f", {each * middle} by the estimate"
    if perhaps < replicas:
        text += f", {each * perhaps} perhaps"
    parallel = f" of {each} cards each" if each > 1 else ""
    many = f" The {replicas} replicas{parallel} share the users." if replicas > 1 else ""
    low, x, high = candidate.users_per_replica
    return (
        f"{text}.{many} A replica holds {x:,} users (90 %: {low:,} to {high:,}), by "
        f"{WALL_NAMES[candidate.binding]}; {low:,} are planned with."
    )


def _each_once(fleet: Sequence[FleetCandidate], said: Callable[[FleetCandidate], list[str]]) -> list[str]:
    """Returns each sentence once, after the names of the cards that it is of, if not of all."""
    cards: dict[str, list[str]] = {}
    for candidate in fleet:
        for sentence in said(candidate):
            cards.setdefault(sentence, []).append(candidate.gpu)
    return [
        sentence if len(names) == len(fleet) else f"{', '.join(names)}: {sentence}"
        for sentence, names in cards.items()
    ]


def _fleet_cells(purchase: Purchase) -> list[tuple[str, ...]]:
    """Returns the rows of the table of candidates, with its heading row."""
    priced = any(candidate.cost_per_hour is not None for candidate in purchase.fleet)
    head = (
        *("card", "TP", "replicas", "cards", "perhaps", "users each", "90 %", "limit", "headroom"),
        "kWh/h at most",
        *((f"{purchase.currency or 'cost'} an hour", "a user-hour", "1M output tokens") if priced else ()),
    )
    return [head, *(_candidate_cells(candidate, priced=priced) for candidate in purchase.fleet)]


def _candidate_cells(candidate: FleetCandidate, *, priced: bool) -> tuple[str, ...]:
    low, x, high = candidate.users_per_replica
    cells = (
        candidate.gpu,
        f"{candidate.tensor_parallel}",
        f"{candidate.replicas:,}",
        f"{candidate.cards:,}",
        f"{candidate.cards // candidate.replicas * candidate.replicas_perhaps:,}",
        f"{x:,}",
        f"{low:,} to {high:,}",
        WALL_NAMES[candidate.binding],
        f"{100 * candidate.headroom_fraction:+.0f} %",
        _known(candidate.energy_at_most_kwh_per_hour, ".2f"),
    )
    if not priced:
        return cells
    return (
        *cells,
        _known(candidate.cost_per_hour, ",.2f"),
        _known(candidate.cost_per_user_hour, ".4f"),
        _known(candidate.cost_per_million_output_tokens, ",.2f"),
    )


def _known(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _omitted_lines(purchase: Purchase) -> list[str]:
    """Returns sentences on what is not offered: one for each reason, or for each card."""
    by_status: dict[OmittedStatus, list[OmittedCandidate]] = {}
    for omitted in purchase.omitted:
        by_status.setdefault(omitted.status, []).append(omitted)
    missed = [*by_status.get("objective_not_met", []), *by_status.get("not_sure", [])]
    largest = {omitted.gpu: omitted for omitted in missed}  # of a card the last, with the most cards
    lines = [omitted.why for omitted in largest.values()]
    if "does_not_fit" in by_status:
        lines.append(f"Does not fit: {_too_small(by_status['does_not_fit'])}.")
    lines += list(dict.fromkeys(omitted.why for omitted in by_status.get("impossible", [])))
    if "not_computed" in by_status:
        names = ", ".join(omitted.gpu for omitted in by_status["not_computed"])
        lines.append(
            f"Not computed, as they rank behind those above (--gpu names the cards to compare): {names}."
        )
    return lines


def _too_small(omitted: Sequence[OmittedCandidate]) -> str:
    """Lists cards by how many of them are too few for a replica: "on 1: A100, H100; on up to 4: T4"."""
    most: dict[str, int] = {}
    for candidate in omitted:
        most[candidate.gpu] = max(candidate.tensor_parallel, most.get(candidate.gpu, 0))
    by_count = {count: [card for card in most if most[card] == count] for count in sorted(most.values())}
    return "; ".join(
        f"on {'1' if count == 1 else f'up to {count}'}: {', '.join(cards)}"
        for count, cards in by_count.items()
    )

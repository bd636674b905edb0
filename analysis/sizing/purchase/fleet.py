"""Ranks cards by what they cost, or by how many are needed, computing only what can still rank high."""

import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from msgspec.structs import replace as with_fields

from analysis.answers.sizing import FleetCandidate, OmittedCandidate, Purchase
from analysis.sizing.flags import SizingFlags, gpu_of_flags, read_shape
from analysis.sizing.purchase.candidates import CandidateCards, Examined, LeastReplicas, Look, examine
from analysis.sizing.purchase.demand import Demand
from analysis.sizing.purchase.prices import Prices
from loadtest.errors import InputError
from loadtest.model.gpus import Gpu

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Numbers of cards of a replica that are tried: those of servers as they are sold."""
MAX_RANKED = 5
"""Candidates that are ranked if no cards are named; the others are named as not computed."""
LOOKS_EACH = {Look.BOUND: 16, Look.LOAD: 2, Look.WHOLE: 1}
"""Candidates that a process examines before the next are chosen: more where a look costs less."""
NOTHING_HOLDS = (
    "None of these cards is sure to hold a single user: the model does not fit, or an objective is missed."
)
EVEN_SPREAD = (
    "A router spreads requests evenly over the replicas (round robin, or to the replica with the fewest). In "
    "the twin (python -m analysis.twin) four replicas then hold as many users each as one alone. If users "
    "are bound to replicas by chance, the fullest replica gets more than its share."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """A candidate, and the best rank that it can still have."""

    cards: CandidateCards
    gpu: Gpu
    price_per_hour: float | None
    """Price of one card."""
    replicas: int = 1
    """Least number of replicas that it may need."""
    next_look: Look = Look.BOUND
    """How closely it is to be examined next."""
    found: FleetCandidate | None = None
    """The candidate with all its figures; None: not yet computed."""

    @property
    def rank(self) -> tuple[float, int, float, float, int]:
        """The sort key, least first: cost, cards, power, memory, TP; what is not known is infinite."""
        count, power_w = self.replicas * self.cards.per_replica, self.gpu.power_w
        cost = math.inf if self.price_per_hour is None else self.price_per_hour * count
        power = math.inf if power_w is None else power_w * count
        return cost, count, power, self.gpu.vram_bytes * count, self.cards.tensor_parallel

    def examined(self, result: LeastReplicas | FleetCandidate) -> "_Entry":
        """Returns the candidate with what was found of it."""
        if isinstance(result, LeastReplicas):
            return replace(self, replicas=result.replicas, next_look=result.next_look)
        return replace(self, replicas=result.replicas, found=result)


Examine = Callable[[Sequence[_Entry]], Iterable[Examined]]


def compare_cards(
    flags: SizingFlags,
    cards: Sequence[str],
    *,
    demand: Demand,
    prices: Prices,
    most: int,
    on_ranked: Callable[[int], None] = lambda _: None,
) -> Purchase:
    """Ranks cards for a demand. Raises InputError if the flags are wrong, whatever the card.

    flags: those of the command; each of the cards takes the place of their `gpu`. most: number of candidates
    with which the ranking ends. on_ranked: called with each number of candidates that were added to it.
    """
    entries = _entries(flags, cards, prices)
    with _workers(len(cards)) as (count, spread):
        looked = partial(spread, partial(_examined, demand.users))
        ranked, omitted = _ranking(entries, looked, at_once=count, most=most, on_ranked=on_ranked)
    if not ranked and all(candidate.status == "impossible" for candidate in omitted):
        raise InputError(omitted[0].why)
    return Purchase(
        model=flags.name or flags.config.stem,
        for_users=demand.users,
        headcount=demand.headcount,
        active_fraction=demand.active_fraction,
        currency=prices.currency,
        refused=not ranked,
        reasons=[] if ranked else [NOTHING_HOLDS],
        fleet=[_priced(entry, demand.users) for entry in ranked],
        omitted=omitted,
        assumptions=[EVEN_SPREAD] if any(entry.replicas > 1 for entry in ranked) else [],
    )


def _entries(flags: SizingFlags, cards: Sequence[str], prices: Prices) -> list[_Entry]:
    """Returns a candidate for each card and each tensor parallelism that the model's heads allow."""
    heads = read_shape(flags.config, flags.quantization).num_heads
    sizes = [flags.tp] if flags.tp else [tp for tp in TENSOR_PARALLEL if heads % tp == 0]
    of_cards = [(card, replace(flags, gpu=card)) for card in cards]
    return [
        _Entry(
            cards=CandidateCards(label=card, flags=replace(of_card, tp=tp)),
            gpu=gpu_of_flags(of_card),
            price_per_hour=prices.of(card),
        )
        for card, of_card in of_cards
        for tp in sizes
    ]


def _ranking(
    entries: Sequence[_Entry],
    looked: Examine,
    *,
    at_once: int,
    most: int,
    on_ranked: Callable[[int], None],
) -> tuple[list[_Entry], list[OmittedCandidate]]:
    """Returns the best candidate of each card, the best card first, and what is not offered.

    Those that may rank first are examined until it is known which does. The others of its card rank behind.
    """
    ranked: list[_Entry] = []
    omitted: list[OmittedCandidate] = []
    queue = sorted(entries, key=lambda entry: entry.rank)
    while queue and len(ranked) < most:
        if queue[0].found:
            ranked.append(queue[0])
            queue = [entry for entry in queue if entry.cards.label != queue[0].cards.label]
            on_ranked(1)
            continue
        batch = _next_batch(queue, at_once)
        known = [entry for entry in queue if entry not in batch]
        for entry, result in zip(batch, looked(batch), strict=True):
            if isinstance(result, OmittedCandidate):
                omitted.append(result)
            else:
                known.append(entry.examined(result))
        queue = sorted(known, key=lambda entry: entry.rank)
        on_ranked(0)
    return ranked, [*omitted, *_not_computed(queue)]


def _next_batch(queue: Sequence[_Entry], at_once: int) -> list[_Entry]:
    """Returns the candidates to examine side by side, all of them equally closely.

    The best get the cheapest look that any of them still lacks, and with them some that follow.
    """
    unknown = [entry for entry in queue if not entry.found]
    look = min(entry.next_look for entry in unknown[:at_once])
    return [entry for entry in unknown[: at_once * LOOKS_EACH[look]] if entry.next_look is look]


def _examined(users: int, entry: _Entry) -> Examined:
    return examine(entry.cards, users, look=entry.next_look, least=entry.replicas)


@contextmanager
def _workers(cards: int) -> Iterator[tuple[int, Callable[..., Iterable[Examined]]]]:
    """Gives the number of processes and a `map` over them; one card is examined in this process."""
    count = min(os.cpu_count() or 1, cards)
    if count == 1:
        yield 1, map
        return
    # Ctrl-C ends the workers at once and without a word: this process says it.
    with ProcessPoolExecutor(
        count, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
    ) as pool:
        try:
            yield count, pool.map
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _not_computed(queue: Sequence[_Entry]) -> list[OmittedCandidate]:
    """Returns, of each card in the queue, the candidate that would rank first."""
    first = {entry.cards.label: entry for entry in reversed(queue)}
    return [
        OmittedCandidate(
            gpu=entry.cards.label,
            tensor_parallel=entry.cards.tensor_parallel,
            status="not_computed",
            why=f"It needs at least {entry.replicas * entry.cards.per_replica} x {entry.cards.label}, and "
            "ranks behind those that were computed.",
        )
        for entry in reversed(first.values())
    ]


def _priced(entry: _Entry, users: int) -> FleetCandidate:
    """Returns the candidate with its costs, if the price of its card is known."""
    found, price = entry.found, entry.price_per_hour
    assert found is not None
    if price is None:
        return found
    cost = price * found.cards
    return with_fields(
        found,
        price_per_gpu_hour=price,
        cost_per_hour=cost,
        cost_per_user_hour=cost / users,
        cost_per_million_output_tokens=cost / (3600 * found.output_tok_s) * 1e6,
    )

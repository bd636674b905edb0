"""Limits that no level has passed: up to how many users the requests prove that they hold."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scipy import optimize

from analysis.evidence.evidence import Evidence
from analysis.levels.level import Level
from analysis.levels.requests import RequestLatency
from analysis.statistics.crossings import MISS_LIMIT
from analysis.statistics.samples import MissShare, share_bounds
from analysis.walls.errors import OVERLOAD_LIMIT
from analysis.walls.names import WallName

MOST_TIMES = 100.0  # further requests are named up to so many times the ones that there are


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What is known of a limit on the share of misses at one number of users."""

    users: int
    share_at_most: float
    """Upper bound of the share of misses."""
    holds: bool
    """Whether the limit is known to hold at this number of users and below."""
    more_requests: int | None
    """Further requests at this number of users that would prove the limit, if they miss as often as the
    present ones; 0 where it is proved, None where they would be too many to name."""
    more_s: float | None
    """Seconds that these requests would take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldLimit:
    """A limit on the share of misses that no trusted level has passed, and how far it is known to hold."""

    name: WallName
    limit: float
    """Largest share of misses that is allowed."""
    proofs: Sequence[Proof]
    """One for each number of users, in rising order."""
    user_class: str | None = None
    """Class of users for which least is known; None without classes."""
    binds: bool
    """Whether the answer must not exceed `holds_to_users`. Not so for errors where no request was turned
    away at all: hundreds of good requests would not prove a share of 1 %."""

    @property
    def holds_to_users(self) -> int | None:
        """Largest number of users for which the limit is known to hold; None if there is none."""
        return max((proof.users for proof in self.proofs if proof.holds), default=None)

    def at(self, users: int) -> Proof:
        """Returns the proof at the largest measured number of users up to `users`, or else at the lowest."""
        return next((proof for proof in reversed(self.proofs) if proof.users <= users), self.proofs[0])


def _errors(level: Level) -> MissShare:
    """Returns the share of requests that the server turned away.

    Where there is none, nothing tells how errors cluster, and requests count as independent.
    """
    share = level.requests.overload
    return share if share.misses else replace(share, effect=1.0, tail_effect=None)


Misses = Callable[[Level], MissShare]
_LATENCY: tuple[tuple[WallName, Callable[[RequestLatency], MissShare]], ...] = (
    ("ttft", lambda latency: latency.ttft_miss),
    ("tpot", lambda latency: latency.tpot_miss),
    ("stall", lambda latency: latency.stall_miss),
)


def held_limits(evidence: Evidence, met: Sequence[WallName], *, error: float) -> list[HeldLimit]:
    """Returns how far the objectives of latency and errors are known to hold, without those that were met.

    error: probability with which an upper bound may be wrong. A limit of which no level tells is left out.
    """
    found = []
    for name, share in _LATENCY:
        of_classes = [_held_by_class(evidence, name, share, one, error) for one in evidence.objectives]
        found.append(min(filter(None, of_classes), key=lambda one: one.holds_to_users or 0, default=None))
    found.append(_held(evidence, "errors", OVERLOAD_LIMIT, _errors, error))
    return [limit for limit in found if limit is not None and limit.name not in met]


def _held_by_class(
    evidence: Evidence,
    name: WallName,
    share: Callable[[RequestLatency], MissShare],
    user_class: str | None,
    error: float,
) -> HeldLimit | None:
    held = _held(evidence, name, MISS_LIMIT, lambda level: share(level.latency_of(user_class)), error)
    return None if held is None else replace(held, user_class=user_class)


def _held(evidence: Evidence, name: WallName, limit: float, misses: Misses, error: float) -> HeldLimit | None:
    levels = [level for level in evidence.levels if level.trusted and misses(level).n]
    if not levels:
        return None
    binds = name != "errors" or any(misses(level).misses for level in levels)
    return HeldLimit(name=name, limit=limit, proofs=_proofs(limit, levels, misses, error), binds=binds)


def _proofs(limit: float, levels: Sequence[Level], misses: Misses, error: float) -> list[Proof]:
    """Tests the numbers of users in rising order; beyond the first that fails, no limit is known to hold.

    Misses are taken not to fall with users. The share at N users is then at most the share at all levels with
    N users or more, and all these levels together bound it.
    """
    found: list[Proof] = []
    for users in sorted({level.users for level in levels}):
        above = [misses(level) for level in levels if level.users >= users]
        fraction, effective = _pooled(above)
        bound = share_bounds(fraction, effective, error)[1]
        requests = sum(share.n for share in above)
        more = _more_needed(fraction, effective, limit, error)
        here = [level for level in levels if level.users == users]
        rate = sum(misses(level).n for level in here) / sum(level.window.length_s for level in here)
        found.append(
            Proof(
                users=users,
                share_at_most=bound,
                holds=bound <= limit and all(proof.holds for proof in found),
                more_requests=None if more is None else math.ceil(more * requests),
                more_s=None if more is None else more * requests / rate,
            )
        )
    return found


def _pooled(shares: Sequence[MissShare]) -> tuple[float, float]:
    """Returns the share of misses of several levels together, and their effective number of requests."""
    requests = sum(share.n for share in shares)
    effect = sum(share.n * (share.tail_effect or share.effect) for share in shares) / requests
    return sum(share.misses for share in shares) / requests, requests / effect


def _more_needed(fraction: float, effective: float, limit: float, error: float) -> float | None:
    """Returns how many times the present requests are missing for the upper bound to be within the limit.

    None where it would be more than MOST_TIMES.
    """

    def beyond(times: float) -> float:
        return share_bounds(fraction, effective * times, error)[1] - limit

    if beyond(1.0) <= 0.0:
        return 0.0
    if beyond(MOST_TIMES) > 0.0:
        return None
    return float(optimize.brentq(beyond, 1.0, MOST_TIMES)) - 1.0

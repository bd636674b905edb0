"""A gateway before the engines in virtual time, which turns requests away. Knows no scheduler."""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayLimits:
    """The limits of a gateway, and what its refusals look like."""

    max_unfinished: int | None = None
    """Most unfinished requests; one more is refused with status 429. None: no limit."""
    requests_per_s: float | None = None
    """Requests let through each second in the long run, by a token bucket; others are refused with status
    429. None: no limit."""
    burst: int = 1
    """Size of the token bucket: requests let through at once after a time without requests."""
    malformed_fraction: float = 0.0
    """Share of the requests that are refused with status 400 whatever the load, as for what they ask."""
    refusal_s: float = 0.001
    """Seconds that a refusal takes."""
    retry_after_s: float | None = None
    """What an answer with status 429 asks for in `Retry-After`; None: nothing."""
    seed: int = 0


class Gate:
    """A gateway at work: the state of its token bucket and its random numbers."""

    def __init__(self, gateway: GatewayLimits) -> None:
        self._gateway = gateway
        self._random = random.Random(gateway.seed)
        self._tokens, self._filled_s = float(gateway.burst), -math.inf

    def status(self, now_s: float, unfinished: int) -> int:
        """Returns the HTTP status for a request that arrives now: 200 lets it through.

        unfinished: unfinished requests that the gateway let through before.
        """
        gateway = self._gateway
        if gateway.malformed_fraction and self._random.random() < gateway.malformed_fraction:
            return 400
        if gateway.max_unfinished is not None and unfinished >= gateway.max_unfinished:
            return 429
        if gateway.requests_per_s is not None:
            filled = self._tokens + gateway.requests_per_s * (now_s - self._filled_s)
            self._tokens, self._filled_s = min(filled, gateway.burst), now_s
            if self._tokens < 1.0:
                return 429
            self._tokens -= 1.0
        return 200

"""Distributions of lengths and times, read from text and drawn from a seeded generator."""

import math
import random
import re
from typing import Literal

import msgspec

_NUMBER = r"(\d+(?:\.\d+)?)"
_FORMS = (
    ("fixed", re.compile(rf"{_NUMBER}")),
    ("uniform", re.compile(rf"{_NUMBER}-{_NUMBER}")),
    ("lognormal", re.compile(rf"lognormal:{_NUMBER},{_NUMBER}")),
    ("exp", re.compile(rf"exp:{_NUMBER}")),
)


class Distribution(msgspec.Struct, frozen=True):
    """A distribution of lengths or times: `N`, `LO-HI` (inclusive), `lognormal:MEAN,CV` or `exp:MEAN`."""

    kind: Literal["fixed", "uniform", "lognormal", "exp"]
    a: float
    """The value itself (fixed), the lower end (uniform) or the mean (lognormal, exp)."""
    b: float = 0.0
    """The upper end (uniform) or the coefficient of variation (lognormal); else 0."""

    @classmethod
    def parse(cls, text: str) -> "Distribution":
        """Reads a distribution from its text form. Raises ValueError, with the accepted forms in the
        message."""
        for kind, form in _FORMS:
            if match := form.fullmatch(text.strip()):
                a, b = ([float(group) for group in match.groups()] + [0.0])[:2]
                if kind == "uniform" and b < a:
                    break
                if kind in ("lognormal", "exp") and a == 0:
                    break
                return cls(kind, a, b)  # type: ignore[arg-type]
        raise ValueError(
            f"'{text}' is not a distribution: write N, LO-HI, lognormal:MEAN,CV or exp:MEAN, for example "
            "512, 100-900 or lognormal:512,0.6."
        )

    @property
    def mean(self) -> float:
        """Mean of the distribution."""
        return (self.a + self.b) / 2 if self.kind == "uniform" else self.a

    def draw(self, rng: random.Random) -> float:
        """Draws one value, not rounded. A lognormal distribution with mean m and coefficient of variation c
        is drawn with sigma^2 = ln(1 + c^2) and mu = ln m - sigma^2 / 2."""
        match self.kind:
            case "fixed":
                return self.a
            case "uniform":
                return rng.uniform(self.a, self.b)
            case "exp":
                return rng.expovariate(1 / self.a)
            case "lognormal":
                variance = math.log1p(self.b**2)
                return rng.lognormvariate(math.log(self.a) - variance / 2, math.sqrt(variance))

    def draw_remaining(self, rng: random.Random) -> float:
        """Draws how long a pause that is under way at a random instant still lasts.

        Such a pause is a long one more often than a short one, in proportion to its length, and the instant
        lies anywhere in it (the equilibrium residual life of renewal theory).
        """
        part = rng.random()
        match self.kind:
            case "fixed":
                return part * self.a
            case "uniform":
                return part * math.sqrt(self.a**2 + rng.random() * (self.b**2 - self.a**2))
            case "exp":
                return rng.expovariate(1 / self.a)
            case "lognormal":
                variance = math.log1p(self.b**2)
                return part * rng.lognormvariate(math.log(self.a) + variance / 2, math.sqrt(variance))

    def draw_count(self, rng: random.Random) -> int:
        """Draws one whole number, 1 or larger."""
        if self.kind == "uniform":
            return max(1, rng.randint(math.ceil(self.a), math.floor(self.b)))
        return max(1, round(self.draw(rng)))

"""Reads what a card costs an hour. Invents no price: a card that is not in the file has none."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.errors import InputError
from loadtest.model.gpus import GPU_CATALOGUE, find_gpu


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What a card costs an hour, by its name in the catalogue, in one currency."""

    gpu_hour: Mapping[str, float]
    every_gpu_hour: float | None = None
    """The price of a card that `gpu_hour` does not name; None: not known."""
    currency: str | None = None

    def of(self, card: str) -> float | None:
        """Returns what the card costs an hour; None if that is not known."""
        return self.gpu_hour.get(card, self.every_gpu_hour)


def stated_prices(*, path: Path | None, every_gpu_hour: float | None) -> Prices:
    """Returns the prices that the flags state: a list, one for every card, or none.

    Raises InputError if both are given, and like `read_prices`.
    """
    if path is not None and every_gpu_hour is not None:
        raise InputError("Give --prices or --gpu-price, not both.")
    return read_prices(path) if path is not None else Prices(gpu_hour={}, every_gpu_hour=every_gpu_hour)


def read_prices(path: Path) -> Prices:
    """Reads a price list in TOML, or in JSON if the file's name ends with `.json`.

    It has a table `gpu_hour` from a card's name to its price an hour, and perhaps a `currency`. Raises
    InputError for a file that cannot be read, an unknown card, and a price that is not a positive number.
    """
    content = _content(path)
    if strange := set(content) - {"gpu_hour", "currency"}:
        raise InputError(f"--prices {path}: {min(strange)!r} is neither gpu_hour nor currency.")
    currency, listed = content.get("currency"), content.get("gpu_hour")
    if not isinstance(currency, str | None):
        raise InputError(f'--prices {path}: currency must be a text, such as "EUR".')
    if not isinstance(listed, dict) or not listed:
        raise InputError(
            f'--prices {path} has no prices: it needs a table [gpu_hour] with lines such as "L40S" = 1.9.'
        )
    prices: dict[str, float] = {}
    for name, price in listed.items():
        card = _card(path, name)
        if card in prices:
            raise InputError(f"--prices {path} has two prices for the {card}.")
        prices[card] = _price(path, name, price)
    return Prices(gpu_hour=prices, currency=currency)


def _content(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        content = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as problem:
        raise InputError(f"--prices {path} cannot be read ({problem.strerror}).") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.DecodeError) as problem:
        raise InputError(f"--prices {path}: {problem}.") from None
    if not isinstance(content, dict):
        raise InputError(f"--prices {path} must be an object with the key gpu_hour.")
    return content


def _card(path: Path, name: str) -> str:
    try:
        return card_label(name)
    except ValueError:
        raise InputError(
            f"--prices {path}: the card {name!r} is not in the catalogue ({', '.join(GPU_CATALOGUE)})."
        ) from None


def card_label(name: str) -> str:
    """Returns the catalogue's own name of a card. Raises ValueError for an unknown one, as `find_gpu`."""
    found = find_gpu(name)
    return next(label for label, gpu in GPU_CATALOGUE.items() if gpu is found)


def _price(path: Path, name: str, price: object) -> float:
    """Returns the price as a number. True and false are numbers for Python, but no prices."""
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 < price < math.inf:
        raise InputError(f"--prices {path}: the price of the {name} is {price!r}, not a positive number.")
    return float(price)

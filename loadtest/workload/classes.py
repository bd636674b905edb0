"""The classes of users of a workload file, and which of them each user belongs to. Reads no other file; knows
no settings, no server and no Locust."""

import difflib
import itertools
import math
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from loadtest.credentials import named_secrets
from loadtest.record import ClassObjectives, UserClass
from loadtest.workload.distributions import Distribution

_HEADER = re.compile(r"\s*\[\[\s*class\s*\]\]")
_KEYS = UserClass.__struct_fields__
_OBJECTIVES = ClassObjectives.__struct_fields__
_TOKENS = ("prompt_tokens", "output_tokens", "tool_tokens")
_COUNTS = ("turns", "steps")
_PAUSES = ("think_s", "tool_s")
_DISTRIBUTIONS = (*_TOKENS, "context_tokens", *_COUNTS, *_PAUSES)
_ONCE = Distribution("fixed", 1.0)
_REQUIRED = ("name", "weight", "prompt_tokens", "output_tokens")


class ClassPlan(msgspec.Struct, kw_only=True, frozen=True):
    """A class of users with its distributions read, ready to be drawn from."""

    user_class: UserClass
    context_tokens: Distribution
    prompt_tokens: Distribution
    output_tokens: Distribution
    turns: Distribution
    steps: Distribution
    tool_tokens: Distribution
    think_s: Distribution
    tool_s: Distribution

    @classmethod
    def of(cls, user_class: UserClass) -> "ClassPlan":
        texts = {name: getattr(user_class, name) or "0" for name in _DISTRIBUTIONS}
        return cls(user_class=user_class, **{name: Distribution.parse(text) for name, text in texts.items()})

    @property
    def name(self) -> str | None:
        """Name of the class; None for the users of a run without a workload file."""
        return self.user_class.name or None

    @property
    def has_history(self) -> bool:
        """Whether some conversation has more than one request, so that answers are sent back."""
        return any(each != _ONCE for each in (self.turns, self.steps))

    def draw_first_request(self, rng: random.Random) -> tuple[int, int]:
        """Draws a conversation's first request: its tokens, with the shared text, and those of its answer."""
        own = self.draw_context(rng) + self.prompt_tokens.draw_count(rng)
        return self.user_class.shared_tokens + own, self.output_tokens.draw_count(rng)

    def draw_context(self, rng: random.Random) -> int:
        """Draws the tokens of a conversation's own context, which may be 0."""
        return max(0, round(self.context_tokens.draw(rng))) if self.context_tokens.mean else 0

    def draw_shared_text(self, rng: random.Random) -> int:
        """Draws the number of the shared text that a conversation begins with."""
        count = self.user_class.shared_prompts
        if count == 1:
            return 0
        return rng.choices(range(count), cum_weights=_popularity(count, self.user_class.shared_zipf))[0]


@cache
def _popularity(count: int, exponent: float) -> list[float]:
    return list(itertools.accumulate(rank**-exponent for rank in range(1, count + 1)))


def text_popularity(user_class: UserClass) -> list[float]:
    """Returns the popularity of each shared text of a class: that of rank r is 1 / r ** shared_zipf."""
    return [rank**-user_class.shared_zipf for rank in range(1, user_class.shared_prompts + 1)]


def different_texts(popularity: Sequence[float], conversations: int) -> float:
    """Returns how many different shared texts so many conversations begin with, on average."""
    total = sum(popularity)
    return math.fsum(1.0 - (1.0 - one / total) ** conversations for one in popularity)


def texts_in_flight(popularity: Sequence[float], in_flight: float) -> float:
    """Returns how many different shared texts are in flight on average, where so many requests are on
    average: their number is taken as Poisson's."""
    total = sum(popularity)
    return math.fsum(-math.expm1(-in_flight * one / total) for one in popularity)


def read_workload_file(path: Path) -> list[UserClass]:
    """Reads a workload file: TOML with a table `[[class]]` for each class of users. Raises OSError, or
    ValueError with a sentence that names the file, the line and the class for the first mistake found."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None
    for key in [key for key in document if key != "class"]:
        raise ValueError(
            f"{path}, line {_line_of(text.splitlines(), key) or 1}: unknown key '{key}'; a workload file "
            "holds only tables [[class]]."
        )
    tables = document.get("class", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: write [[class]], in two brackets, before each class.")
    if not tables:
        raise ValueError(f"{path} has no class: write [[class]] and its keys for each class of users.")
    found: list[UserClass] = []
    for table, place in zip(tables, _places(path, text, len(tables)), strict=True):
        found.append(_read_class(table, place, known=[each.name for each in found]))
    return found


class _Place:
    """Where a class stands in its file, for messages."""

    def __init__(self, path: Path, number: int, lines: Sequence[str], first_line: int | None) -> None:
        self.path, self.number = path, number
        self._lines, self._first_line = lines, first_line
        self.name: object = None

    def error(self, key: str | None, words: str) -> ValueError:
        """Builds the error about a key of the class; None: about the class as a whole."""
        line = ""
        if self._first_line is not None:
            inside = _line_of(self._lines, key) if key is not None else 1
            line = f", line {self._first_line + (inside or 1) - 1}"
        name = f"class '{self.name}'" if self.name else f"class {self.number}"
        return ValueError(f"{self.path}{line}: {name}: {words}.")


def _places(path: Path, text: str, count: int) -> Iterator[_Place]:
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if _HEADER.match(line)]
    if len(starts) != count:  # classes in another notation, or a header inside a text
        yield from (_Place(path, number + 1, [], None) for number in range(count))
        return
    for number, (start, end) in enumerate(itertools.pairwise([*starts, len(lines)])):
        yield _Place(path, number + 1, lines[start:end], start + 1)


def _line_of(lines: Sequence[str], key: str) -> int | None:
    pattern = re.compile(rf"""[\s\[]*(?:.*[{{,.]\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(lines, start=1) if pattern.match(line)), None)


def _read_class(table: Mapping[str, Any], place: _Place, *, known: Sequence[str]) -> UserClass:
    place.name = table.get("name")
    for key in table:
        _refuse_unknown(key, _KEYS, place, what="key")
    for key in _REQUIRED:
        if key not in table:
            raise place.error(None, f"{key} is missing")
    if not isinstance(place.name, str) or not place.name.strip() or not place.name.isprintable():
        place.name = None
        raise place.error("name", "name must be a text of printable characters")
    if place.name in known:
        raise place.error("name", "there is another class with this name")
    objectives = table.get("objectives", {})
    if not isinstance(objectives, dict):
        raise place.error("objectives", "objectives must be a table such as { ttft_p95_s = 2.0 }")
    for key in objectives:
        _refuse_unknown(key, _OBJECTIVES, place, what="objective")
    for key, value in [*table.items(), *objectives.items()]:
        if (words := _mistake(key, value)) is not None:
            raise place.error(key, words)
    texts = {key: _text(table[key]) for key in _DISTRIBUTIONS if key in table}
    read = msgspec.convert({**table, **texts}, UserClass)
    if ClassPlan.of(read).steps != _ONCE and read.tool_tokens is None:
        raise place.error("steps", "steps need tool_tokens, the new text of each further step")
    return read


def _refuse_unknown(key: str, known: Sequence[str], place: _Place, *, what: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise place.error(key, f"unknown {what} '{key}' ({hint})")


def _mistake(key: str, value: object) -> str | None:
    """Returns what is wrong with the value of a key; None if nothing is."""
    if key in _DISTRIBUTIONS:
        return _mistake_in_distribution(key, value)
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if key == "weight" or key in _OBJECTIVES:
        return None if 0 < number < math.inf else f"{key} must be a number above 0"
    if key in ("shared_zipf", "temperature"):
        return None if 0 <= number < math.inf else f"{key} must be a number, 0 or more"
    if key in ("shared_tokens", "shared_prompts"):
        least = 1 if key == "shared_prompts" else 0
        is_count = isinstance(number, int) and number >= least
        return None if is_count else f"{key} must be a whole number, {least} or more"
    return _mistake_in_body(value) if key == "extra_body" else None


def _mistake_in_distribution(key: str, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return f"{key} must be a number or a text such as 'lognormal:512,0.6'"
    try:
        distribution = Distribution.parse(_text(value))
    except ValueError as error:
        return f"{key}: {str(error).rstrip('.')}"
    if key in _TOKENS and distribution.mean < 1:
        return f"{key}: '{value}' is less than one token"
    if key in _COUNTS and distribution.mean < 1:
        return f"{key}: '{value}' is less than 1"
    return None


def _mistake_in_body(value: object) -> str | None:
    if not isinstance(value, dict):
        return "extra_body must be a table of keys of the request"
    if (mistake := mistake_in_answers(value)) is not None:
        return f"extra_body {mistake}"
    if names := named_secrets(value):
        return (
            f"extra_body.{names[0]} looks like a secret, and a workload file is recorded with its run: give "
            "it with --extra-body"
        )
    return None


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def mistake_in_answers(body: Mapping[str, object]) -> str | None:
    """Returns why a request's body asks for answers that cannot be measured, several at once or not streamed,
    as the end of a sentence; None if it does not."""
    if any(body.get(name, 1) not in (1, None) for name in ("n", "best_of")):
        return (
            "asks for several answers to a request (n, best_of): a request has one answer here, so leave "
            "them out"
        )
    if body.get("stream", True) is not True:
        return (
            "asks for an answer that is not streamed: without a stream there is no time to first token, so "
            "leave `stream` out"
        )
    return None


def mix_order(weights: Sequence[float]) -> Iterator[int]:
    """Yields, for user 0, 1, 2 and so on without end, the index of the user's class, by the method of
    Sainte-Lague (Webster): the next user goes to the class with the largest weight / (2 * users + 1), to the
    first of them if they are equal. So the first n users have the weights as nearly as whole users allow, for
    every n, and a user's class never depends on how many others there are."""
    counts = [0] * len(weights)
    while True:
        chosen = max(range(len(weights)), key=lambda i: (weights[i] / (2 * counts[i] + 1), -i))
        counts[chosen] += 1
        yield chosen


@cache
def _first_users(weights: tuple[float, ...], users: int) -> tuple[int, ...]:
    counts = Counter(itertools.islice(mix_order(weights), users))
    return tuple(counts[position] for position in range(len(weights)))


def users_by_weight(weights: Sequence[float], users: int) -> tuple[int, ...]:
    """Returns how many of the first `users` users belong to each class, by the weights of the classes."""
    return _first_users(tuple(weights), users)


def users_of_classes(classes: Sequence[UserClass], users: int) -> dict[str, int]:
    """Returns how many of the first `users` users belong to each class, by its name."""
    counts = users_by_weight([each.weight for each in classes], users)
    return {each.name: count for each, count in zip(classes, counts, strict=True)}

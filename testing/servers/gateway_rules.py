"""What a gateway does to the requests that pass through it: rules, and the decision about each request.

Every rule is off by default. Shares are drawn with a seeded generator.
"""

import json
import math
import random
import time
import types
import typing
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

CONTEXT_WORDS = (
    "This model's maximum context length is {limit} tokens. However, your request has {asked} input tokens. "
    "Please reduce the length of the input messages."
)


def _rule(meaning: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the gateway does, one field for each flag of its command."""

    seed: int = _rule("random seed of the shares", 0)
    # Refusals, before anything is forwarded.
    status: int | None = _rule("answer every chat with this status")
    words: str = _rule("what a refusal says", "The gateway refuses this request.")
    retry_after: str | None = _rule("header Retry-After of refusals with status 429 and 503")
    shed_from: int | None = _rule("refuse from this many unfinished chats on, the new one included")
    shed_status: int = _rule("status of --shed-from", 503)
    refuse_share: float = _rule("share of the chats that are refused with 400", 0.0)
    error_share: float = _rule("share of the chats that are answered with 500", 0.0)
    reset_share: float = _rule("share of the chats whose connection is reset before an answer", 0.0)
    max_prompt_words: int | None = _rule("refuse longer prompts with 400, as vLLM words it")
    refuse_ignore_eos: bool = _rule("refuse the field ignore_eos with 422", default=False)
    requests_a_minute: float | None = _rule("refuse with 429 above this rate of chats")
    tokens_a_minute: float | None = _rule("refuse with 429 above this rate of prompt words and max_tokens")
    login: bool = _rule("redirect every chat to a login page in HTML", default=False)
    # Absence.
    away_s: float = _rule("be away for so long: connections are reset and refused", 0.0)
    away_in_s: float = _rule("seconds from the first chat until --away-s", 0.0)
    # Forwarding.
    delay_s: float = _rule("seconds of work before a chat is forwarded", 0.0)
    delay_slots: int | None = _rule("how many chats can be in --delay-s at a time; others queue")
    cold_s: float = _rule("seconds that a chat takes longer after no chat for --cold-after-s", 0.0)
    cold_after_s: float = _rule("see --cold-s; the first chat of all always comes to a cold server", 5.0)
    keep_alive_s: float = _rule("close a connection that was idle for so long", 75.0)
    http10: bool = _rule("speak HTTP/1.0 to the server", default=False)
    retries: int = _rule("how often a chat is sent again when the server answers 5xx or breaks", 0)
    # Answers.
    empty_share: float = _rule("share of the answers that keep their tokens and lose their text", 0.0)
    abort_share: float = _rule("share of the answers that end with finish_reason abort", 0.0)
    malformed_share: float = _rule("share of the answers with a malformed chunk in the middle", 0.0)
    gather_bytes: int | None = _rule("hold an answer back until so many bytes have gathered")
    cut_after_s: float | None = _rule("close the connection of an answer that lasts longer")
    idle_s: float | None = _rule("close the connection of an answer in which nothing comes for so long")
    hang_s: float = _rule("seconds for which the body stays open after [DONE]", 0.0)
    close_after: bool = _rule("promise keep-alive, and close after each answer", default=False)
    no_usage: bool = _rule("leave usage out", default=False)
    # Other pages.
    model_name: str | None = _rule("the only name that /v1/models lists")
    any_model: bool = _rule("take every model's name", default=False)
    pages: str = _rule("JSON object of other pages, by path: JSON, a text, or null for a 404", "{}")
    no_metrics: bool = _rule("answer 404 for /metrics", default=False)
    metrics_head: str = _rule("text before the metrics", "")
    metrics_type: str | None = _rule("Content-Type of /metrics")


def _kind_of(hint: Any) -> Any:
    """Returns the type of a rule's values: int of `int | None`."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def add_rule_flags(parser: ArgumentParser) -> None:
    hints = typing.get_type_hints(Rules)
    for rule in fields(Rules):
        name, meaning = f"--{rule.name.replace('_', '-')}", rule.metadata["help"]
        kind = _kind_of(hints[rule.name])
        assert rule.default is not MISSING
        if kind is bool:
            parser.add_argument(name, action="store_true", help=meaning)
        else:
            parser.add_argument(name, type=kind, default=rule.default, help=meaning)


def rules_from(values: Mapping[str, Any]) -> Rules:
    return Rules(**{rule.name: values[rule.name] for rule in fields(Rules)})


@dataclass(frozen=True)
class Refusal:
    """An answer that the gateway gives itself."""

    status: int
    words: str


class _Bucket:
    """A rate limit: amounts flow in at a rate, and at most one second's flow (or one request) is kept."""

    def __init__(self) -> None:
        self._level: float | None = None
        self._at_s = 0.0

    def takes(self, amount: float, *, a_minute: float) -> bool:
        """Takes the amount out if it is there."""
        now_s, a_second = time.monotonic(), a_minute / 60
        room = max(a_second, amount)
        level = room if self._level is None else self._level + (now_s - self._at_s) * a_second
        self._level, self._at_s = min(level, room), now_s
        if self._level < amount:
            return False
        self._level -= amount
        return True


class Unfinished:
    """One unfinished chat, counted in its policy's `open` until it ends."""

    def __init__(self, policy: "Policy") -> None:
        self._policy: Policy | None = policy
        policy.open += 1

    def end(self) -> None:
        """Ends the chat. Ending it again has no effect."""
        if self._policy is not None:
            self._policy.open -= 1
            self._policy.last_end_s = time.monotonic()
            self._policy = None


class Policy:
    """Decides what happens to each chat. `open` is the number of unfinished chats."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.open = 0
        self.last_end_s = -math.inf
        self._random = random.Random(rules.seed)
        self._requests, self._tokens = _Bucket(), _Bucket()

    @contextmanager
    def counted(self) -> Iterator[Unfinished]:
        """Counts a chat among the unfinished ones until the block ends, or until its `end` is called."""
        unfinished = Unfinished(self)
        try:
            yield unfinished
        finally:
            unfinished.end()

    def cold_s(self) -> float:
        """Returns how long this chat waits for a cold server."""
        idle = self.open == 1 and time.monotonic() - self.last_end_s > self.rules.cold_after_s
        return self.rules.cold_s if idle else 0.0

    def drawn(self, share: float) -> bool:
        """Draws whether this chat belongs to a share of all chats."""
        return share > 0 and self._random.random() < share

    def refusal(self, chat: Mapping[str, Any]) -> Refusal | None:
        """Says with what a chat is refused; None if it is forwarded. The chat counts among `open` already."""
        rules = self.rules
        if rules.status is not None:
            return Refusal(rules.status, rules.words)
        if rules.shed_from is not None and self.open >= rules.shed_from:
            return Refusal(rules.shed_status, rules.words)
        if self.drawn(rules.refuse_share):
            return Refusal(400, rules.words)
        if self.drawn(rules.error_share):
            return Refusal(500, rules.words)
        if rules.refuse_ignore_eos and "ignore_eos" in chat:
            return Refusal(422, "body.ignore_eos: Extra inputs are not permitted")
        return self._too_long(chat) or self._too_fast(chat)

    def _too_long(self, chat: Mapping[str, Any]) -> Refusal | None:
        limit, asked = self.rules.max_prompt_words, _prompt_words(chat)
        if limit is None or asked <= limit:
            return None
        return Refusal(400, CONTEXT_WORDS.format(limit=limit, asked=asked))

    def _too_fast(self, chat: Mapping[str, Any]) -> Refusal | None:
        rules = self.rules
        tokens = _prompt_words(chat) + int(chat.get("max_tokens") or 0)
        if rules.requests_a_minute and not self._requests.takes(1, a_minute=rules.requests_a_minute):
            return Refusal(429, f"Rate limit reached: {rules.requests_a_minute:g} requests a minute.")
        if rules.tokens_a_minute and not self._tokens.takes(tokens, a_minute=rules.tokens_a_minute):
            return Refusal(429, f"Rate limit reached: {rules.tokens_a_minute:g} tokens a minute.")
        return None


def _prompt_words(chat: Mapping[str, Any]) -> int:
    return sum(len(str(message.get("content", "")).split()) for message in chat.get("messages", []))


def refusal_body(refusal: Refusal) -> bytes:
    error = {"message": refusal.words, "type": "gateway", "param": None, "code": refusal.status}
    return json.dumps({"error": error}).encode()

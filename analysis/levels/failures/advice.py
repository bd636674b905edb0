"""What to do about failed requests of one class, as a code."""

import re
from typing import Literal

from analysis.levels.failures.classes import Cause, FailureClass
from loadtest.record import Outcome

Advice = Literal[
    "shorter_requests",
    "drop_field",
    "other_content",
    "api_key",
    "address",
    "read_the_words",
    "fewer_users",
    "rate_limit",
    "server_log",
    "unanswered",
    "longer_stream_timeout",
    "empty_answers",
    "own_machine",
]

_TOO_LONG = re.compile(
    r"context (?:length|window|size)|max_model_len|maximum (?:prompt|input) length|too long|too many tokens|"
    r"longer than the maximum|exceeds? the (?:available|maximum|model)",
    re.IGNORECASE,
)
_UNKNOWN_FIELD = re.compile(
    r"extra (?:inputs|fields)|not permitted|unrecognized|unsupported (?:parameter|value)|unexpected keyword|"
    r"unknown (?:field|parameter|argument)|ignore_eos",
    re.IGNORECASE,
)
_CONTENT = re.compile(r"content.?(?:filter|policy|management)|moderation|safety|guardrail", re.IGNORECASE)

_BY_OUTCOME: dict[Outcome, Advice] = {
    Outcome.NOT_SENT: "own_machine",
    Outcome.EMPTY: "empty_answers",
    Outcome.TRUNCATED: "longer_stream_timeout",
    Outcome.TIMEOUT: "unanswered",
}


def advice_of(failure: FailureClass, words: str | None, cause: Cause) -> Advice:
    """Returns what to do about requests that failed so, by their status, the server's words and the cause."""
    if failure.outcome is not Outcome.HTTP_ERROR:
        if failure.outcome in _BY_OUTCOME:
            return _BY_OUTCOME[failure.outcome]
        return "server_log" if cause == "not load" else "fewer_users"
    if failure.http_status == 429:
        return "rate_limit"
    if failure.may_be_overload:
        return "server_log" if cause == "not load" else "fewer_users"
    return _of_refused_content(failure.http_status or 0, words or "")


def _of_refused_content(status: int, words: str) -> Advice:
    if status in (401, 403):
        return "api_key"
    if status < 400 or status in (404, 405, 410):
        return "address"
    if _TOO_LONG.search(words):
        return "shorter_requests"
    if _UNKNOWN_FIELD.search(words):
        return "drop_field"
    return "other_content" if _CONTENT.search(words) else "read_the_words"

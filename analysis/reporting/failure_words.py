"""Words for failed requests: sentences of the first lines, and the table of errors."""

from collections.abc import Sequence

from analysis.answers.capacity import Failures
from analysis.levels.failures.advice import Advice
from analysis.reporting.numbers import users_text
from loadtest.record import Outcome

MAX_SENTENCES = 3
"""Classes of failures with a sentence of their own; the table has all."""
MAX_QUOTED = 160
FAILED_SO: dict[Outcome, str] = {
    Outcome.HTTP_ERROR: "were refused",
    Outcome.NOT_SENT: "never left the load generator",
    Outcome.CONNECT_ERROR: "found no connection",
    Outcome.DISCONNECTED: "lost their connection before an answer came",
    Outcome.STREAM_ERROR: "broke off with an error inside the answer",
    Outcome.TRUNCATED: "were cut off before their end",
    Outcome.EMPTY: "got an answer without any text",
    Outcome.TIMEOUT: "were not finished within the time limit",
}
ADVICE: dict[Advice, str] = {
    "shorter_requests": "shorten --prompt-tokens and --output-tokens (or the prompts of --prompts), or serve "
    "the model with a longer context (--max-model-len)",
    "drop_field": "send only fields that the server knows, for example with --ignore-eos false",
    "other_content": "use prompts that the content filter lets through, or another filter",
    "api_key": "set the API key that the server wants (LOADTEST_API_KEY)",
    "address": "check --host and --model",
    "read_the_words": "the server's words say what it does not accept",
    "fewer_users": "plan with fewer users, or raise the limit of the server or gateway that turns them away",
    "rate_limit": "raise the gateway's limit; fewer users or more replicas behind it do not move it",
    "server_log": "load is not the cause, as many fail at the lowest load: the log of the server or gateway "
    "says more",
    "unanswered": "plan with fewer users, or allow more time (--request-timeout-s)",
    "longer_stream_timeout": "raise the time after which the gateway or server ends an answer (for nginx "
    "proxy_read_timeout), or ask for shorter answers",
    "empty_answers": "the server made tokens that it did not send as text, such as special tokens or a tool "
    "call that it could not parse: check its chat template and its tool and reasoning parsers",
    "own_machine": "the load generator's machine lacks file descriptors or local ports, or does not know the "
    "host's name",
}


def failure_sentences(failures: Sequence[Failures], *, refused: bool) -> list[str]:
    """Returns a sentence on each of the most frequent classes of failures: how many requests, with which
    status and words, at which levels, and what to do. refused: whether there is no answer."""
    found = [_sentence(one, refused=refused) for one in failures[:MAX_SENTENCES]]
    rest = failures[MAX_SENTENCES:]
    if rest:
        count = sum(one.count for one in rest)
        found.append(
            f"{count:,} more requests failed in {len(rest)} other ways: the table of errors lists them."
        )
    return found


def _sentence(one: Failures, *, refused: bool) -> str:
    text = f"{one.count:,} of {one.requests:,} requests {FAILED_SO[one.outcome]}"
    if one.http_status is not None:
        text += f" with {one.http_status}"
    if one.words:
        text += f' "{quoted(one.words)}"'
    text += f" {levels_text(one)}: {ADVICE[one.advice]}{_limit_text(one)}."
    if refused:
        return text
    if one.cause == "not load":
        return f"{text} The answer stands on the other requests."
    if one.cause == "unclear":
        return f"{text} They are too few to tell whether load causes them, and count as if it did."
    return text


def _limit_text(one: Failures) -> str:
    if one.at_once is not None:
        return f" (it takes {one.at_once} requests at once and refuses the next)"
    if one.admitted_rps is not None:
        return f" (it lets about {one.admitted_rps:.2g} requests a second through)"
    return ""


def levels_text(one: Failures) -> str:
    """Says at which levels requests failed so: `at every level`, `from 8 users on`, `at 4 and 16 users`."""
    seen = [users for users, count, _ in one.by_users if count]
    every = [users for users, _, _ in one.by_users]
    if not seen:
        return "in the run"
    if seen == every:
        return "at every level" if len(every) > 1 else f"at {users_text(every[0])}"
    if seen == every[every.index(seen[0]) :]:
        return f"from {users_text(seen[0])} on" if len(seen) > 1 else f"at {users_text(seen[0])}"
    return f"at {', '.join(map(str, seen))} users"


def quoted(words: str) -> str:
    """Returns the server's words for one line, cut where they are too long."""
    text = " ".join(words.split()).replace('"', "'").removesuffix(".")
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 1]}…"


FAILURE_COLUMNS = ("outcome", "status", "requests", "levels", "caused by load", "the server's words")


def failure_cells(one: Failures) -> list[str]:
    """Returns the row of one class of failures for the table of errors, in the order of FAILURE_COLUMNS."""
    share = f"{one.count:,} of {one.requests:,}"
    cause = {"load": "yes", "not load": "no", "unclear": "perhaps"}[one.cause]
    return [
        str(one.outcome),
        str(one.http_status or "–"),
        share,
        levels_text(one),
        cause,
        quoted(one.words) if one.words else "–",
    ]

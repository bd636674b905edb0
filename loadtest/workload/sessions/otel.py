"""Reads spans of OpenTelemetry's GenAI conventions: OTLP JSON, or JSON Lines of spans."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from loadtest.workload.sessions.lines import SessionFile
from loadtest.workload.sessions.recorded import LooseTurn
from loadtest.workload.traces import recorded_seconds

NO_ANSWER_TOKENS = "Left out of {file}: requests without output tokens, gen_ai.usage.output_tokens ({count})."
_INPUT, _OUTPUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
_CONVERSATION = "gen_ai.conversation.id"
_WANTED = frozenset((_INPUT, _OUTPUT, _CONVERSATION))


def read_otlp_turns(file: SessionFile) -> Iterator[LooseTurn]:
    """Yields the requests of one OTLP JSON document, as an export holds it. Raises FileError."""
    for span in file.objects(r'"spans"\s*:\s*\['):
        yield from _turn(file, span)


def read_span_turns(file: SessionFile) -> Iterator[LooseTurn]:
    """Yields the requests of a file with a span, or an OTLP export, on each line. Raises FileError."""
    for line in file.lines():
        try:
            found = msgspec.json.decode(line)
            exported = [found] if "resourceSpans" not in found else _spans(found)
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
            raise file.error(f"not a span, nor an OTLP export ({error})") from None
        for span in exported:
            yield from _turn(file, span)


def _spans(export: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        span
        for resource in export["resourceSpans"]
        for scope in resource.get("scopeSpans", ())
        for span in scope.get("spans", ())
    ]


def _turn(file: SessionFile, span: Any) -> Iterator[LooseTurn]:
    """Yields the request of a span. Nothing for a span that is no request to a model, such as a tool's or an
    agent's.

    The conversation's id says which session a request belongs to, else its trace. Requests with the same
    parent span are steps of one turn."""
    if not isinstance(span, Mapping):
        raise file.error("not a span")
    try:
        attributes = _attributes(span.get("attributes"))
    except (TypeError, KeyError, AttributeError):
        raise file.error("a span with attributes that are no keys and values") from None
    if _INPUT not in attributes and _OUTPUT not in attributes:
        return
    context = span.get("context") or {}
    try:
        prompt, output = (int(attributes.get(name) or 0) for name in (_INPUT, _OUTPUT))
        at_s = _unix_s(span, "startTimeUnixNano", "start_time")
        end_s = _unix_s(span, "endTimeUnixNano", "end_time")
        trace = span.get("traceId") or context.get("trace_id") or ""
    except (ValueError, TypeError, AttributeError) as error:
        raise file.error(f"not a span with tokens, start and end ({error})") from None
    if output < 1:
        file.notes[NO_ANSWER_TOKENS] += 1
        return
    if prompt < 0 or end_s < at_s:
        raise file.error("a span that goes back in time, or has negative tokens")
    yield LooseTurn(
        session=str(attributes.get(_CONVERSATION) or trace),
        line=file.line,
        at_s=at_s,
        end_s=end_s,
        prompt_tokens=max(1, prompt),
        output_tokens=output,
        group=str(span.get("parentSpanId") or span.get("parent_id") or ""),
    )


def _attributes(found: Any) -> Mapping[str, Any]:
    """Returns the attributes that matter here by their names. OTLP has them as a list of keys and typed
    values."""
    if isinstance(found, dict):
        return found
    named = {}
    for each in found if isinstance(found, list) else ():
        key = each["key"]
        if key in _WANTED:
            value = each["value"]
            named[key] = value["stringValue"] if "stringValue" in value else value.get("intValue")
    return named


def _unix_s(span: Mapping[str, Any], nanoseconds: str, text: str) -> float:
    if nanoseconds in span:
        return int(span[nanoseconds]) / 1e9
    return recorded_seconds(str(span[text])) if text in span else _missing(text)


def _missing(text: str) -> float:
    raise ValueError(f"{text} is missing")

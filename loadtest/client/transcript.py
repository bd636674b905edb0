"""Collects what one stream holds: chunks with their times, usage, the finish reason, an error. Knows no
socket."""

import json
import re

import msgspec

from loadtest.client.sse import SseDecoder, SseEvent
from loadtest.client.transport import ByteTimes


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[object] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class ServerUsage(msgspec.Struct):
    """The `usage` object of a chat completion."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: ServerUsage | None = None
    error: object = None
    message: object = None
    detail: object = None
    code: object = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_text = msgspec.json.Decoder(str).decode
_TEXT_KEY = rb'("(?:content|reasoning|reasoning_content)"\s*:\s*)'


class _Pattern(msgspec.Struct, frozen=True):
    """The bytes that are the same in most events of a stream: everything except the text. These events differ
    only in their text, so they can be read without decoding JSON, at a fraction of the cost."""

    kind: str
    before: bytes
    after: bytes

    @classmethod
    def of(cls, data: bytes, kind: str, text: str) -> "_Pattern | None":
        """Builds the pattern from the bytes `data` of one event, whose text is `text`. Returns None unless
        the text occurs exactly once in `data`."""
        found = list(re.finditer(_TEXT_KEY + re.escape(msgspec.json.encode(text)), data))
        if len(found) != 1:
            return None
        return cls(kind, data[: found[0].end(1) + 1], data[found[0].end() - 1 :])

    def text(self, data: bytes) -> bytes:
        """Returns the text of the event `data`, as JSON without the quotes. Returns empty bytes if the event
        does not fit the pattern or if it is not certain where its text ends. The end is certain if the text
        holds no quote and its last character is no backslash."""
        before, after = self.before, self.after
        if not (data.startswith(before) and data.endswith(after)):
            return b""
        text = data[len(before) : -len(after)]
        return b"" if b'"' in text or text.endswith(b"\\") else text


class Transcript:
    """Decodes one stream and collects its chunks with their times, usage, finish reason and error."""

    def __init__(self, byte_times: ByteTimes, *, keep_text: bool) -> None:
        self._decoder = SseDecoder()
        self._byte_times = byte_times
        self._at = 0
        self._text: list[str] | None = [] if keep_text else None
        self.chunk_at: list[float] = []
        self.kinds: list[str] = []
        self.running_tokens: list[int | None] = []
        self.usage: ServerUsage | None = None
        self.finish_reason: str | None = None
        self.done_at: float | None = None
        """When `[DONE]` arrived, by perf_counter; None if it did not."""
        self.error: str | None = None
        self._pattern: _Pattern | None = None
        self._patterns_tried = 0

    @property
    def text(self) -> str:
        """Text of the answer so far; empty unless `keep_text`."""
        return "".join(self._text or ())

    @property
    def is_complete(self) -> bool:
        """Whether the answer came to its end: to `[DONE]`, or at least to a finish reason."""
        return self.done_at is not None or self.finish_reason is not None

    def feed(self, piece: bytes) -> None:
        """Decodes the next piece of the stream and keeps what it holds."""
        for event in self._decoder.feed(piece):
            self._event(event)

    def finish(self) -> None:
        """Decodes the last event if the stream ended without the blank line that closes it."""
        for event in self._decoder.flush():
            self._event(event)

    def _event(self, event: SseEvent) -> None:
        pattern = self._pattern
        if pattern is not None and (text := pattern.text(event.data)):
            self._chunk(pattern.kind, None, event.end)
            if self._text is not None and pattern.kind == "c":
                self._text.append(_decode_text(b'"' + text + b'"'))
            return
        if event.data == b"[DONE]":
            if self.done_at is None:
                self.done_at = self._arrival(event.end)
            return
        self._decode(event)

    def _decode(self, event: SseEvent) -> None:
        try:
            chunk = _decode_chunk(event.data)
        except msgspec.MsgspecError as error:
            self.error = self.error or f"an event could not be read: {error}"
            return
        if chunk.error is not None or (chunk.choices is None and (chunk.message or chunk.detail)):
            self.error = self.error or _error_in_stream(chunk)
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in (chunk.choices or ())[:1]:
            self._choice(choice, chunk.usage, event)

    def _choice(self, choice: _Choice, usage: ServerUsage | None, event: SseEvent) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        delta = choice.delta
        if delta is None:
            return
        text = delta.content or delta.reasoning or delta.reasoning_content
        kind = "c" if delta.content else "r" if text else "t" if delta.tool_calls else ""
        if not kind:
            return
        self._chunk(kind, usage.completion_tokens if usage else None, event.end)
        if self._text is not None and delta.content:
            self._text.append(delta.content)
        if text and not (delta.tool_calls or usage or choice.finish_reason) and self._patterns_tried < 8:
            self._patterns_tried += 1
            self._pattern = _Pattern.of(event.data, kind, text)

    def _chunk(self, kind: str, tokens: int | None, end: int) -> None:
        self.kinds.append(kind)
        self.chunk_at.append(self._arrival(end))
        self.running_tokens.append(tokens)

    @property
    def written_at(self) -> float | None:
        """When the kernel took the last byte of the request, by perf_counter. None if the connection uses TLS
        or the socket buffer was full."""
        return self._byte_times.written_at

    def _arrival(self, end: int) -> float:
        ends = self._byte_times.ends
        while self._at < len(ends) - 1 and ends[self._at] < end:
            self._at += 1
        return self._byte_times.times[self._at]

    def chunk_tokens(self) -> list[int] | None:
        """Returns the number of tokens in each chunk. None unless every chunk stated the number of tokens so
        far."""
        running = [n for n in self.running_tokens if n is not None]
        if not running or len(running) != len(self.running_tokens):
            return None
        return [now - before for before, now in zip([0, *running], running, strict=False)]


MAX_ERROR_CHARS = 300


def error_excerpt(body: bytes) -> str:
    """Returns the `message` of an error in OpenAI's format. If the body has another format, returns its
    beginning."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return " ".join(body.decode("utf-8", "replace").split())[:MAX_ERROR_CHARS]
    return _error_message(parsed.get("error", parsed) if isinstance(parsed, dict) else parsed)


def _error_in_stream(chunk: _Chunk) -> str:
    """Returns the server's words about an error that came as an event of a stream, with its code: it stands
    for the HTTP status, which was 200."""
    error = chunk.error
    if error is None:
        error = {"message": chunk.message or chunk.detail, "code": chunk.code}
    words = _error_message(error)
    code = error.get("code") if isinstance(error, dict) else None
    return words if code is None or str(code) in words else f"{words} (code {code})"[:MAX_ERROR_CHARS]


def _error_message(inner: object) -> str:
    message = inner
    if isinstance(inner, dict):
        message = inner.get("message") or inner.get("detail") or inner
    return str(message)[:MAX_ERROR_CHARS]

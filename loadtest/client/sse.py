"""Decodes server-sent events: bytes in, events out. Knows no I/O, no clock and no JSON."""

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")


class SseEvent(NamedTuple):
    """One event of the stream."""

    data: bytes
    """Values of the event's `data` lines, joined by line feeds."""
    end: int
    """Offset in the stream just after the event's last byte. `ByteTimes` says when that byte arrived."""


class SseDecoder:
    """Decodes the WHATWG event-stream format piece by piece. The stream may be cut into pieces anywhere.

    Only `data` fields matter to chat completions; comments and other fields are skipped. Lines may end in LF,
    CRLF or CR. Several servers end the stream right after `data: [DONE]`, without a blank line. In this case
    `flush` returns the last event.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._tail_offset = 0
        self._lines: list[bytes] = []
        self._lines_end = 0

    def feed(self, piece: bytes) -> list[SseEvent]:
        """Decodes the next piece of the stream and returns the events that it completes."""
        events: list[SseEvent] = []
        buffer = self._tail + piece
        begin = 0 if b"\r" in buffer or self._lines else self._plain_events(buffer, events)
        for match in _LINE_END.finditer(buffer, begin):
            if match.group() == b"\r" and match.end() == len(buffer):
                break  # may be the first half of CRLF
            self._line(buffer[begin : match.start()], self._tail_offset + match.end(), events)
            begin = match.end()
        self._tail = buffer[begin:]
        self._tail_offset += begin
        return events

    def _plain_events(self, buffer: bytes, events: list[SseEvent]) -> int:
        """Decodes the events at the beginning of `buffer` that have the most common form: one `data: ` line
        and a blank line. Returns the offset of the first event that has another form or is incomplete. This
        is four times as fast as decoding line by line."""
        begin = 0
        while (end := buffer.find(b"\n\n", begin)) >= 0:
            if not buffer.startswith(b"data: ", begin) or buffer.find(b"\n", begin, end) >= 0:
                break
            events.append(SseEvent(buffer[begin + 6 : end], self._tail_offset + end + 2))
            begin = end + 2
        return begin

    def flush(self) -> list[SseEvent]:
        """Ends the stream and returns the last event if no blank line has closed it."""
        events: list[SseEvent] = []
        if self._tail:
            self._line(self._tail.rstrip(b"\r"), self._tail_offset + len(self._tail), events)
            self._tail_offset += len(self._tail)
            self._tail = b""
        self._line(b"", self._lines_end, events)
        return events

    def _line(self, line: bytes, end: int, events: list[SseEvent]) -> None:
        if not line:
            if self._lines:
                events.append(SseEvent(b"\n".join(self._lines), end))
                self._lines.clear()
        elif line.startswith(b"data:"):
            self._lines.append(line[6:] if line[5:6] == b" " else line[5:])
            self._lines_end = end

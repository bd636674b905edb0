"""Reads the lines and the objects of a large file one after the other, and knows where each stands."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from loadtest.workload.sessions.recorded import FileError

_CHUNK_BYTES = 1 << 20
_MAX_OBJECT_CHARS = 64 << 20
"""Longest JSON object that is waited for; a longer one is taken for a mistake in the file."""
_BETWEEN = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder()


class SessionFile:
    """An opened file of sessions. `notes` counts what its reader leaves out, or takes otherwise than it
    stands there, by the sentence for it (`noted`)."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.line = 0
        """Number of the line that was read last; the first is 1."""
        self.notes: Counter[str] = Counter()
        self._file = file

    def error(self, words: str) -> FileError:
        """Builds the error about the line that was read last."""
        return FileError(self.path, self.line, words)

    def noted(self) -> list[str]:
        """Returns the sentences of `notes`, with the name of the file and the counts."""
        return [words.format(file=self.path.name, count=f"{count:,}") for words, count in self.notes.items()]

    def lines(self) -> Iterator[bytes]:
        """Yields the lines that are not empty."""
        for number, line in enumerate(self._file, start=1):
            self.line = number
            if line.strip():
                yield line.removeprefix(codecs.BOM_UTF8) if self.line == 1 else line

    def texts(self) -> Iterator[str]:
        """Yields the lines that are not empty, as text. Raises FileError where one is not UTF-8."""
        for line in self.lines():
            try:
                yield str(line, "utf-8")
            except UnicodeDecodeError as error:
                raise self.error(f"not UTF-8 text (byte {error.start} of the line)") from None

    def objects(self, opening: str) -> Iterator[dict[str, Any]]:
        """Yields the objects of the JSON arrays that follow this regular expression, one after the other,
        without the whole file in memory. `line` is the line on which each begins. Raises FileError."""
        text = _GrowingText(self)
        pattern = re.compile(opening)
        while text.skip_past(pattern):
            while (found := text.next_object()) is not None:
                yield found

    def chunk(self, size: int) -> bytes:
        return self._file.read(size)


class _GrowingText:
    """The part of a file between what was read and what is needed."""

    def __init__(self, file: SessionFile) -> None:
        self._source = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = self._read_to = 0
        self._ended = False
        self._source.line = 1

    def skip_past(self, pattern: re.Pattern[str]) -> bool:
        """Moves behind the next match. Returns False if there is none."""
        while (match := pattern.search(self._text, self._at)) is None:
            self._move(max(self._at, len(self._text) - 100))
            if not self._grow():
                return False
        self._move(match.end())
        return True

    def next_object(self) -> dict[str, Any] | None:
        """Returns the next object of an array, or None at the array's end."""
        self._move(self._read_to)  # not earlier: `line` stays that of the beginning of the object before
        while True:
            match = _BETWEEN.match(self._text, self._at)
            assert match is not None
            if match.end() == len(self._text) and self._grow():
                continue
            self._move(match.end())
            if self._text[self._at : self._at + 1] == "]":
                return None
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise self._source.error("JSON that is nested too deeply") from None
            except json.JSONDecodeError as error:
                if len(self._text) - self._at < _MAX_OBJECT_CHARS and self._grow():
                    continue
                raise self._source.error(f"not JSON ({error.msg})") from None
            if not isinstance(found, dict):
                raise self._source.error("not a JSON object")
            self._read_to = end
            return found

    def _move(self, to: int) -> None:
        self._source.line += self._text.count("\n", self._at, to)
        self._at = self._read_to = to

    def _grow(self) -> bool:
        """Reads more, twice as much as is waiting. Returns False at the end of the file."""
        if self._ended:
            return False
        data = self._source.chunk(max(_CHUNK_BYTES, len(self._text) - self._at))
        self._ended = not data
        try:
            more = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._source.error(f"not UTF-8 text (byte {error.start} after this line)") from None
        self._text, self._at = self._text[self._at :] + more, 0
        self._read_to = 0
        return bool(data)

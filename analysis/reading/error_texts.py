"""Sorts the texts of errors into kinds, so that a million rows need the memory of a few texts."""

import re

from analysis.reading.columns import NO_ERROR_TEXT

MAX_KINDS = 200
"""Kinds of error texts that are kept; all further ones are one kind."""
MAX_KNOWN_TEXTS = 10_000
"""Texts whose kind is remembered, so that they need not be compared again."""
OTHER_TEXTS = "(other texts)"
_CHANGING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|[\w-]*\d[\w-]*")
"""Matches what differs between two errors of the same kind: numbers, ids and addresses."""


class ErrorTexts:
    """Kinds of error texts. Two texts are of one kind if they differ only in words that hold digits, such as
    counts of tokens and ids of requests."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        """Text of each kind: the first that was met."""
        self._kinds: dict[str, int] = {}
        self._known: dict[str, int] = {}

    def code_of(self, text: str | None) -> int:
        """Returns the index in `texts` of the text's kind; NO_ERROR_TEXT without a text."""
        if not text:
            return NO_ERROR_TEXT
        known = self._known.get(text)
        if known is None:
            known = self._code_of_kind(text)
            if len(self._known) < MAX_KNOWN_TEXTS:
                self._known[text] = known
        return known

    def _code_of_kind(self, text: str) -> int:
        kind = _CHANGING.sub("#", text.lower())
        if kind not in self._kinds:
            if len(self._kinds) >= MAX_KINDS:
                text = kind = OTHER_TEXTS
            if kind not in self._kinds:
                self._kinds[kind] = len(self.texts)
                self.texts.append(text)
        return self._kinds[kind]

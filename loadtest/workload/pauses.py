"""The pauses of a user whose requests fail. Knows no clock: it says how long to wait."""

LONGEST_ERROR_PAUSE_S = 30.0
"""Longest pause after a failed request, in seconds, even where the server asks for more."""


class ErrorPauses:
    """The pauses of one user after failed requests: `first_s` seconds, doubled by each further failure in a
    row up to LONGEST_ERROR_PAUSE_S. A success resets them.

    The user pauses for so long before the usual think time begins. With `first_s` 0 there are no pauses
    except those that the server asks for.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = self._next_s = first_s

    def failed(self, retry_after_s: float | None = None) -> float:
        """Notes a failed request, and returns the seconds to pause now.

        retry_after_s: what the answer asked for in `Retry-After`, in seconds from now; the longer of both
        pauses counts.
        """
        pause_s = min(max(self._next_s, retry_after_s or 0.0), LONGEST_ERROR_PAUSE_S)
        self._next_s = min(2.0 * self._next_s, LONGEST_ERROR_PAUSE_S)
        return pause_s

    def succeeded(self) -> None:
        """Notes a success: the next failure pauses for `first_s` again."""
        self._next_s = self._first_s

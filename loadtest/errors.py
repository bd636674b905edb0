"""Errors that a user can correct."""


class InputError(Exception):
    """Input that cannot be used or read. The message is one sentence that says what to do; exit code 2."""

"""Errors that a user can correct."""


class InputError(Exception):
    """The user's input cannot be read or used. The message says what to do; the command ends with exit code
    2."""

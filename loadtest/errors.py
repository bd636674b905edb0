"""Errors that a user can correct."""


class InputError(Exception):
    """Input that cannot be read or used. The message says what to do; the command ends with exit code 2."""

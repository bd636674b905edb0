"""What goes wrong for a reason that a person can mend."""


class InputError(Exception):
    """A person's input cannot be used or read: one sentence that says what to do. Exit code 2."""

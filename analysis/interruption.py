"""Ends a command that is interrupted with Ctrl-C before it has begun, while its modules are imported, with a
sentence. Imports nothing that takes time, so that the commands can import it first."""

import os
import signal
import sys

INTERRUPTED = 130
INTERRUPTED_SENTENCE = "Interrupted before the answer was ready: the run is as it was, ask again."


def end_interruptions_with_a_sentence() -> None:
    """Lets Ctrl-C end this process at once, with a sentence and exit code 130. An exception would pass
    through compiled modules that are being imported, and some crash then."""
    signal.signal(signal.SIGINT, _end)


def raise_interruptions() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt again, as Python does, if it would end the process at once."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_signal: int, _frame: object) -> None:
    sys.stderr.write(f"{INTERRUPTED_SENTENCE}\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)

"""Messages between the processes of a run, sent over Locust's own connection. No other module encodes,
decodes or registers them."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from locust.runners import Runner

_M = TypeVar("_M", bound=msgspec.Struct)


class Channel:
    """Sends typed messages and calls the functions registered for them. If the test runs in one process, a
    message goes to that same process."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def send(self, message: msgspec.Struct, *, to: str | None = None) -> None:
        """Sends a message. A worker always sends to the leader. The leader sends to the worker named `to`, or
        to all workers if `to` is None."""
        data = msgspec.to_builtins(message, builtin_types=(bytes,))  # msgpack knows bytes and plain values
        self._runner.send_message(_wire_name(type(message)), data, to)

    def on(self, kind: type[_M], handle: Callable[[_M], object]) -> None:
        """Registers `handle(message)` for messages of this kind."""
        self.on_from(kind, lambda message, _sender: handle(message))

    def on_from(self, kind: type[_M], handle: Callable[[_M, str], object]) -> None:
        """Registers `handle(message, sender)` for messages of this kind. To answer, call
        `send(answer, to=sender)`."""

        def receive(msg: Any, **_: object) -> None:
            handle(msgspec.convert(msg.data, kind), msg.node_id)

        self._runner.register_message(_wire_name(kind), receive)


def _wire_name(kind: type[msgspec.Struct]) -> str:
    return f"seatcount_{kind.__name__}"

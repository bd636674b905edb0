"""The supply of one process with numbers of the person's own prompts, which the leader gives out. Knows no
Locust and no connection."""

from collections.abc import Callable

import gevent

from loadtest.run.messages import PromptNumbers
from loadtest.workload.own_prompts import PromptQueue

LOW_STOCK = 2
"""Numbers left at which more are asked for, so that users rarely wait for them."""
SUPPLY_LOOK_S = 0.002
"""Seconds between two looks whether numbers have come."""


class PromptSupply:
    """Asks for numbers before they run out. Its methods must be called from greenlets of the main thread."""

    def __init__(self, queue: PromptQueue, *, ask: Callable[[], None]) -> None:
        self.queue = queue
        self._ask = ask
        self._asked = False

    def take(self, numbers: PromptNumbers) -> None:
        self.queue.add(range(numbers.first, numbers.first + numbers.count))
        self._asked = False

    def wait(self, closing: Callable[[], bool]) -> bool:
        """Waits for a number. Returns False if `closing` becomes true before one comes."""
        while True:
            if len(self.queue) <= LOW_STOCK and not self._asked:
                self._asked = True
                self._ask()
            if len(self.queue):
                return True
            if closing():
                return False
            gevent.sleep(SUPPLY_LOOK_S)

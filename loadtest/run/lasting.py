"""Keeps work on the event loop going after an error that nobody foresaw. Knows not what the work is."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

RESTART_S = 1.0
"""Seconds until failed work is started again."""


async def keep_running(work: Callable[[], Awaitable[None]], *, what: str) -> None:
    """Runs `work` until it ends or is cancelled. If it fails, logs the error and starts it again. Each kind
    of error is logged once. what: the work in a few words, which begin the message."""
    said: set[type[Exception]] = set()
    while True:
        try:
            await work()
        except Exception as error:
            if type(error) not in said:
                logger.exception("%s failed; started again, and not said again.", what)
            said.add(type(error))
            await asyncio.sleep(RESTART_S)
        else:
            return

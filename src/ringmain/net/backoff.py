"""How long to wait before the next try to connect, and how often to try."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ringmain.errors import RingmainError

log = logging.getLogger("ringmain")

Connected = TypeVar("Connected")

_FIRST = 0.2


class Tally:
    """How many tries to connect have failed, and how many connections have followed another one."""

    def __init__(self) -> None:
        self.failures = self.reconnects = 0


class Backoff:
    """Pauses between tries, each up to twice as long as the last one, from 100 ms up to `longest` seconds.

    Half of each is left to chance: those who have lost the same peer at once are not to come back at once. `tally`
    counts the tries that fail.
    """

    def __init__(self, longest: float, tally: Tally | None = None) -> None:
        self._longest = longest
        self._tally = tally or Tally()
        self._due = _FIRST

    def lasted(self, seconds: float) -> None:
        """Begin anew with short pauses, if a connection has lasted longer than the pause that is due now."""
        if seconds > self._due:
            self._due = _FIRST

    def next_pause(self) -> float:
        """Return the seconds to wait now."""
        pause = min(self._due, self._longest)
        self._due = min(2 * pause, self._longest)
        # Of the kernel: to import a module takes descriptors, and a lack of those may be why this waits.
        return pause / 2 * (1 + int.from_bytes(os.urandom(4)) / (1 << 32))

    async def keep_trying(
        self, connect: Callable[[], Awaitable[Connected]], may_pass: Callable[[RingmainError], bool], retry: int
    ) -> Connected:
        """Connect, trying again so often (-1: forever) after an error that may pass."""
        while True:
            try:
                return await connect()
            except RingmainError as error:
                self._tally.failures += 1
                if retry == 0 or not may_pass(error):
                    raise
                pause = self.next_pause()
                log.info("%s; trying again in %.1f s", error, pause)
            retry -= 1
            await asyncio.sleep(pause)

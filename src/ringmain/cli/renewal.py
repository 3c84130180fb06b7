"""What a run takes up anew while it goes on: its files at SIGHUP, and its certificates then or by itself."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from ringmain.errors import RingmainError

log = logging.getLogger("ringmain")


class Certified(Protocol):
    """What has certificates, as a loader has."""

    def reload_certificates(self) -> None:
        """Read their files again; raise what is wrong with one, and keep what was read before."""

    @property
    def certificates_changed(self) -> bool:
        """Whether they are other files by now."""


class Renewal:
    """Reopen files by calling all of `reopen`, and read the certificates of `ends` again: of all, or what has changed.

    What fails costs a warning, and what was in use stays in use. `reopenings` and `reloads` count how often, the latter
    by how it went: "done" or "failed".
    """

    def __init__(self, ends: Sequence[Certified], reopen: Sequence[Callable[[], object]] = ()) -> None:
        self.reopenings = 0
        self.reloads = {"done": 0, "failed": 0}
        self._ends = ends
        self._reopen = reopen

    def renew(self) -> None:
        """Do all of it."""
        for reopen in self._reopen:
            reopen()
        self.reopenings += 1
        for end in self._ends:
            self._reload(end)

    async def watch(self, interval: float) -> None:
        """Read the certificates that have changed, every so many seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval)
            for end in self._ends:
                if end.certificates_changed:
                    self._reload(end)

    def _reload(self, end: Certified) -> None:
        try:
            end.reload_certificates()
        except RingmainError as error:
            self.reloads["failed"] += 1
            log.warning("the certificates stay as they were: %s", error)
        else:
            self.reloads["done"] += 1

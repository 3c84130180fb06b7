"""Many connections at once: who is let in, and what becomes of each."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator

from ringmain._counters import Counters
from ringmain.errors import ParseError, RecordTooLongError, RingmainError
from ringmain.flow.blocks import Flow
from ringmain.flow.inflow import Inflow
from ringmain.net.door import Door
from ringmain.net.gate import NoMoreClients
from ringmain.outcome import Outcome, total
from ringmain.settings import Settings

OnEnd = Callable[[Outcome], None]
log = logging.getLogger("ringmain")


class Crowd:
    """The clients that a gate has let in and that have not left.

    One that fails is warned of (`retire`): the others go on. `on_end` is a weak reference to what hears of each.
    """

    def __init__(
        self, gate: Door, context: ssl.SSLContext | None, settings: Settings, on_end: Callable[[], OnEnd | None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._gate = gate
        self._context = context
        self._settings = settings
        self._on_end = on_end
        self._inflows: dict[Inflow, None] = {}
        self._stopped = False

    def __len__(self) -> int:
        return len(self._inflows)

    def __iter__(self) -> Iterator[Inflow]:
        return iter(list(self._inflows))

    async def next_inflow(self, new_flow: Callable[[], Flow]) -> Inflow | None:
        """Begin with the next client, once there is a place for it; None after `stop`."""
        try:
            link = await self._gate.next_connection(self._context)
        except NoMoreClients:
            return None
        if self._stopped:  # since it was found, in this very turn of the loop
            link.reset()
            return None
        try:
            inflow = Inflow(link, new_flow(), self._settings.idle_timeout)
        except BaseException:
            link.reset()
            self._gate.done(link)
            raise
        self._inflows[inflow] = None
        self._gate.watch_over(link, inflow)
        return inflow

    def retire(self, inflow: Inflow) -> RingmainError | None:
        """Close an inflow whose last byte was taken, if that was not done; return what became of it if an error."""
        if inflow not in self._inflows:
            return None
        error = inflow.failure()
        self._release(inflow, error, broken_off=isinstance(error, RecordTooLongError | ParseError))
        return error

    def leave(self, inflow: Inflow, *, broken_off: bool = False) -> None:
        """Close an inflow, wherever it is, with a reset if it is `broken_off`; what was not taken is lost."""
        if inflow in self._inflows:
            self._release(inflow, inflow.failure(), broken_off=broken_off)

    def forget(self, inflow: Inflow) -> None:
        """Reset an inflow that nobody reads any more; the collector calls this, in any thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.reset, inflow)

    def reset(self, inflow: Inflow) -> None:
        """Close an inflow with a reset, if that was not done."""
        if inflow in self._inflows:
            self._release(inflow, broken_off=True)

    def reset_link(self, link: object) -> None:
        """Do the same for the inflow of a link."""
        for inflow in self:
            if inflow.link is link:
                self.reset(inflow)

    def break_off(self, inflow: Inflow, error: RingmainError) -> None:
        """Reset an inflow whose bytes have nowhere to go, and warn of that."""
        log.warning("%s: %s", inflow.link.peer, str(error))
        if inflow in self._inflows:
            self._release(inflow, error, broken_off=True)

    def warn_of(self, error: RingmainError | None, inflow: Inflow) -> None:
        """Warn of what became of one that nobody else hears of."""
        if error is not None:
            log.warning("%s", str(error))  # who keeps records keeps no inflow
        if dropped := inflow.counters.dropped_bytes:
            log.warning("%s: dropped %d bytes of a last record that has no end", inflow.link.peer, dropped)

    def counters(self) -> Counters:
        """Return what those who are there have brought so far."""
        return total(inflow.counters for inflow in self._inflows)

    def stop(self) -> bool:
        """Let nobody else in, and read what our kernels have acknowledged, no more; tell whether anybody is there."""
        self._stopped = True
        self._gate.stop()
        for inflow in self:
            inflow.hang_up()
        return len(self) > 0

    def close(self, *, broken_off: bool) -> None:
        """Close all who are there, with a reset if they are `broken_off`."""
        self._stopped = True
        with contextlib.ExitStack() as stack:  # what `on_end` raises leaves nobody open
            for inflow in self:
                stack.callback(self._release, inflow, broken_off=broken_off)

    def abandon(self) -> None:
        """Close all at once, without a word to the peers."""
        self._stopped = True
        for inflow in self:
            inflow.abandon()
        self._inflows.clear()

    def _release(self, inflow: Inflow, error: RingmainError | None = None, *, broken_off: bool) -> None:
        del self._inflows[inflow]
        inflow.close(broken_off=broken_off)
        self._gate.done(inflow.link)  # first: what `on_end` raises is not to keep the next client away
        if (on_end := self._on_end()) is not None:
            on_end(inflow.outcome(error))

"""Read what our kernel has acknowledged by now, and no more: how a relay stops while both of its peers go on."""

import asyncio
import contextlib

from ringmain.flow.inflow import Inflow

# How often is looked, after a stop, whether all is passed on that had come before.
_LOOK = 0.02
# What OpenSSL may have read ahead, beside what is in the kernel.
_AHEAD = 1 << 20


class Cut:
    """The cut through what one inflow brings, whose `counters` tell what of it has gone on; `made` once it is there."""

    def __init__(self, inflow: Inflow) -> None:
        self.made = False
        self._inflow = inflow
        self._looking: asyncio.TimerHandle | None = None

    def make(self) -> None:
        """Let the inflow end, which is no end of the stream, once what has come by now has gone on."""
        if self.made:
            return
        self.made = True
        link = self._inflow.link
        with contextlib.suppress(OSError):  # it was reset
            ahead = 0 if link.tls_version is None else _AHEAD
            self._look(self._inflow.counters.bytes_in + link.unread() + ahead)
            link.cut()  # what is read to its last byte ends then, on either path

    def _look(self, due: int) -> None:
        """End the inflow of a peer that goes on sending once what was due has gone on."""
        if self._inflow.counters.bytes_out >= due:
            self._inflow.stop()
        else:
            self._looking = asyncio.get_running_loop().call_later(_LOOK, self._look, due)

    def end(self) -> None:
        """Read no more at all, and leave nothing to `make`."""
        self._inflow.stop()
        self.made = True
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

"""Redial: where the connections of a verb come from that dials, and dials again whenever it has lost one."""

import asyncio
import logging
import ssl
import time

from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, SendError, TlsError, UntrustedError, reason
from ringmain.net.backoff import Backoff, Tally
from ringmain.net.dial import LONGEST_PAUSE, Preface, dial_once, may_pass
from ringmain.net.failures import was_alerted
from ringmain.net.gate import NoMoreClients
from ringmain.net.link import Link
from ringmain.settings import Settings
from ringmain.waiting import unless

log = logging.getLogger("ringmain")

_LONGEST_PAUSE = 30.0  # between two tries, once a connection was lost


class Redial:
    """Connect to one endpoint, and again, as a gate hands out clients; one task at a time.

    The first connection is dialled as `dial` does it, unless there were some before this (`again`). Later that goes on
    for ever, or `settings.retry` times in a row if that is not 0. A peer that rejects us or that we do not trust ends
    it at any time: a certificate does not mend itself, and there may be a stranger at that address. `try_number` tells
    which try since the last connection is under way or comes next, 0 while there is a connection. A `preface` goes
    before TLS on each. `tally` counts, for several of these if it is given.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        preface: Preface | None = None,
        tally: Tally | None = None,
        *,
        again: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.tally = tally or Tally()
        self.try_number = 0
        self._settings = settings
        self._preface = preface
        self._backoff = Backoff(_LONGEST_PAUSE, self.tally)
        self._again = again
        self._connected: float | None = None  # when the last connection began
        self._pauses = False  # it has ended
        self._told = False  # that it was lost
        self._stopped = asyncio.Event()

    async def next_connection(self, context: ssl.SSLContext | None) -> Link:
        """Return a connection that is ready for data; raise NoMoreClients after `stop`."""
        link = None
        self.try_number = 1
        if not self._stopped.is_set():
            link = await unless(self._stopped.wait(), self._dial(context), Link.reset)
        if link is None:
            raise NoMoreClients
        self.try_number, self._pauses, self._told = 0, False, False
        self.tally.reconnects += self._connected is not None
        self._again, self._connected = True, time.monotonic()
        return link

    def lost(self, error: RingmainError) -> bool:
        """Hear how a connection was lost, and warn of that; False where dialling again makes no sense."""
        if isinstance(error, TlsError):  # an alert: of others `failure_of` makes a SendError
            return False
        self._warn(error)
        self.pause()
        return True

    def pause(self) -> None:
        """Dial after a pause: a connection has ended that may be followed by one that ends as soon."""
        self._pauses = True
        if self._connected is not None:
            self._backoff.lasted(time.monotonic() - self._connected)

    def _warn(self, error: RingmainError) -> None:
        self._told = True
        log.warning("%s: %s; connecting again", error.what, reason(error))

    def done(self, _: Link) -> None:
        """Hear that a connection is over."""

    def stop(self) -> None:
        """Dial no more; who waits for a connection, now or later, gets NoMoreClients."""
        self._stopped.set()

    def close(self) -> None:
        """Close nothing: connections are theirs who were given them."""
        self.stop()

    async def _dial(self, context: ssl.SSLContext | None) -> Link:
        async def connect() -> Link:
            try:
                return await dial_once(self.endpoint, self._settings, context, self._preface)
            except RingmainError as error:
                if self._again and not self._told and _may_pass_again(error):  # each failure is told, not each try
                    self._warn(error)
                raise
            finally:
                self.try_number += 1

        if not self._again:
            return await Backoff(LONGEST_PAUSE, self.tally).keep_trying(connect, may_pass, self._settings.retry)
        if self._pauses:
            await asyncio.sleep(self._backoff.next_pause())
        return await self._backoff.keep_trying(connect, _may_pass_again, self._settings.retry or -1)


def _may_pass_again(error: RingmainError) -> bool:
    """Tell whether another try may succeed: a peer that has spoken TLS may be ended while we shake hands."""
    if not isinstance(error, TlsError) or isinstance(error, UntrustedError):
        return may_pass(error) or isinstance(error, SendError)  # of a PROXY header
    cause = error.__cause__  # none where the handshake was fine, and what it has brought is not
    return isinstance(cause, OSError) and not was_alerted(cause)

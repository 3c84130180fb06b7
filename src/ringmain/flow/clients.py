"""Who a saver serves, one client at a time, and whether what one has lost goes to the next (`next_client` is how)."""

import asyncio
import errno
import logging
import ssl
import weakref
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ringmain._counters import Counters
from ringmain._cutter import Cutter
from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, SendError, TimedOutError, TlsError, UsageError
from ringmain.flow.idle_timeout import Deadline
from ringmain.flow.next_client import Carry
from ringmain.flow.outflow import Outflow
from ringmain.log import log_connected, log_ended
from ringmain.net.door import Door
from ringmain.net.failures import failure_of, was_alerted
from ringmain.net.gate import NoMoreClients
from ringmain.net.link import Link
from ringmain.net.redial import Redial
from ringmain.outcome import Outcome, Verdict
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# So long a peer that is to be dialled again may take nothing once it has sent FIN (CONTRIBUTING tells why).
_GRACE = 2.0

Result = TypeVar("Result")
OnEnd = Callable[[Outcome], None]


class Clients:
    """The clients at a gate, or one peer: dialled once (`begin`), or again and again. One task at a time sends.

    `outflow` sends to the present one. `torn` tells that the stream has a hole, and must not go on: a `send`, or the
    end, was cancelled half-way. `goes_on`: the next client gets what follows what the last one has. Without that there
    is one client that counts, the first that gets a byte. `on_end` is a weak reference to what hears of each client.
    `cutter` tells where the records end that the next client is to get whole, `carry` what that is. Errors name `verb`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        on_end: Callable[[], OnEnd | None],
        *,
        goes_on: bool,
        cutter: Cutter | None = None,
        verb: str = "save",
    ) -> None:
        self.outflow: Outflow | None = None
        self.torn = False
        self.goes_on = goes_on
        self.heeds_goodbye = goes_on  # a TLS peer that says goodbye is gone
        self.on_lost: Callable[[], object] | None = None
        self.stopping = False  # serve no other client
        self._endpoint = endpoint
        self._settings = settings
        self._on_end = on_end
        self._gate: Door | Redial | None = None
        self._context: ssl.SSLContext | None = None
        self._cutter, self._verb = cutter, verb
        self.carry = Carry(cutter)
        self._lost: RingmainError | None = None  # the one that there was to be

    def open(self, gate: Door | Redial | None, context: ssl.SSLContext | None) -> None:
        """Begin anew, with the gate that clients come by, if they do, and the TLS that they get."""
        self._gate, self._context = gate, context
        self._lost, self.torn, self.carry = None, False, Carry(self._cutter)
        if self.stopping and gate is not None:
            gate.stop()

    def close(self) -> None:
        """Reset who is still there, and let nobody in."""
        if self.outflow is not None:
            self._release(self.outflow)
        if self._gate is not None:
            self._gate.close()
            if isinstance(self._gate, Redial) and (size := len(self.carry.due)):
                log.warning("%s: the last %d bytes may not have reached it", self._endpoint.address, size)
            self._gate = None
        self.carry = Carry(self._cutter)  # of what may be megabytes

    def stop(self) -> None:
        """Let in nobody else, and end the pump that is running."""
        self.stopping = True
        if self._gate is not None:
            self._gate.stop()
        if self.outflow is not None and self.outflow.pumping is not None:
            self.outflow.pumping.stop()

    @property
    def outflows(self) -> list[Outflow]:
        """What sends to the present client, if there is one."""
        return [] if self.outflow is None else [self.outflow]

    def abandon(self) -> None:
        """Reset the present client, if there is one, also when the loop is closed; nobody hears of it."""
        if self.outflow is not None:
            self.outflow.abort()

    def gather(self, view: memoryview) -> bool:
        """Take a small view to be sent at the end of this turn of the loop; False when it has to be sent by `send`."""
        return self.outflow is not None and self.carry.is_idle and self.outflow.gather(view)

    async def send(self, view: memoryview) -> None:
        """Send all of the view to whichever clients it takes."""
        size = len(view)
        torn = False  # by the present client
        self.carry.check_record(f"{self._verb} to {self._endpoint}")
        try:
            while True:
                outflow = await self._find()
                try:
                    if self.carry.due:
                        await self._pay_carry(outflow)
                    before = outflow.accepted
                    try:
                        await self._guarded(outflow, outflow.send(view))
                    finally:
                        view, torn = view[outflow.accepted - before :], outflow.torn
                    return
                except RingmainError as error:
                    torn = False
                    self._carry_over(error, outflow)
        except RingmainError:
            raise
        except BaseException as error:
            # What interrupts, unlike a cancellation or another task, may come between a byte going out and its count.
            self.torn = size > 0 and (
                torn or len(view) < size or not isinstance(error, asyncio.CancelledError | RuntimeError)
            )
            raise

    async def _pay_carry(self, outflow: Outflow) -> None:
        """Send what lost clients never got. What is left of it when this is cancelled is sent another time."""
        carry = self.carry
        while due := carry.due:
            before = outflow.accepted
            try:
                await self._guarded(outflow, outflow.send(memoryview(due)))
            finally:
                carry.paid(outflow.accepted - before, len(due))

    async def serve(self, give: Callable[[Outflow], Awaitable[bool | None]]) -> bool:
        """See `Saver.serve`."""
        while not self.stopping:
            try:
                outflow = await self._present()
            except NoMoreClients:
                break
            try:
                whole = await self._guarded(outflow, give(outflow))
                if whole is None:
                    return False
                if whole:
                    await self._end(outflow)
                else:
                    await self._guarded(outflow, outflow.deliver())
                    self._release(outflow)  # with a reset: it must not take a part for the whole
            except BaseException as error:
                self._release(outflow)
                if not isinstance(error, RingmainError):
                    self.torn = not self.goes_on
                elif self._warned_of(error, outflow.counters):
                    continue
                raise
            if not self.goes_on or isinstance(self._gate, Redial):
                break
        return True

    async def finish(self) -> None:
        """End the last connection; what its peer never acknowledged goes to another client, if any.

        Where it is dialled again, so does the end itself: that of a connection that was lost has reached nobody.
        """
        lost = False
        while lost or self.outflow is not None or self.carry.due:
            if lost or self.carry.due:
                await self.send(memoryview(b""))
            outflow, lost = self.outflow, False
            assert outflow is not None
            try:
                await self._end(outflow)
            except RingmainError as error:
                self._carry_over(error, outflow)
                lost = isinstance(self._gate, Redial)

    async def end(self) -> None:
        """End the present connection properly."""
        outflow = self.outflow
        if outflow is None:
            raise self._lost or UsageError("a saver", "there is no connection to end", "write to it first")
        try:
            await self._end(outflow)
        except BaseException as error:
            self._keep_rest(outflow)
            if not self.goes_on:  # nobody else gets what this peer has not
                self.torn = not isinstance(error, RingmainError)
            raise

    async def deliver(self) -> None:
        """Return once the present client, if there is one, has every byte so far."""
        if (outflow := self.outflow) is not None:
            try:
                await self._guarded(outflow, outflow.deliver())
            except RingmainError:
                self._keep_rest(outflow)
                raise

    def break_off(self) -> None:
        """Reset the present client, if there is one; the next one gets what it did not acknowledge."""
        if (outflow := self.outflow) is not None:
            self._release(outflow)
            self._keep_rest(outflow)

    async def _present(self) -> Outflow:
        """Return who is served, once a client has come, whether or not it is still there; raise NoMoreClients."""
        while self.outflow is None:
            if self._gate is None or self._lost is not None:
                raise self._lost or UsageError("a saver", "it is not open", "use it inside `async with`")
            try:
                link = await self._gate.next_connection(self._context)
            except RingmainError as error:  # it cannot be reached any more
                self._lost = error
                raise
            if self._gate is None:  # it was left while the client shook hands
                link.reset()
            else:
                self.begin(link)
        return self.outflow

    async def _find(self) -> Outflow:
        """Return the present peer if it is not gone; else raise, or warn and wait for the next client."""
        if (outflow := self.outflow) is not None:
            if not self._is_gone(outflow):
                return outflow
            cause = outflow.failure or ConnectionResetError(errno.EPIPE, "")
            if was_alerted(cause):
                await outflow.link.hear_out()
            error = failure_of(cause, f"{self._verb} to {outflow.link.peer}", outflow.link.prefix)
            # One that said goodbye may still read what is under way to it, and sees that no close_notify follows.
            self._release(outflow, Verdict.RESET, error, abort=outflow.failure is not None)
            self._carry_over(error, outflow)
        try:
            return await self._present()
        except NoMoreClients:
            raise SendError(f"{self._verb} to {self._endpoint}", "it was stopped", "open another one") from None

    def _is_gone(self, outflow: Outflow) -> bool:
        """Tell whether the peer has left. A FIN alone may be a half-close; TLS clients that say goodbye are gone."""
        goodbye = outflow.link.peer_ended and outflow.link.tls_version is not None
        return outflow.failure is not None or (self.heeds_goodbye and goodbye)

    async def _end(self, outflow: Outflow) -> None:
        try:
            await self._guarded(outflow, outflow.finish())
        except BaseException:
            self._release(outflow)
            raise
        self._release(outflow, Verdict.ENDED, abort=False)

    async def _guarded(self, outflow: Outflow, work: Awaitable[Result]) -> Result:
        """Await work on a connection, or its idle time-out; if it fails, release that and say what went wrong."""
        timeout, what = self._settings.idle_timeout, f"{self._verb} to {outflow.link.peer}"
        try:
            if timeout is None:
                return await work
            async with Deadline(timeout, outflow.progress, what, "it took nothing", "is the peer still reading?"):
                return await work
        except TimedOutError as error:
            self._release(outflow, Verdict.TIMED_OUT, error)
            raise
        except OSError as cause:
            if isinstance(cause, RingmainError):  # of something else, which `serve` was given to wait for
                raise
            if was_alerted(cause) and self.outflow is outflow:
                await outflow.link.hear_out()
            broken = failure_of(cause, what, outflow.link.prefix)
            self._release(outflow, Verdict.RESET, broken)
            raise broken from cause

    def _warned_of(self, error: RingmainError, counters: Counters) -> bool:
        """Warn of a lost client, if there may be another: not when dialled, nor after the one that counted."""
        final = self._gate is None or self.stopping or (not self.goes_on and counters.bytes_out > 0)
        final = final or not isinstance(error, SendError | TimedOutError | TlsError)
        redial = self._gate if isinstance(self._gate, Redial) else None
        if final or (redial is not None and not redial.lost(error)):
            self._lost = error
            return False
        if redial is None:
            log.warning("%s", error)
        return True

    def _carry_over(self, error: RingmainError, outflow: Outflow) -> None:
        """Keep what a lost client never got for the next one; raise the error where there is to be none."""
        if not self._warned_of(error, outflow.counters):
            raise error
        self.carry.lost(outflow.take_unsent())

    def _keep_rest(self, outflow: Outflow) -> None:
        """Keep the same of a client that was broken off on purpose, if there may be a next one."""
        if self.goes_on:
            self.carry.lost(outflow.take_unsent())

    def begin(self, link: Link) -> None:
        """Serve the peer of a link."""
        broke = weakref.WeakMethod(self._broke)  # the loop, which knows the outflow, must not keep a forgotten saver

        def tell() -> None:
            if (method := broke()) is not None:
                method()

        try:
            redials = isinstance(self._gate, Redial)
            carry = self.carry if self.goes_on and (link.counts_bytes or redials) else None
            self.outflow = Outflow(link, tell, carry=carry, grace=_GRACE if redials else None)
        except BaseException:
            link.reset()
            if self._gate is not None:
                self._gate.done(link)
            raise
        log_connected(link.peer, link.tls_version, link.cipher)

    def _broke(self) -> None:
        if self.on_lost is not None:
            self.on_lost()

    def _release(
        self,
        outflow: Outflow,
        verdict: Verdict = Verdict.STOPPED,
        error: RingmainError | None = None,
        *,
        abort: bool = True,
    ) -> None:
        """Close a connection, unless it has ended properly with a reset: what was cut short must not look whole."""
        if self.outflow is not outflow:
            return
        self.outflow = None
        if abort:
            outflow.abort()
        else:
            outflow.close()
        if self._gate is not None:
            self._gate.done(outflow.link)  # first: what `on_end` raises is not to keep the next client away
        outcome = outflow.outcome(verdict, error)
        log_ended(outcome)
        if (on_end := self._on_end()) is not None:
            on_end(outcome)

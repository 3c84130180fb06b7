"""Save: bytes to one connection at a time."""

import asyncio
import contextlib
import errno
import logging
import ssl
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, Unpack, cast

from ringmain._ring import Counters
from ringmain.blocking import Blocking
from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, SendError, TimedOutError, TlsError, UsageError
from ringmain.flow.deadline import Deadline
from ringmain.flow.outflow import Outflow
from ringmain.net.dial import dial
from ringmain.net.failures import failure_of, was_alerted
from ringmain.net.gate import Listening
from ringmain.net.gate import listen as open_gate
from ringmain.net.link import Link
from ringmain.outcome import Outcome, Verdict
from ringmain.settings import Options, Settings, settings_for

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger("ringmain")


def save(url: str, *, listen: bool = False, listen_once: bool = False, **options: Unpack[Options]) -> "Saver":
    """Send to the endpoint `url`: dial it, or with `listen` wait for clients there, one at a time.

    async with ringmain.save("tcp://127.0.0.1:8000") as saver:
        await saver.write(buffer)

    The same without `async` and `await`; an event loop that runs in this thread stands still meanwhile. Leaving the
    block sends FIN (and close_notify under TLS) and waits until the peer's kernel has acknowledged every byte, and
    until a TLS 1.3 server that asks for our certificate has answered: with its first record, its end or an alert, 5 s
    at most. Leaving it by an exception resets the peer, so that a part never looks like the whole. A listener whose
    client leaves logs a warning and goes on with the next client where the last one left; with `listen_once`, which
    implies `listen`, that is an error. For the other keywords see `ringmain.Options`. Raises a `RingmainError` on
    malformed arguments, when the endpoint cannot be opened, and when the one connection there is breaks.
    """
    return Saver(Endpoint.parse(url), settings_for(save, Options, options), listen=listen, listen_once=listen_once)


class BlockingSaver(Protocol):
    """A saver in a plain `with`."""

    counters: Counters | None
    addresses: list[str]
    port: int

    def write(self, buffer: "Buffer") -> None:
        """Send all of a buffer; return when the kernel has it."""


class Saver(Listening, Blocking):
    """What `save` returns: a context manager, plain or asynchronous, with `write`. One task at a time may write.

    `addresses` and `port` tell where it listens.
    """

    _sender: Outflow | None = None

    def __init__(self, endpoint: Endpoint, settings: Settings, *, listen: bool, listen_once: bool) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.listening = listen or listen_once
        self.listen_once = listen_once
        self.on_end: Callable[[Outcome], None] | None = None
        self._tls = endpoint.tls or settings.tls
        self._context: ssl.SSLContext | None = None
        self._writing = False
        self._waiting = False  # for a client
        self._torn = False  # a write, or the end, was cancelled half-way: the stream has a hole, and must not go on
        self._carry = b""  # what a lost client never got, for the next one
        self._lost: RingmainError | None = None
        self._stopping = False  # serve no other client

    def __enter__(self) -> BlockingSaver:
        self._enter()
        return cast(BlockingSaver, self)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._lost, self._torn, self._carry = None, False, b""  # what is entered again begins anew
        if self._tls:
            from ringmain.net.tls import client_context, server_context

            self._context = (server_context if self.listening else client_context)(self.settings)
        if self.listening:
            self._gate = await open_gate(self.endpoint, self.settings)
        else:
            self._begin(await dial(self.endpoint, self.settings, self._context))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._one_writer():
                    await self._finish()
        finally:
            if self._sender is not None:
                self._release(self._sender)
            if self._gate is not None:
                self._gate.close()
                self._gate = None

    def _leftovers(self) -> list[Callable[[], object]]:
        closers: list[Callable[[], object]] = [self._sender.abort] if self._sender is not None else []
        return [*closers, self._gate.close] if self._gate is not None else closers

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two."""
        return self._sender.counters if self._sender is not None else None

    @property
    def unacknowledged_bytes(self) -> int:
        """How many of the bytes sent are not known to be with the present peer's kernel yet."""
        return self._sender.link.unacknowledged() or 0 if self._sender is not None else 0

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1."""
        return self._sender.fullness if self._sender is not None else 0.0

    async def recover(self) -> None:
        """Return when there is a working peer that has what a lost one never got.

        If the present one is gone: raise, or warn and wait for the next client.
        """
        with self._one_writer():
            await self._send_whole(memoryview(b""))

    async def _find_peer(self) -> Outflow:
        """Return the present peer if it is not gone; else raise, or warn and wait for the next client."""
        sender = self._sender
        if sender is not None and self._is_gone(sender):
            cause = sender.failure or ConnectionResetError(errno.EPIPE, "")
            if was_alerted(cause):
                await sender.link.hear_out()
            error = failure_of(cause, f"save to {sender.link.peer}")
            # One that said goodbye may still read what is under way to it, and sees that no close_notify follows.
            self._release(sender, Verdict.RESET, error, abort=sender.failure is not None)
            self._carry_over(error, sender)
        await self.wait_for_peer()
        assert self._sender is not None
        return self._sender

    def _is_gone(self, sender: Outflow) -> bool:
        """Tell whether the peer has left. A FIN alone may be a half-close; TLS clients that say goodbye are gone."""
        goodbye = sender.link.peer_ended and sender.link.tls_version is not None
        return sender.failure is not None or (self._gate is not None and not self.listen_once and goodbye)

    async def wait_for_peer(self) -> None:
        """Return once there is a peer to write to: at once when dialled, else when a client has come."""
        if self._torn:
            self._check_usable()
        while self._sender is None:
            if self._gate is None or self._lost is not None:
                raise self._lost or UsageError("a saver", "it is not open", "use it inside `async with`")
            if self._waiting:
                raise RuntimeError("another task is already waiting for a client")
            self._waiting = True
            try:
                link = await self._gate.next_connection(self._context)
            finally:
                self._waiting = False
            if self._gate is None:  # it was left while the client shook hands
                link.reset()
            else:
                self._begin(link)

    def write(self, buffer: "Buffer") -> Coroutine[Any, Any, None]:
        """Send all of a contiguous buffer, which may be changed once this returns; to be awaited in `async with`.

        Large buffers go out uncopied, and this waits while the peer is slow. Small ones are copied and go out together
        at the end of this turn of the loop; if that fails, the next write or the end of the block raises. A listener
        that loses its client sends what that client's kernel never acknowledged to the next one. (Under TLS, where that
        cannot be told in terms of plain bytes: what our own kernel never took.)

        A write that is cancelled before a part of the buffer has gone out has done nothing. One that is cancelled later
        leaves a hole in the stream: every later write, and leaving the block, raises SendError and resets the peer.
        """
        if self._runner is None:
            return self._write(buffer)
        return cast(Coroutine[Any, Any, None], self.run(self._write(buffer, gather=False)))  # None: see BlockingSaver

    async def _write(self, buffer: "Buffer", *, gather: bool = True) -> None:
        """Write; without `gather` leave nothing to a later turn of a loop that may not turn for long."""
        if self._torn or self._writing:
            self._check_usable()
        view = memoryview(buffer)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        if gather and self._sender is not None and not self._carry and self._sender.gather(view):
            return
        self._writing = True
        try:
            await self._send_whole(view)
        finally:
            self._writing = False

    @contextlib.contextmanager
    def _one_writer(self) -> Iterator[None]:
        self._check_usable()
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    def _check_usable(self) -> None:
        if self._writing:
            raise RuntimeError("another task is already writing")
        if self._torn:
            why = "an earlier write, or the end, was cancelled half-way, so the stream has a hole"
            raise SendError(f"save to {self.endpoint}", why, "connect again, and do not cancel that")

    async def _send_whole(self, view: memoryview) -> None:
        """Send all of the view to whichever clients it takes."""
        size = len(view)
        torn = False  # by the present client
        try:
            while True:
                sender = await self._find_peer()
                try:
                    await self._send_carry(sender)
                    before = sender.accepted
                    try:
                        await self._guarded(sender, sender.send(view))
                    finally:
                        view, torn = view[sender.accepted - before :], sender.torn
                    return
                except RingmainError as error:
                    torn = False
                    self._carry_over(error, sender)
        except RingmainError:
            raise
        except BaseException as error:
            # What interrupts, unlike a cancellation or another task, may come between a byte going out and its count.
            self._torn = size > 0 and (
                torn or len(view) < size or not isinstance(error, asyncio.CancelledError | RuntimeError)
            )
            raise

    async def _send_carry(self, sender: Outflow) -> None:
        """Send what a lost client never got. What is left of it when this is cancelled is sent another time."""
        while self._carry:
            before = sender.accepted
            try:
                await self._guarded(sender, sender.send(memoryview(self._carry)))
            finally:
                self._carry = self._carry[sender.accepted - before :]

    async def end_connection(self, *, abort: bool = False) -> None:
        """End the connection being served properly, or with `abort` break it off with a reset.

        A listener's next client gets what the last one's kernel had not acknowledged when it was broken off.
        """
        sender = self._sender
        if abort:
            if sender is not None:
                self._release(sender)
                self._keep_rest(sender)
            return
        with self._one_writer():
            if sender is None:
                raise self._lost or UsageError("a saver", "there is no connection to end", "write to it first")
            try:
                await self._end(sender)
            except BaseException as error:
                self._keep_rest(sender)
                if self._gate is None or self.listen_once:  # nobody else gets what this peer has not
                    self._torn = not isinstance(error, RingmainError)
                raise

    async def _finish(self) -> None:
        """End the last connection; what its peer never acknowledged goes to another client, if any."""
        while self._sender is not None or self._carry:
            if self._carry:
                await self._send_whole(memoryview(b""))
            sender = self._sender
            assert sender is not None
            try:
                await self._end(sender)
            except RingmainError as error:
                self._carry_over(error, sender)

    async def _end(self, sender: Outflow) -> None:
        try:
            await self._guarded(sender, sender.finish())
        except BaseException:
            self._release(sender)
            raise
        self._release(sender, Verdict.ENDED, abort=False)

    async def _guarded(self, sender: Outflow, work: Awaitable[None]) -> None:
        """Await work on a connection, or its idle time-out; if it fails, release that and say what went wrong."""
        what, remedy = f"save to {sender.link.peer}", "is the peer still reading?"
        try:
            async with Deadline(self.settings.idle_timeout, sender.progress, what, "it took nothing", remedy):
                await work
        except TimedOutError as error:
            self._release(sender, Verdict.TIMED_OUT, error)
            raise
        except OSError as cause:
            if was_alerted(cause) and self._sender is sender:
                await sender.link.hear_out()
            raise self._broken(sender, failure_of(cause, what)) from cause

    def _broken(self, sender: Outflow, error: RingmainError) -> RingmainError:
        """Release a connection that broke; return the error."""
        self._release(sender, Verdict.RESET, error)
        return error

    def _goes_on_after(self, error: RingmainError, counters: Counters) -> bool:
        """Warn of a lost client, if there may be another: not when dialled, nor after the one that counted."""
        final = self._gate is None or self._stopping or (self.listen_once and counters.bytes_out > 0)
        if final or not isinstance(error, SendError | TimedOutError | TlsError):
            self._lost = error
            return False
        log.warning("%s", error)
        return True

    def _carry_over(self, error: RingmainError, sender: Outflow) -> None:
        """Keep what a lost client never got for the next one; raise the error where there is to be none."""
        if not self._goes_on_after(error, sender.counters):
            raise error
        self._carry = sender.take_unsent() + self._carry

    def _keep_rest(self, sender: Outflow) -> None:
        """Keep the same of a client that was broken off on purpose, if there may be a next one."""
        if self._gate is not None and not self.listen_once:
            self._carry = sender.take_unsent() + self._carry

    def _begin(self, link: Link) -> None:
        broke = weakref.WeakMethod(self._broke)  # the loop, which knows the sender, must not keep a forgotten saver

        def tell() -> None:
            if (method := broke()) is not None:
                method()

        self._sender = Outflow(link, tell, keep_tail=self.listening and not self.listen_once)
        log.info("%s", link)

    def _broke(self) -> None:
        """Hear that the peer has gone, at whichever time."""

    def _release(
        self,
        sender: Outflow,
        verdict: Verdict = Verdict.STOPPED,
        error: RingmainError | None = None,
        *,
        abort: bool = True,
    ) -> None:
        """Close a connection, unless it has ended properly with a reset: what was cut short must not look whole."""
        if self._sender is not sender:
            return
        self._sender = None
        if abort:
            sender.abort()
        else:
            sender.close()
        outcome = sender.outcome(verdict, error)
        if self.on_end is not None:
            self.on_end(outcome)
        log.info("%s", outcome)
        if self._gate is not None:
            self._gate.done()

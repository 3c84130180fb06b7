"""Save: bytes to one connection at a time."""

import asyncio
import errno
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, Unpack, cast

from ringmain._ring import Counters
from ringmain.blocking import Blocking
from ringmain.connection import Connection, dial, watch_idle
from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, SendError, TimedOutError, TlsError, UsageError
from ringmain.gate import Listening
from ringmain.gate import listen as open_gate
from ringmain.sender import Sender, failure_of
from ringmain.settings import Options, Settings

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger("ringmain")


def save(url: str, *, listen: bool = False, listen_once: bool = False, **options: Unpack[Options]) -> "Saver":
    """Send to the endpoint `url`: dial it, or with `listen` wait for clients there, one at a time.

    async with ringmain.save("tcp://127.0.0.1:8000") as saver:
        await saver.write(buffer)

    Outside of an event loop the same without `async` and `await`. Leaving the block sends FIN (and close_notify under
    TLS) and waits until the peer's kernel has acknowledged every byte. A listener whose client leaves logs a warning
    and goes on with the next client where the last one left; with `listen_once`, which implies `listen`, that is an
    error. For the other keywords see `ringmain.Options`. Raises a `RingmainError` on malformed arguments, when the
    endpoint cannot be opened, and when the one connection there is breaks.
    """
    return Saver(Endpoint.parse(url), Settings(**options), listen=listen, listen_once=listen_once)


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

    _sender: Sender | None = None

    def __init__(self, endpoint: Endpoint, settings: Settings, *, listen: bool, listen_once: bool) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.listening = listen or listen_once
        self.listen_once = listen_once
        self.on_end: Callable[[Connection, Counters, str], None] | None = None
        self._tls = endpoint.tls or settings.tls
        self._context: ssl.SSLContext | None = None
        self._writing = False
        self._carry = b""  # what a lost client never got, for the next one
        self._lost: RingmainError | None = None
        self._cancel_idle: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None
        self._expired = False
        self._stopping = False  # serve no other client

    def __enter__(self) -> BlockingSaver:
        self._enter()
        return cast(BlockingSaver, self)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if self._tls:
            from ringmain.tls import client_context, server_context

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
            if kind is not None and self._sender is not None:
                await self.end_connection(abort=True)
            elif kind is None:
                await self._finish()
        finally:
            if self._gate is not None:
                self._gate.close()
                self._gate = None

    def _leftovers(self) -> list[Callable[[], object]]:
        closers: list[Callable[[], object]] = [self._sender.close] if self._sender is not None else []
        return [*closers, self._gate.close] if self._gate is not None else closers

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two."""
        return self._sender.counters if self._sender is not None else None

    @property
    def unacknowledged_bytes(self) -> int:
        """How many of the bytes sent are not known to be with the present peer's kernel yet."""
        return self._sender.unacknowledged() or 0 if self._sender is not None else 0

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1."""
        return self._sender.fullness if self._sender is not None else 0.0

    async def recover(self) -> None:
        """Return when there is a working peer that has what a lost one never got.

        If the present one is gone: raise, or warn and wait for the next client.
        """
        await self._send_whole(memoryview(b""))

    async def _find_peer(self) -> Sender:
        """Return the present peer if it is not gone; else raise, or warn and wait for the next client."""
        sender = self._sender
        if sender is not None and self._is_gone(sender):
            cause = sender.failure or ConnectionResetError(errno.EPIPE, "")
            error = failure_of(cause, f"save to {sender.connection.peer}")
            self._release("reset")
            self._carry_over(error, sender)
        await self.wait_for_peer()
        assert self._sender is not None
        return self._sender

    def _is_gone(self, sender: Sender) -> bool:
        """Tell whether the peer has left. A FIN alone may be a half-close; TLS clients that say goodbye are gone."""
        goodbye = sender.peer_ended and sender.connection.tls_version is not None
        return sender.failure is not None or (self._gate is not None and not self.listen_once and goodbye)

    async def wait_for_peer(self) -> None:
        """Return once there is a peer to write to: at once when dialled, else when a client has come."""
        while self._sender is None:
            if self._gate is None:
                raise self._lost or UsageError("a saver", "it is not open", "use it inside `async with`")
            self._begin(await self._gate.next_connection(self._context))

    def write(self, buffer: "Buffer") -> Coroutine[Any, Any, None]:
        """Send all of a contiguous buffer, which may be changed once this returns; to be awaited in `async with`.

        Large buffers go out uncopied, and this waits while the peer is slow. Small ones are copied and go out together
        at the end of this turn of the loop; if that fails, the next write or the end of the block raises. A listener
        that loses its client sends what that client's kernel never acknowledged to the next one. (Under TLS, where that
        cannot be told in terms of plain bytes: what our own kernel never took.)
        """
        if self._runner is None:
            return self._write(buffer)
        return cast(Coroutine[Any, Any, None], self.run(self._write_out(buffer)))  # None: see BlockingSaver

    async def _write(self, buffer: "Buffer") -> None:
        view = memoryview(buffer)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        if self._writing:
            raise RuntimeError("another task is already writing")
        if self._sender is not None and not self._carry and self._sender.gather(view):
            return
        self._writing = True
        try:
            await self._send_whole(view)
        finally:
            self._writing = False

    async def _write_out(self, buffer: "Buffer") -> None:
        """Write, and leave nothing to a later turn of a loop that may not turn for long."""
        await self._write(buffer)
        if self._sender is not None:
            await self._guarded(self._sender.flush())

    async def _send_whole(self, view: memoryview) -> None:
        """Send all of the view to whichever clients it takes."""
        while True:
            sender = await self._find_peer()
            try:
                while self._carry:
                    before = sender.accepted
                    try:
                        await self._send(memoryview(self._carry))
                    finally:
                        self._carry = self._carry[sender.accepted - before :]
                before = sender.accepted
                try:
                    await self._send(view)
                finally:
                    view = view[sender.accepted - before :]
                return
            except RingmainError as error:
                self._carry_over(error, sender)

    async def end_connection(self, *, abort: bool = False) -> None:
        """End the connection being served properly, or with `abort` break it off with a reset."""
        assert self._sender is not None
        peer = self._sender.connection.peer
        if abort:
            self._sender.abort()
            self._release("stopped")
            return
        try:
            await self._bounded(self._sender.finish(), peer)
        except BaseException as error:
            self._release(_verdict_of(error))
            raise
        self._release("ended")

    async def _finish(self) -> None:
        """End the last connection; what its peer never acknowledged goes to another client, if any."""
        while self._sender is not None or self._carry:
            if self._carry:
                await self.recover()
            sender = self._sender
            assert sender is not None
            try:
                await self.end_connection()
            except RingmainError as error:
                self._carry_over(error, sender)

    async def _send(self, view: memoryview) -> None:
        """Send to the peer there is; on failure release it and raise what the user gets to see."""
        assert self._sender is not None
        await self._guarded(self._sender.send(view))

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Await work on the present connection; release that if it fails."""
        assert self._sender is not None
        try:
            await self._bounded(work, self._sender.connection.peer)
        except RingmainError as error:
            self._release(_verdict_of(error))
            raise

    async def _bounded(self, work: Awaitable[None], peer: str) -> None:
        """Await the work, or its end by idle time-out; translate what goes wrong."""
        self._task = asyncio.current_task()
        try:
            await work
        except asyncio.CancelledError:
            task = self._task
            if not self._expired or task is None or task.uncancel():
                raise
            why = f"it took nothing for {self.settings.idle_timeout:g} s"
            raise TimedOutError(
                f"save to {peer}", why, "is the peer still reading? else raise --idle-timeout"
            ) from None
        except OSError as error:
            raise failure_of(error, f"save to {peer}") from error
        finally:
            self._task = None

    def _goes_on_after(self, error: RingmainError, counters: Counters) -> bool:
        """Warn of a lost client, if there may be another: not when dialled, nor after the one that counted."""
        final = self._gate is None or self._stopping or (self.listen_once and counters.bytes_out > 0)
        if final or not isinstance(error, SendError | TimedOutError | TlsError):
            self._lost = error
            return False
        log.warning("%s", error)
        return True

    def _carry_over(self, error: RingmainError, sender: Sender) -> None:
        """Keep what a lost client never got for the next one; raise the error where there is to be none."""
        if not self._goes_on_after(error, sender.counters):
            raise error
        self._carry = sender.unsent() + self._carry

    def _begin(self, connection: Connection) -> None:
        self._sender = sender = Sender(connection, self._broke, keep_tail=self.listening and not self.listen_once)
        self._expired = False
        self._cancel_idle = watch_idle(
            asyncio.get_running_loop(),
            self.settings.idle_timeout,
            lambda: None if self._task is None else sender.progress(),
            self._expire,
        )
        log.info("%s", connection)

    def _broke(self) -> None:
        """Hear that the peer has gone, at whichever time."""

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()

    def _release(self, verdict: str) -> None:
        if self._sender is None:
            return
        sender, self._sender = self._sender, None
        self._cancel_idle()
        sender.close()
        if self.on_end is not None:
            self.on_end(sender.connection, sender.counters, verdict)
        log.info("%s: %s after %d bytes", sender.connection.peer, verdict, sender.counters.bytes_out)
        if self._gate is not None:
            self._gate.done()


def _verdict_of(error: BaseException) -> str:
    if isinstance(error, TimedOutError):
        return "timed out"
    return "reset" if isinstance(error, SendError | TlsError) else "stopped"

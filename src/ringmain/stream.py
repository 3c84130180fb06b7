"""One connection being loaded: from its first byte to its verdict, as blocks or by the kernel path."""

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from ringmain import _libssl
from ringmain._coalesce import Coalescer
from ringmain._pump import PIPE_SIZE, Pump
from ringmain._receiver import CAP, PlainReceiver, Receiver
from ringmain._ring import Counters, Ring
from ringmain._tls_receiver import TlsReceiver
from ringmain.errors import (
    BlocksHeldError,
    ReceiveError,
    RecordTooLongError,
    RingmainError,
    TimedOutError,
    TlsError,
    TruncatedError,
    reason,
)
from ringmain.flow import kernel
from ringmain.flow.deadline import Watch
from ringmain.net.connection import Connection, hear_out, reset_when_closed, send_close_notify, unread, was_alerted
from ringmain.outcome import Outcome, Verdict

log = logging.getLogger("ringmain")

Result = TypeVar("Result")

# How a stream is received where nobody asks for anything else: bytes, bytes, seconds.
RING_SIZE = 8 << 20
BLOCK_SIZE = 1 << 20
LINGER = 0.001

# A consumer that holds every block may still be giving one back from another thread; this long it may take.
_HELD_TIMEOUT = 5.0


class Flow(NamedTuple):
    """How a loader receives and hands out the bytes of each of its streams."""

    ring: Ring
    linger: float
    min_block: int
    copy: bool


class Sink(kernel.Spliceable, Protocol):
    """Where a stream is copied to: a descriptor, or another connection."""

    fd: int
    is_pipe: bool

    @property
    def pipe_size(self) -> int:
        """How many bytes a pipe holds."""

    async def write(self, view: memoryview, counters: Counters) -> None:
        """Write all of the view, counting it."""

    def failure(self, error: OSError) -> Exception:
        """Return what a failed write means."""


class Owner(Protocol):
    """Who opened a stream, closes it, and runs the loop for a plain `for`."""

    def retire(self, stream: "Stream") -> RingmainError | None:
        """Close a stream whose last block was taken; return what became of it if that is an error."""

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop until the work is done."""


class Stream:
    """What one peer sends, as blocks: an asynchronous and, in a plain `with`, a plain iterator of memoryviews.

    `peer` is "host:port", `tls` "TLSv1.3" or the like and `cipher` the suite's name, both None without TLS. `counters`
    go on while bytes come, `offset` tells how many were taken, `verdict` is None until it has ended. The iteration
    raises the error of a stream that ended in any way but a proper end, after its last byte.
    """

    def __init__(
        self,
        connection: Connection,
        flow: Flow,
        idle_timeout: float | None,
        owner: Owner,
        *,
        verb: str = "load",
        pumping: kernel.Pumping | None = None,
    ) -> None:
        self.connection = connection
        self.counters = Counters()
        self.counters.started = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._flow = flow
        self._ring = flow.ring
        self._idle_timeout = idle_timeout
        self._owner = owner
        self._verb = verb  # what errors say was being done
        self._pumping = pumping or kernel.Pumping()
        self._engine: Receiver | Pump | None = None
        self._stopped: str | None = None
        self._hung_up = False
        self._kept_waiting: float | None = None  # what it was turned away for, in seconds
        self._closed = False
        # Returns the next block if there is one already: once bytes are received, the receiver's own method.
        self.take: Callable[[], memoryview | None] = lambda: None
        self._idle: Watch | None = None
        log.info("%s", connection)

    @property
    def verdict(self) -> str | None:
        """How the stream ended: ended, truncated, reset, timed out, or stopped; None while it goes on."""
        if self._engine is None:
            return self._stopped
        verdict = self._engine.verdict
        return "stopped" if verdict is not None and self._hung_up else verdict

    @property
    def fullness(self) -> float:
        """The part of what lies between the peer and the consumer that is filled, from 0 to 1."""
        return self._engine.fullness if isinstance(self._engine, Pump) else self._ring.fullness

    @property
    def offset(self) -> int:
        """Where in the stream the last block that was taken ends, in bytes."""
        return self._engine.taken if isinstance(self._engine, Receiver) else 0

    @property
    def ring(self) -> Ring:
        """The blocks that this and the other connections of its loader are received into."""
        return self._ring

    @property
    def peer(self) -> str:
        """The address of the peer, as "192.0.2.1:51234"."""
        return self.connection.peer

    @property
    def tls(self) -> str | None:
        """The version of TLS in use, as "TLSv1.3"."""
        return self.connection.tls_version

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the cipher suite in use."""
        return self.connection.cipher

    def __repr__(self) -> str:
        tls = f" {self.tls}" if self.tls else ""
        return f"<Stream {self.peer}{tls} {self.verdict or 'running'}, {self.counters.bytes_in} bytes>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> memoryview:
        block = self.take() or await self.next_block()
        if block is not None:
            return block
        await self.hear_out()
        self.end()
        raise StopAsyncIteration

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> memoryview:
        block = self.take()
        if block is not None:
            return block
        try:
            return self.run(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def end(self) -> None:
        """Close the stream, whose last block was taken; raise what became of it if that is an error."""
        error = self._owner.retire(self)
        if error is not None:
            raise error

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop until the work is done; only in a plain `with`."""
        return self._owner.run(work)

    async def next_block(self) -> memoryview | None:
        """Return the next block, or None once there is a verdict and all that came before it was taken."""
        if self._engine is None and self._stopped is not None:
            return None
        receiver = self._engine if isinstance(self._engine, Receiver) else self._receive()
        while (block := self.take()) is None:
            if receiver.verdict is not None:
                return None
            waiter = receiver.wait()
            if receiver.paused and self._ring.starved:
                await self._until_given_back(waiter)
            else:
                await waiter
        return block

    async def copy_to(self, output: Sink, path: str) -> None:
        """Write all that comes to an output; raise what that makes of a failure."""
        tls = self.connection.tls_version is not None
        if kernel.may_pump(path, output, tls=tls) and await self._pump(output, path):
            return
        while (block := await self.next_block()) is not None:
            with block:  # given back also when the write fails, however long its traceback lives
                await output.write(block, self.counters)

    def hang_up(self) -> None:
        """Let the peer send no more: what our kernel has acknowledged can still be taken, then it is "stopped".

        Once both ways are shut, Linux answers what comes with a reset, and acknowledges nothing any more.
        """
        if self._hung_up or self._closed or self.verdict is not None:
            return
        self._hung_up = True
        sock = self.connection.sock
        if isinstance(sock, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                _libssl.send_close_notify(sock._sslobj)  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # it is reset already
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def is_silent(self) -> bool | None:
        """Tell whether the peer has not sent a byte yet; None while that cannot be told."""
        if self.verdict is not None or self.counters.bytes_in > 0:
            return False
        sock = self.connection.sock
        if unread(sock) > 0:
            return False
        # Before anybody reads, its first bytes may be inside OpenSSL.
        return None if isinstance(sock, ssl.SSLSocket) and self._engine is None else True

    def turn_away(self, seconds: float) -> None:
        """End the stream of a peer that was silent for so long while others waited; it is reset when this is closed."""
        self._kept_waiting = seconds
        self.stop("timed out")

    @property
    def was_alerted(self) -> bool:
        """Whether the peer was sent an alert, because what it sent makes no sense."""
        return self._engine is not None and was_alerted(self._engine.error)

    async def hear_out(self) -> None:
        """After the last block: let a peer that was sent an alert read it, which closing at once would reset away."""
        if self.was_alerted and not self._closed:
            await hear_out(self.connection.sock)

    def stop(self, verdict: str = "stopped") -> None:
        """End the stream from our side; what came can still be taken."""
        self._stopped = verdict
        if self._engine is not None:
            self._engine.stop(verdict)

    def abandon(self) -> None:
        """Close at once, without a word to the peer."""
        if self._closed:
            return
        self._let_go()
        if not self._loop.is_closed():
            self.stop()
        self.connection.sock.close()
        self._ring.drop()

    def _let_go(self) -> None:
        self._closed = True
        self.take = lambda: None  # the ring is the next connection's from now on
        self._cancel_idle()

    def close(self, *, broken_off: bool = False) -> None:
        """Close the connection, with a reset if it is `broken_off`; what was not taken is lost."""
        if self._closed:
            return
        self._let_go()
        sock = self.connection.sock
        self.stop()
        if broken_off or self._kept_waiting is not None:
            reset_when_closed(sock)
        elif isinstance(sock, ssl.SSLSocket) and self.verdict in ("ended", "stopped"):
            send_close_notify(sock)
        sock.close()
        self._ring.drop()
        log.info("%s", self.outcome())

    def outcome(self, error: RingmainError | None = None) -> Outcome:
        """Return what became of it; `error` is what `failure` returned."""
        verdict, size = Verdict(self.verdict or "stopped"), self.counters.bytes_in
        return Outcome(self.peer, self.tls, self.cipher, self.counters, size, verdict, error)

    def lost(self, cause: BaseException) -> RingmainError:
        """Return the error of a stream that broke."""
        what, got = f"{self._verb} from {self.connection.peer}", self.counters.bytes_in
        return ReceiveError(what, f"{reason(cause)} after {got} bytes", "what arrived may not be all that was sent")

    def failure(self) -> RingmainError | None:
        """Return the error that the verdict stands for, or None where all is well."""
        cause = self._engine.error if self._engine is not None else None
        what, got = f"{self._verb} from {self.connection.peer}", self.counters.bytes_in
        lost = "what arrived may not be all that was sent"
        error: RingmainError | None = None
        if self.verdict == "truncated":
            silent = isinstance(cause, ssl.SSLEOFError)
            why = "it ended without close_notify" if cause is None or silent else reason(cause)
            error = TruncatedError(what, f"{why} after {got} bytes", lost)
            if got == 0 and "alert" in why:  # a TLS 1.3 server has seen our certificate, or that there is none
                error = TlsError(what, why, "does the peer accept our certificate and settings?")
        elif self.verdict == "reset":
            error = self.lost(cause or ConnectionResetError())
        elif self.verdict == "timed out":
            error = self._late(what, cause)
        elif isinstance(cause, OverflowError):
            remedy = 'raise max_record=, check the delimiter, or skip such records with long_records="skip"'
            error = RecordTooLongError(what, str(cause), remedy)
        if error is not None:
            error.__cause__ = cause
        return error

    def _late(self, what: str, cause: BaseException | None) -> TimedOutError:
        if self._kept_waiting is not None:
            why = f"it sent nothing for {self._kept_waiting:g} s while another client waited"
            return TimedOutError(what, why, limit="handshake_timeout")
        why = f"nothing came for {self._idle_timeout:g} s" if cause is None else reason(cause)
        limit = "idle_timeout" if cause is None else "keepalive"
        return TimedOutError(
            what, f"{why} after {self.counters.bytes_in} bytes", "is the peer still alive?", limit=limit
        )

    def _receive(self) -> Receiver:
        """Begin to receive into the ring."""
        sock = self.connection.sock
        ring, linger, min_block, _ = self._flow
        receiver_class: type[Receiver] = TlsReceiver if isinstance(sock, ssl.SSLSocket) else PlainReceiver
        receiver = receiver_class(self._loop, ring, self.counters, linger, sock, min_block)
        receiver.on_skip = functools.partial(_warn_of_skipped, self.peer, ring.max_record)
        self.take = receiver.take if not self._flow.copy else lambda: _copied(receiver.take())
        self._begin(receiver)
        receiver.start()
        return receiver

    async def _pump(self, output: Sink, path: str) -> bool:
        """Move everything by the kernel path; False when it cannot be used."""
        sock = self.connection.sock
        cap = min(CAP, output.pipe_size if output.is_pipe else PIPE_SIZE)
        coalescer = Coalescer(sock.fileno(), self._flow.linger, cap)
        pump = Pump(sock.fileno(), output.fd, self.counters, coalescer, through=not output.is_pipe)
        self._begin(pump)
        if self._stopped is not None:
            pump.stop(self._stopped)
        await self._pumping.run(pump)
        if pump.refused:
            self._engine = None
            kernel.refused(path, output)
            return False
        if pump.failed == "destination" and pump.error is not None:
            raise output.failure(pump.error)
        return True

    def _begin(self, engine: Receiver | Pump) -> None:
        self._engine = engine
        counters = self.counters  # not self: the timer must not keep a forgotten stream alive
        self._cancel_idle()
        self._idle = Watch(
            self._loop,
            self._idle_timeout,
            lambda: None if engine.paused else counters.bytes_in,
            lambda: engine.stop("timed out"),
        )

    def _cancel_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()

    async def _until_given_back(self, waiter: "asyncio.Future[None]") -> None:
        held = f"the ring's {self._ring.block_count} blocks"
        try:
            async with asyncio.timeout(_HELD_TIMEOUT):
                await waiter
        except TimeoutError as error:
            raise BlocksHeldError(
                held, "too many are still held", "release or copy blocks, or raise ring_size="
            ) from error


def _warn_of_skipped(peer: str, max_record: int, offset: int) -> None:
    log.warning(
        "%s: skipped the record at offset %d, and will skip others, if longer than max_record, %d bytes",
        peer,
        offset,
        max_record,
    )


def _copied(block: memoryview | None) -> memoryview | None:
    if block is None:
        return None
    with block:
        return memoryview(bytes(block))

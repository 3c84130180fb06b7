"""What one link brings, from its first byte to its verdict: as blocks, or to an output by the kernel path."""

import errno
import functools
import logging
import time
from collections.abc import Callable
from typing import Protocol

from ringmain._counters import Counters
from ringmain._low_water import CAP, LowWater
from ringmain._member import Member
from ringmain._merge import Merger
from ringmain._plain_receiver import PlainReceiver
from ringmain._pump import PIPE_SIZE, Pump
from ringmain._receiver import Receiver
from ringmain._tls_receiver import TlsReceiver
from ringmain.errors import ParseError, RecordTooLongError, RingmainError, TimedOutError
from ringmain.flow import kernel
from ringmain.flow.blocks import Flow, until_given_back
from ringmain.flow.idle_timeout import Watch
from ringmain.flow.path import Spliceable, may_pump, refused
from ringmain.log import log_connected, log_ended
from ringmain.net.failures import loss_of, reset_of, vanished_of, was_alerted
from ringmain.net.link import Link
from ringmain.outcome import Outcome, Verdict

log = logging.getLogger("ringmain")


class Sink(Spliceable, Protocol):
    """Where it is copied to: a descriptor, or another link."""

    fd: int
    is_pipe: bool

    @property
    def pipe_size(self) -> int:
        """How many bytes a pipe holds."""

    async def write(self, view: memoryview, counters: Counters) -> None:
        """Write all of the view, counting it."""

    def failure(self, error: OSError) -> Exception:
        """Return what a failed write means."""


class Inflow:
    """What the peer of one link sends, until its verdict: into a ring by blocks, or to an output.

    `counters` go on while bytes come, `taken` tells how many were taken, `verdict` is None until it has ended.
    """

    def __init__(
        self,
        link: Link,
        flow: Flow,
        idle_timeout: float | None,
        *,
        verb: str = "load",
        pumping: kernel.Pumping | None = None,
    ) -> None:
        self.link = link
        self.counters = Counters()
        self.counters.started = time.monotonic()
        self._loop = link.loop
        self._flow = flow
        self.ring = flow.ring
        self._idle_timeout = idle_timeout
        self._verb = verb
        self._pumping = pumping
        self._engine: Receiver | Pump | Member | None = None
        self._stopped: Verdict | None = None
        self._hung_up = False
        self._kept_waiting: float | None = None  # what it was turned away for, in seconds
        self._closed = False
        # Returns the next block if there is one already: once bytes are received, the receiver's own method.
        self.take: Callable[[], memoryview | None] = _nothing
        self._idle: Watch | None = None
        log_connected(link.peer, link.tls_version, link.cipher)

    @property
    def verdict(self) -> Verdict | None:
        """How it ended, set once, or None while it goes on. However a peer ends that was hung up on, it was stopped."""
        if self._engine is None:
            return self._stopped
        verdict = self._engine.verdict
        if verdict is None:
            return None
        return Verdict.STOPPED if self._hung_up else Verdict(verdict)

    @property
    def _what(self) -> str:
        """What errors say was being done."""
        return f"{self._verb} from {self.link.peer}"

    @property
    def fullness(self) -> float:
        """The part of what lies between the peer and the consumer that is filled, from 0 to 1."""
        return self._engine.fullness if isinstance(self._engine, Pump) else self.ring.fullness

    @property
    def taken(self) -> int:
        """How many bytes the blocks had that were taken."""
        return self._engine.taken if isinstance(self._engine, Receiver | Member) else 0

    async def next_block(self) -> memoryview | None:
        """Return the next block, or None once there is a verdict and all that came before it was taken."""
        if self._engine is None and self._stopped is not None:
            return None
        receiver = self._engine if isinstance(self._engine, Receiver) else self._receive()
        while (block := self.take()) is None:
            if receiver.verdict is not None:
                return None
            waiter = receiver.wait()
            if receiver.paused and self.ring.starved:
                await until_given_back(self.ring, waiter)
            else:
                await waiter
        return block

    async def copy_to(self, output: Sink, path: str) -> None:
        """Write all that comes to an output; raise what that makes of a failure."""
        tls, cut = self.link.tls_version is not None, self.ring.cutter is not None
        if may_pump(path, output, tls=tls, cut=cut) and await self._pump(output, path):
            return
        while (block := await self.next_block()) is not None:
            with block:  # given back also when the write fails, however long its traceback lives
                await output.write(block, self.counters)

    def hang_up(self) -> None:
        """Let the peer send no more: what our kernel has acknowledged can still be taken, then it is "stopped"."""
        if self._hung_up or self._closed or self.verdict is not None:
            return
        self._hung_up = True
        if isinstance(self._engine, Member):
            self._engine.hang_up()
        self.link.hang_up()

    def is_silent(self) -> bool | None:
        """Tell whether the peer has not sent a byte yet; None while that cannot be told."""
        if self.verdict is not None or self.counters.bytes_in > 0:
            return False
        if self.link.unread() > 0:
            return False
        # Before anybody reads, its first bytes may be inside OpenSSL.
        return None if self.link.tls_version is not None and self._engine is None else True

    def turn_away(self, seconds: float) -> None:
        """End it for a peer that was silent for so long while others waited, and that is reset when this is closed."""
        self._kept_waiting = seconds
        self.stop(Verdict.TIMED_OUT)

    @property
    def was_alerted(self) -> bool:
        """Whether the peer was sent an alert, because what it sent makes no sense."""
        return self._engine is not None and was_alerted(self._engine.error)

    async def hear_out(self) -> None:
        """After the last block: let a peer that was sent an alert read it, which closing at once would reset away."""
        if self.was_alerted and not self._closed:
            await self.link.hear_out()

    @property
    def has_ended_well(self) -> bool:
        """Whether the peer has ended, and not by a reset of which whoever sends has heard instead: it is told once."""
        link = self.link
        was_reset = link.tls_version is None and not link.peer_ended and link.was_reset()
        return self.verdict is Verdict.ENDED and not was_reset

    def tell_end(self) -> None:
        """Tell the link, for those who send on it, that its peer has ended; raise where that was a reset."""
        if not self.has_ended_well:
            raise self.lost(ConnectionResetError(errno.ECONNRESET, ""))
        self.link.read_to_end()

    def stop(self, verdict: Verdict = Verdict.STOPPED) -> None:
        """End it from our side; what came can still be taken."""
        self._stopped = self._stopped or verdict
        if self._engine is not None:
            self._engine.stop(self._stopped.value)

    def abandon(self) -> None:
        """Close at once, without a word to the peer."""
        if self._closed:
            return
        self._let_go()
        if not self._loop.is_closed():
            self.stop()
        self.link.close()
        self._drop()

    def _let_go(self) -> None:
        self._closed = True
        self.take = _nothing  # the ring is the next connection's from now on
        self._cancel_idle()

    def close(self, *, broken_off: bool = False) -> None:
        """Close the link, with a reset if it is `broken_off`; what was not taken is lost."""
        if self._closed:
            return
        self._let_go()
        self.stop()
        if broken_off or self._kept_waiting is not None:
            self.link.reset()
        else:
            # A peer that left a record unfinished has ended properly all the same.
            ended = self.verdict in (Verdict.ENDED, Verdict.STOPPED) or isinstance(self._cause, EOFError)
            self.link.close(goodbye=ended)
        self._drop()
        log_ended(self.outcome())

    def outcome(self, error: RingmainError | None = None) -> Outcome:
        """Return what became of it; `error` is what `failure` returned."""
        link, counters = self.link, self.counters
        verdict = self.verdict or Verdict.STOPPED
        return Outcome(
            *(link.peer, link.tls_version, link.cipher, counters, counters.bytes_in, verdict, error),
            credentials=link.credentials,
            certificate=link.certificate,
        )

    def lost(self, cause: BaseException) -> RingmainError:
        """Return the error of a link that broke."""
        return reset_of(cause, self._what, self.counters.bytes_in)

    def vanished(self, cause: OSError) -> RingmainError:
        """Return the error of a peer that answers nothing any more, as whoever sends has heard."""
        return vanished_of(cause, self._what, self.counters.bytes_in)

    def failure(self) -> RingmainError | None:
        """Return the error that the verdict stands for, or None where all is well."""
        verdict, cause = self.verdict, self._cause
        if verdict is Verdict.TIMED_OUT and (cause is None or self._kept_waiting is not None):
            return self._late()
        if isinstance(cause, OverflowError):
            remedy = 'raise max_record=, check the delimiter or framing=, or skip such records with long_records="skip"'
            error: RingmainError = RecordTooLongError(self._what, str(cause), remedy)
            error.__cause__ = cause
            return error
        if type(cause) is ValueError:  # of the receiver's: a certificate's error is one as well
            offset, head = cause.args
            why = f"it begins with {head}, which is no frame of this kind"
            return ParseError(self.link.peer, offset, why, "check framing=")
        size, prefix = self.counters.bytes_in, self.link.prefix
        return loss_of(verdict, cause, self._what, size, prefix) if verdict is not None else None

    @property
    def _cause(self) -> Exception | None:
        return self._engine.error if self._engine is not None else None

    def _late(self) -> TimedOutError:
        if self._kept_waiting is not None:
            why = f"it sent nothing for {self._kept_waiting:g} s while another client waited"
            return TimedOutError(self._what, why, limit="handshake_timeout")
        why = f"nothing came for {self._idle_timeout:g} s after {self.counters.bytes_in} bytes"
        return TimedOutError(self._what, why, "is the peer still alive?", limit="idle_timeout")

    def _receive(self) -> Receiver:
        """Begin to receive into the ring."""
        ring, linger, min_block = self.ring, self._flow.linger, self._flow.min_block
        receiver_class: type[Receiver] = PlainReceiver if self.link.tls_version is None else TlsReceiver
        receiver = receiver_class(self.link, ring, self.counters, linger, min_block)
        receiver.on_skip = functools.partial(_warn_of_skipped, self.link.peer, ring.max_record)
        self.take = receiver.take if not self._flow.copy else lambda: _copied(receiver.take())
        self._begin(receiver)
        receiver.start()
        return receiver

    async def _pump(self, output: Sink, path: str) -> bool:
        """Move everything by the kernel path; False when it cannot be used."""
        fd = self.link.fd
        cap = min(CAP, output.pipe_size if output.is_pipe else PIPE_SIZE)
        low_water = LowWater(fd, self._flow.linger, cap)
        pump = Pump(fd, output.fd, self.counters, low_water, through=not output.is_pipe)
        self._begin(pump)
        if self._stopped is not None:
            pump.stop(self._stopped.value)
        await (self._pumping or kernel.Pumping()).run(pump)
        if pump.refused:
            self._engine = None
            if (want := refused(path, output, pump)) is not None:
                raise output.failure(want)
            return False
        if pump.failed == "destination" and pump.error is not None:
            raise output.failure(pump.error)
        return True

    def merge_into(self, merger: Merger, on_end: Callable[[], None]) -> None:
        """Begin to receive whole records into the ring that others share; `on_end` is called after the last of them.

        Raises OSError where the system has no room to watch it.
        """
        member = merger.add(self.link, self.counters)
        member.on_skip = self._skipped
        member.on_end = on_end
        self._begin(member)

    def _skipped(self, offset: int) -> None:
        _warn_of_skipped(self.link.peer, self.ring.max_record, offset)

    def _begin(self, engine: Receiver | Pump | Member) -> None:
        self._engine = engine
        counters = self.counters  # not self: the timer must not keep what was forgotten alive
        self._cancel_idle()
        if self._idle_timeout is not None:
            self._idle = Watch(
                self._loop,
                self._idle_timeout,
                lambda: None if engine.paused else counters.bytes_in,
                lambda: engine.stop(Verdict.TIMED_OUT.value),
            )

    def _drop(self) -> None:
        """Forget what was not taken, unless it is mixed with what others brought."""
        if isinstance(self._engine, Member):
            self.counters.dropped_bytes = self._engine.dropped
        else:
            self.ring.drop()

    def _cancel_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()


def _warn_of_skipped(peer: str, max_record: int, offset: int) -> None:
    log.warning(
        "%s: skipped the record at offset %d, and will skip others, if longer than %d bytes", peer, offset, max_record
    )


def _nothing() -> None:
    return None


def _copied(block: memoryview | None) -> memoryview | None:
    if block is None:
        return None
    with block:
        return memoryview(bytes(block))

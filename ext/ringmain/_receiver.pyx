# cython: language_level=3, boundscheck=False, wraparound=False
"""Receive a stream into the ring, whenever its link tells that there is more: what plain TCP and TLS share.

Goal: one kernel copy into a cache-hot block, nothing else. Cost: one Python call a wake-up, made by the loop.
Invariants:
- A window is claimed before every read; when none can be, reading pauses until a block is given back.
- The verdict is set once. Bytes that came before it stay in the ring for the consumer.
- Whatever calls Python (the loop, a waiter) or lets go of the GIL comes after the state is whole, and after it the
  verdict is looked at again: a collector's finalizer may have stopped the stream. A block that is read into is pinned.
- `wait` makes a Future only when there is nothing to take; one wake-up follows however many reads.
- How long bytes wait for others is not decided here: _linger does.
"""

from ringmain._clock cimport monotonic
from ringmain._counters cimport Counters
from ringmain._linger cimport Linger
from ringmain._ring cimport CLAIMED, MALFORMED, TOO_LONG, Claim, Ring


cdef class Receiver:
    """Feed one connection's bytes to a ring until one of five verdicts.

    Verdicts: ended (FIN, or close_notify under TLS), truncated (TLS without close_notify), reset, timed out, stopped.
    The ring may serve many connections, one after another; the receiver serves one, whose link stays the caller's to
    close. After the verdict nothing touches it any more.

    A proper end within a record whose size stands in front is "truncated" too, with an EOFError. Where the ring refuses
    to go on it is "stopped": with an OverflowError, or a ValueError of the offset and of what stands there.
    """

    def __init__(self, object link, Ring ring, Counters counters, double linger, Py_ssize_t min_block=1):
        self.link = link
        self.loop = link.loop
        self.fd = link.fd
        self.ring = ring
        self.counters = counters
        self.linger = Linger(self.fd, ring, linger, min_block) if linger > 0 else None
        if self.linger is not None and self.linger.timer_fd < 0:
            self.linger = None  # not to be had on this system, or no descriptor is left
        self.at_least = max(1, ring.block_size // 4)
        ring.room = self.at_least if min_block <= 1 else self.at_least + min_block
        ring.on_release = self.block_released

    def start(self):
        """Begin to read."""
        if self.linger is not None:
            self.loop.add_reader(self.linger.timer_fd, self.lapse)
        if self.claim_window():
            self.go_on()

    def on_readable(self):
        """Read what has come; called by the loop when the socket is readable."""
        raise NotImplementedError

    def take(self):
        """Return the next block as an owned read-only memoryview, or None when there is none right now."""
        if self.linger is not None and not self.paused and self.linger.holds_back():
            return None
        block = self.ring.take()
        if block is not None:
            self.taken = self.ring.taken
            self.counters.blocks += 1
            if self.linger is not None:
                self.linger.taken()
        if self.ring.skipped_bytes:
            self.count_skipped()
        return block

    def wait(self):
        """Return a Future that is done once `take` or `verdict` has something new. One consumer at a time."""
        if self.waiter is not None and not self.waiter.done():
            raise RuntimeError("another task is already waiting for this stream")
        waiter = self.loop.create_future()
        self.waiter = waiter
        if self.verdict is not None:  # since the caller has looked
            self.wake()
        return waiter

    def stop(self, str verdict="stopped", object error=None):
        """End the stream from our side, keeping what came. Does nothing after a verdict."""
        if self.verdict is None:
            try:
                self.end(verdict, error)
            finally:
                self.shut()

    def block_released(self):
        """Note that a block is free again. May be called from any thread, during any deallocation."""
        if self.paused and self.loop is not None:  # else the collector is taking it apart, view by view
            try:
                self.loop.call_soon_threadsafe(self.resume)
            except RuntimeError:  # the loop is closed, and nobody waits
                pass

    def resume(self):
        """Go on reading if a block is free."""
        if self.paused and self.verdict is None and self.ring is not None and self.claim_window():
            try:
                self.go_on()
            except RuntimeError:  # uvloop's handle has died of a reset, and who writes has yet to let go of it
                self.loop.call_soon(self.resume)
                return
            self.end_stall()

    cdef bint claim_window(self) except -1:
        """Claim room for the next read; where there is none pause, or give up."""
        cdef Claim claim = self.ring.claim(self.at_least)
        if self.verdict is not None:  # the collector has run meanwhile, and with it what has stopped this
            return False
        if claim == CLAIMED:
            return True
        if claim == TOO_LONG or claim == MALFORMED:
            self.give_up()
        elif not self.paused:
            self.paused = True
            self.paused_at = monotonic()
            self.counters.stalls += 1
            self.hold()
            self.wake()  # a consumer that holds every block must hear of it
        return False

    cdef int received(self, Py_ssize_t size) except -1:
        self.counters.bytes_in += size
        self.counters.reads += 1
        self.ring.commit_bytes(size)
        if self.ring.skipped_bytes:
            self.count_skipped()
        if self.ring.refusal != CLAIMED:  # the peer may wait for that before it sends more
            return self.give_up()
        if self.linger is not None and self.linger.arrived(size):
            return 0
        return self.wake()

    cdef int give_up(self) except -1:
        """End a stream that does not go on behind the ring's cut."""
        cdef Ring ring = self.ring
        if ring.refusal == MALFORMED:
            error = ValueError(ring.long_at, ring.head[:ring.head_size])
        else:
            error = OverflowError(f"the record at offset {ring.long_at} is longer than {ring.max_record} bytes")
        self.stop("stopped", error)
        return 0

    cdef int count_skipped(self) except -1:
        """Count what the ring has thrown away, and tell of the first record."""
        cdef bint first = self.counters.skipped_records == 0
        self.counters.skipped_records += self.ring.skipped_records
        self.counters.skipped_bytes += self.ring.skipped_bytes
        self.ring.skipped_records = self.ring.skipped_bytes = 0
        if first and self.on_skip is not None and not self.loop.is_closed():
            self.loop.call_soon(self.on_skip, self.ring.long_at)
        return 0

    def lapse(self):
        """Let go the bytes that wait for others, once that is due; called by the loop."""
        if self.linger is not None and self.linger.lapse():
            self.wake()

    cdef int wake(self) except -1:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)
        return 0

    cdef int end(self, str verdict, object error) except -1:
        cdef Linger linger = self.linger
        cdef long long offset = self.ring.unfinished() if verdict == "ended" else -1
        if offset >= 0:
            verdict, error = "truncated", EOFError(f"it ended within the record at offset {offset}")
        if self.verdict is None:
            self.end_stall()
            self.verdict = verdict
            self.error = error
            self.counters.ended = monotonic()
            self.ring.finish()
            self.ring.on_release = None
            self.linger = None
            try:
                if linger is not None:
                    self.loop.remove_reader(linger.timer_fd)
            finally:
                if linger is not None:
                    linger.close_timer()
                self.wake()
        return 0

    cdef void end_stall(self) noexcept:
        if self.paused:
            self.paused = False
            self.counters.stalled_seconds += monotonic() - self.paused_at

    cdef int shut(self) except -1:
        """Let go of the link."""
        link, self.link = self.link, None
        if link is not None:
            link.ignore_readable()
        return 0

    cdef int hold(self) except -1:
        """Stop reading."""
        link = self.link
        if link is not None:
            link.ignore_readable()
        return 0

    cdef int go_on(self) except -1:
        """Read when there is something."""
        link = self.link
        if link is not None:
            link.watch_readable(self.on_readable)
            if self.link is None:  # it was let go meanwhile
                link.ignore_readable()
        return 0

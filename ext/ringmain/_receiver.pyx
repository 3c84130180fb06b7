# cython: language_level=3, boundscheck=False, wraparound=False
"""Receive a stream into the ring, whenever its link tells that there is more: what all streams share, and plain TCP.

Goal: one kernel copy into a cache-hot block, nothing else. Cost: one Python call a wake-up, made by the loop.
Invariants:
- A window is claimed before every read; when none can be, reading pauses until a block is given back.
- At most TURN bytes a turn of the loop, so that other callbacks run and the consumer gets what may still be in a cache.
  The loops' own protocols read up to 32 windows in a row.
- The verdict is set once. Bytes that came before it stay in the ring for the consumer.
- Whatever calls Python (the loop, a waiter) or lets go of the GIL comes after the state is whole, and after it the
  verdict is looked at again: a collector's finalizer may have stopped the stream. A block that is read into is pinned.
- `wait` makes a Future only when there is nothing to take; one wake-up follows however many reads.
- While the low-water mark is raised a timer is set; an idle connection has none. The loops' own timers count in
  milliseconds, which is as long as a byte may wait at all, so it is a timerfd (timerfd_create(2)).
"""

import os

from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT, errno as c_errno
from libc.math cimport fmax, modf
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC
from posix.unistd cimport close, read

from ringmain._coalesce cimport Coalescer, monotonic
from ringmain._ring cimport CLAIMED, TOO_LONG, Block, Claim, Counters, Ring

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <time.h>
    #ifdef __linux__
    #include <sys/timerfd.h>
    #else
    #include <errno.h>
    #define TFD_NONBLOCK 0
    #define TFD_CLOEXEC 0
    struct itimerspec { struct timespec it_interval, it_value; };
    static int timerfd_create(int clock, int flags) { errno = ENOSYS; return -1; }
    static int timerfd_settime(int fd, int flags, const struct itimerspec* value, void* old) { return -1; }
    #endif
    """
    ssize_t recv(int fd, void* buffer, size_t size, int flags) nogil
    int MSG_PEEK
    int TFD_NONBLOCK, TFD_CLOEXEC
    struct timespec:
        long tv_sec, tv_nsec
    struct itimerspec:
        timespec it_interval, it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* value, void* old)

# What one turn of the loop reads at most: as much as the highest mark lets come. Fewer, longer turns save more than a
# destination that fits the fastest cache does.
cdef Py_ssize_t TURN = 2 << 20
# The highest low-water mark. Half of a receive buffer is the most that the kernel allows, by default 3 MiB.
CAP = 2 << 20


cdef class Receiver:
    """Feed one connection's bytes to a ring until one of five verdicts.

    Verdicts: ended (FIN, or close_notify under TLS), truncated (TLS without close_notify), reset, timed out, stopped.
    The ring may serve many connections, one after another; the receiver serves one, whose link stays the caller's to
    close. After the verdict nothing touches it any more.
    """

    def __cinit__(self):
        self.timer_fd = -1

    def __init__(self, object link, Ring ring, Counters counters, double linger, Py_ssize_t min_block=1):
        self.link = link
        self.loop = link.loop
        self.fd = link.fd
        self.ring = ring
        self.counters = counters
        self.linger = linger
        self.min_block = min_block
        self.at_least = max(1, ring.block_size // 4)
        ring.room = self.at_least if min_block <= 1 else self.at_least + min_block
        ring.on_release = self.block_released

    def __dealloc__(self):
        if self.timer_fd >= 0:
            close(self.timer_fd)

    def start(self):
        """Begin to read."""
        self.coalesce()
        if self.claim_window():
            self.go_on()

    def on_readable(self):
        """Read what has come; called by the loop when the socket is readable."""
        raise NotImplementedError

    def take(self):
        """Return the next block as an owned read-only memoryview, or None when there is none right now."""
        if self.holds_back():
            return None
        block = self.ring.take()
        if block is not None:
            self.taken = self.ring.taken
            self.counters.blocks += 1
            if self.min_block > 1:
                self.hold_rest()
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
        """Claim room for the next read; where there is none pause, or give up on an endless record."""
        cdef Claim claim = self.ring.claim(self.at_least)
        if self.verdict is not None:  # the collector has run meanwhile, and with it what has stopped this
            return False
        if claim == CLAIMED:
            return True
        if claim == TOO_LONG:
            offset = self.ring.long_at
            error = OverflowError(f"the record at offset {offset} is longer than {self.ring.max_record} bytes")
            self.stop("stopped", error)
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
        if self.coalescer is not None:
            self.coalescer.arrived(size, monotonic())
            if self.holds_back():
                if self.held_since == 0:
                    self.held_since = self.coalescer.last
                if not self.timing:
                    self.set_timer(self.linger)
                return 0
            if self.coalescer.mark > 1 and not self.timing:
                self.set_timer(self.linger)
        return self.wake()

    cdef int count_skipped(self) except -1:
        """Count what the ring has thrown away, and tell of the first record."""
        cdef bint first = self.counters.skipped_records == 0
        self.counters.skipped_records += self.ring.skipped_records
        self.counters.skipped_bytes += self.ring.skipped_bytes
        self.ring.skipped_records = self.ring.skipped_bytes = 0
        if first and self.on_skip is not None and not self.loop.is_closed():
            self.loop.call_soon(self.on_skip, self.ring.long_at)
        return 0

    cdef int hold_rest(self) except -1:
        """Begin anew to wait for enough bytes, now that a block was taken."""
        self.overdue = False
        self.held_since = 0
        if self.coalescer is not None and self.ring.holds(1):
            self.held_since = monotonic()
            if not self.timing:
                self.set_timer(self.linger)
        return 0

    cdef bint holds_back(self) noexcept:
        """Tell whether what is there should wait for more."""
        return (
            self.min_block > 1 and self.coalescer is not None and not self.overdue and not self.paused
            and not self.ring.holds(self.min_block)
        )

    def lapse(self):
        """Let go the bytes that wait for others, below the low-water mark or here, once due; called by the loop."""
        cdef uint64_t expirations
        cdef double now, left
        cdef double soonest = 0
        if self.coalescer is None or read(self.timer_fd, &expirations, sizeof(expirations)) < 0:
            return  # not due after all: the stream has ended, or it was set anew meanwhile
        self.timing = False
        now = monotonic()
        if self.coalescer.mark > 1:
            left = self.coalescer.due() - now
            if left > 0:
                soonest = left
            else:
                self.coalescer.lapse()
        if self.held_since > 0:
            left = self.held_since + self.linger - now
            if left <= 0:
                self.overdue = True
                self.wake()
            elif soonest == 0 or left < soonest:
                soonest = left
        if soonest > 0:
            self.set_timer(soonest)

    cdef int coalesce(self) except -1:
        """Begin to raise the low-water mark of the socket while data floods in, where that is wanted and possible."""
        if self.linger <= 0:
            return 0
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.timer_fd >= 0:
            self.coalescer = Coalescer(self.fd, self.linger, CAP)
            self.loop.add_reader(self.timer_fd, self.lapse)
        return 0

    cdef int set_timer(self, double seconds) except -1:
        cdef itimerspec value
        cdef double whole
        value.it_interval.tv_sec = value.it_interval.tv_nsec = 0
        value.it_value.tv_nsec = <long>fmax(modf(seconds, &whole) * 1e9, 1)
        value.it_value.tv_sec = <long>whole
        timerfd_settime(self.timer_fd, 0, &value, NULL)
        self.timing = True
        return 0

    cdef int wake(self) except -1:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)
        return 0

    cdef int end(self, str verdict, object error) except -1:
        if self.verdict is None:
            self.end_stall()
            self.verdict = verdict
            self.error = error
            self.counters.ended = monotonic()
            self.ring.finish()
            self.ring.on_release = None
            self.coalescer = None
            timer_fd, self.timer_fd = self.timer_fd, -1
            try:
                if timer_fd >= 0:
                    self.loop.remove_reader(timer_fd)
            finally:
                if timer_fd >= 0:
                    close(timer_fd)
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


cdef class PlainReceiver(Receiver):
    """Receive plain TCP."""

    def on_readable(self):
        """Read what has come; called by the loop when the socket is readable."""
        cdef Py_ssize_t left = TURN
        cdef Py_ssize_t size, asked
        cdef int number = 0
        cdef char next_byte
        cdef Block block
        cdef char* window
        if self.paused:
            return
        while left > 0 and self.verdict is None:
            if not self.claim_window():
                return
            asked = min(self.ring.window_size, left)
            block = self.ring.current
            window = self.ring.window
            block.pinned += 1
            with nogil:
                size = recv(self.fd, window, asked, 0)
                if size < 0:
                    number = c_errno
            self.ring.unpin(block)
            if self.verdict is not None:
                return
            if size > 0:
                self.received(size)
                left -= size
                if size == asked:
                    if left <= 0:  # the rest may be below the mark, which the loop would not tell of
                        self.loop.call_soon(self.on_readable)
                    continue
                # That was all there is. If a reset is behind it this is the only call: uvloop's handle has died of it.
                with nogil:
                    size = recv(self.fd, &next_byte, 1, MSG_PEEK)
                    if size < 0:
                        number = c_errno
                if size == 0:  # for a turn that finds nothing else: what came is cut and taken first
                    self.loop.call_soon(self.on_readable)
                if size >= 0:
                    return
            if self.verdict is not None:
                return
            if size == 0:
                self.end("ended", None)
                self.shut()
                return
            if number == EINTR:
                continue
            if number != EAGAIN:
                self.end("timed out" if number == ETIMEDOUT else "reset", OSError(number, os.strerror(number)))
                self.shut()
            return

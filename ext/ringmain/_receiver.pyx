# cython: language_level=3, boundscheck=False, wraparound=False
"""Receive a plain TCP stream: the event loop's buffered-protocol callbacks fill the ring.

Goal: one kernel copy into a cache-hot block, nothing else. Cost: two Python calls a read, made by the loop.
Invariants:
- The receiver itself is the buffer that the loop fills (`__getbuffer__` shows the claimed window), so no view is made
  per read. The export is unowned: the loop keeps it until after `buffer_updated` returned, when the bytes may be lent.
- A window is claimed before every read; when none can be, reading pauses first, because a protocol that offers no
  room is a dead connection to the loop.
- The verdict is set once. Bytes that came before it stay in the ring for the consumer.
- `wait` makes a Future only when there is nothing to take; one wake-up follows however many reads.
- While the low-water mark is raised a timer is set; an idle connection has none. The loops' own timers count in
  milliseconds, which is as long as a byte may wait at all, so it is a timerfd (timerfd_create(2)).
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.math cimport fmax, modf
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC
from posix.unistd cimport close, read

from ringmain._coalesce cimport Coalescer, monotonic
from ringmain._ring cimport CLAIMED, TOO_LONG, Claim, Counters, Ring

cdef extern from *:
    """
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
    int TFD_NONBLOCK, TFD_CLOEXEC
    struct timespec:
        long tv_sec, tv_nsec
    struct itimerspec:
        timespec it_interval, it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* value, void* old)

# The highest low-water mark: with more, bytes have left the cache before they are read.
CAP = 512 << 10


cdef class Receiver:
    """Feed one connection's bytes to a ring until one of five verdicts.

    Verdicts: ended (FIN, or close_notify under TLS), truncated (TLS without close_notify), reset, timed out, stopped.
    The ring may serve many connections, one after another; the receiver serves one.
    """

    def __cinit__(self):
        self.timer_fd = -1

    def __init__(self, object loop, Ring ring, Counters counters, double linger):
        self.loop = loop
        self.ring = ring
        self.counters = counters
        self.linger = linger
        self.at_least = max(1, ring.block_size // 4)
        ring.on_release = self.block_released

    def __dealloc__(self):
        if self.timer_fd >= 0:
            close(self.timer_fd)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.ring.window, self.ring.window_size, 0, flags)

    def __len__(self):
        return self.ring.window_size

    def take(self):
        """Return the next block as an owned read-only memoryview, or None when there is none right now."""
        block = self.ring.take()
        if block is not None:
            self.counters.blocks += 1
        return block

    def wait(self):
        """Return a Future that is done once `take` or `verdict` has something new. One consumer at a time."""
        if self.waiter is not None and not self.waiter.done():
            raise RuntimeError("another task is already waiting for this stream")
        self.waiter = self.loop.create_future()
        return self.waiter

    def stop(self, str verdict="stopped", object error=None):
        """End the stream from our side, keeping what came. Does nothing after a verdict."""
        if self.verdict is None:
            self.end(verdict, error)
            self.shut()

    def block_released(self):
        """Note that a block is free again. May be called from any thread, during any deallocation."""
        if self.paused and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.resume)

    def resume(self):
        """Go on reading if a block is free."""
        if self.paused and self.verdict is None and self.claim_window():
            self.paused = False
            self.counters.stalled_seconds += monotonic() - self.paused_at
            self.go_on()

    cdef bint claim_window(self) except -1:
        """Claim room for the next read; where there is none pause, or give up on an endless record."""
        cdef Claim claim = self.ring.claim(self.at_least)
        if claim == CLAIMED:
            return True
        if claim == TOO_LONG:
            self.stop("stopped", OverflowError(f"a record is longer than {self.ring.max_record} bytes"))
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
        if self.coalescer is not None:
            self.coalescer.arrived(size, monotonic())
            if self.coalescer.mark > 1 and not self.timing:
                self.set_timer(self.linger)
        return self.wake()

    def lapse(self):
        """Let the bytes that wait below the low-water mark come, if it is time; called by the loop."""
        cdef uint64_t expirations
        cdef double left
        if read(self.timer_fd, &expirations, sizeof(expirations)) < 0:
            return  # not due after all: it was set anew meanwhile
        self.timing = False
        if self.coalescer.mark > 1:
            left = self.coalescer.due() - monotonic()
            if left > 0:
                self.set_timer(left)
            else:
                self.coalescer.lapse()

    cdef int coalesce(self, int fd) except -1:
        """Begin to raise the low-water mark of this socket while data floods in, where that is wanted and possible."""
        if self.linger <= 0:
            return 0
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.timer_fd >= 0:
            self.coalescer = Coalescer(fd, self.linger, CAP)
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
            if self.paused:
                self.paused = False
                self.counters.stalled_seconds += monotonic() - self.paused_at
            self.verdict = verdict
            self.error = error
            self.counters.ended = monotonic()
            if self.coalescer is not None:
                self.coalescer = None
                self.loop.remove_reader(self.timer_fd)
            self.ring.finish()
            self.ring.on_release = None
            self.wake()
        return 0

    cdef int shut(self) except -1:
        """Close the connection."""
        raise NotImplementedError

    cdef int hold(self) except -1:
        """Stop reading."""
        raise NotImplementedError

    cdef int go_on(self) except -1:
        """Read again."""
        raise NotImplementedError


cdef class PlainReceiver(Receiver):
    """Receive plain TCP, as a buffered protocol of asyncio or uvloop. `closed` is a Future, done at the very end."""

    cdef object transport
    cdef readonly object closed

    def __init__(self, loop, ring, counters, linger):
        Receiver.__init__(self, loop, ring, counters, linger)
        self.closed = loop.create_future()

    def connection_made(self, transport):
        """Begin; called by the loop."""
        self.transport = transport
        if self.verdict is not None:  # stopped before it began
            transport.abort()
            return
        self.coalesce(transport.get_extra_info("socket").fileno())
        self.claim_window()

    def get_buffer(self, hint):
        """Offer the claimed window; called by the loop before each read."""
        # A taken block leaves the window as it was; only a rewind to the block's hot start moves it.
        if self.ring.claim(self.at_least) != CLAIMED:
            raise RuntimeError("no window was claimed before a read")
        return self

    def buffer_updated(self, Py_ssize_t size):
        """Account for a read; called by the loop."""
        self.received(size)
        self.claim_window()

    def eof_received(self):
        """Note the FIN; called by the loop, which then closes."""
        self.end("ended", None)

    def connection_lost(self, error):
        """Note the end; called by the loop, once."""
        if error is None:
            self.end("stopped", None)
        elif isinstance(error, TimeoutError):  # the peer stopped answering keep-alive probes
            self.end("timed out", error)
        else:
            self.end("reset", error)
        self.transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    cdef int shut(self) except -1:
        if self.transport is not None:
            self.transport.abort()
        return 0

    cdef int hold(self) except -1:
        self.transport.pause_reading()
        return 0

    cdef int go_on(self) except -1:
        self.transport.resume_reading()
        return 0

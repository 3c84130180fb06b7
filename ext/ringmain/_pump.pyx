# cython: language_level=3
"""Move bytes between a socket and a pipe, file or device inside the kernel: splice(2) and sendfile(2), without the GIL.

Goal: no byte enters user space, no Python runs while bytes move. Cost: two system calls for as much as has come.
Invariants:
- `splice` needs a pipe on one side: where neither side is one, bytes go through a pipe of ours, which is empty between
  two pulls. A regular file that is sent goes by `sendfile`, from an offset of ours: its position is left alone.
- No flag of a descriptor is changed. Pipes are used with SPLICE_F_NONBLOCK; a socket must be non-blocking already.
- A pump never waits by itself: it tells what for, and a `PumpLoop` waits for it.
- After a wake-up for the source without a byte moved, it is the destination that is full. If that is ready as well,
  urgent data (MSG_OOB), which splice does not pass but recv does, is stepped over; or another reader was faster.
- What cannot be spliced, or got no descriptors, is found out before a byte has moved: the pump is `refused`, and others
  take over.
"""

import fcntl
import os

from libc.errno cimport EACCES, EAGAIN, EBADF, EINTR, EINVAL, EIO, EISDIR, ENOSYS, EPERM, EPIPE, ETIMEDOUT
from libc.errno cimport errno as c_errno
from posix.unistd cimport close, write

from ringmain._clock cimport monotonic
from ringmain._counters cimport Counters
from ringmain._low_water cimport LowWater
from ringmain._splice cimport (
    FIONREAD, MSG_DONTWAIT, POLLIN, POLLOUT, RINGMAIN_HAS_SPLICE, SPLICE_F_MOVE, SPLICE_F_NONBLOCK, ioctl, off_t, recv,
    sendfile, splice,
)
from ringmain._unraisable cimport call_unraisably

HAS_SPLICE = bool(RINGMAIN_HAS_SPLICE)

# The largest pipe that an unprivileged user gets (fs.pipe-max-size), and what one call moves at most.
PIPE_SIZE = <long>CHUNK
# The same for a flood between two sockets: with whole pipes its peers would take turns. Two floods keep all busy.
cdef size_t HALF = CHUNK // 2
cdef unsigned int FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK
# Seconds until it is tried again where both sides are ready and nothing moves.
cdef double PAUSE = 0.001
# A time that has passed.
cdef double ALWAYS = 1e-9
# After a read of this size there is more at once, as a rule: to wait for a low-water mark would leave the peers idle.
cdef Py_ssize_t PLENTY = 128 << 10


cdef class Pump:
    """Move bytes from `source` to `destination` until the source ends, a side fails, or `stop` is called.

    Both are descriptors that stay the caller's, and open until the pump is over. Give a `low_water` for a source that
    is a socket, an `offset` for a regular file to be sent from there, and `through` where neither side is a pipe. A
    file is sent by a pump that has its `PumpLoop` to itself: it is always ready.
    """

    def __cinit__(self):
        self.pipe_in = self.pipe_out = self.timed_at = -1

    def __init__(
        self, int source, int destination, Counters counters, LowWater low_water=None, *, bint through=False,
        long long offset=-1
    ):
        self.source = source
        self.destination = destination
        self.counters = counters
        self.low_water = low_water
        self.offset = offset
        self.through = through
        self.chunk = HALF if through else CHUNK

    def __dealloc__(self):
        self.close_own()

    cdef void open_own(self, long size) noexcept:
        """Make a pipe of our own that holds so much, if it may; where there is none to be had `error` tells why."""
        try:
            self.pipe_out, self.pipe_in = os.pipe2(os.O_CLOEXEC)
            widen_pipe(self.pipe_in, size)
        except (OSError, MemoryError) as error:  # the process is out of descriptors; blocks need none
            self.error = error

    cdef void close_own(self) noexcept:
        if self.pipe_in >= 0:
            close(self.pipe_in)
            close(self.pipe_out)
        self.pipe_in = self.pipe_out = -1

    cdef void finish(self) noexcept:
        """Tell how it came to an end; what `over` raises goes to sys.unraisablehook, since the others go on."""
        cdef str verdict
        if self.refused:
            verdict = "stopped"
        elif self.step == ENDED:
            verdict = "ended"
        elif self.step == FAILED:
            try:
                self.error = OSError(self.number, os.strerror(self.number))
            except MemoryError as error:
                self.error = error
            # EPERM and EACCES are what sandboxes answer to system calls that they do not know or want.
            self.refused = self.number in (EACCES, EINVAL, ENOSYS, EPERM) and self.counters.bytes_in == 0
            self.failed = "source" if self.side == SOURCE else "destination"
            if (self.side == SOURCE) != (self.low_water is not None):
                verdict = "stopped"  # not the connection's fault
            else:
                verdict = "timed out" if self.number == ETIMEDOUT else "reset"
        else:
            verdict, self.error = self.stop_verdict, self.stop_error
        self.verdict = verdict
        self.close_own()  # whoever still holds the pump holds no descriptors
        over, self.over, self.loop = self.over, None, None
        call_unraisably(over)

    def refuse(self, error=None):
        """Give up before a byte has moved, so that others take over; the OSError tells what there was too little of."""
        # Without its traceback, whose frames hold this pump: a cycle would keep what is the connection's.
        self.error = error.with_traceback(None) if error is not None else None
        self.refused, self.verdict = True, "stopped"

    def stop(self, str verdict="stopped", object error=None):
        """End at once; what it took from the source goes to the destination first, if that takes it."""
        if not self.stopping:
            self.stop_verdict, self.stop_error = verdict, error
            self.stopping = True
            if self.loop is not None:
                self.loop.wake()

    @property
    def fullness(self):
        """The part of a pipe at the destination that its reader has yet to take, from 0 to 1."""
        cdef int size = 0
        if self.verdict is not None or self.through or ioctl(self.destination, FIONREAD, &size) < 0:
            return 0.0
        return min(1.0, size / <double>max(1, fcntl.fcntl(self.destination, fcntl.F_GETPIPE_SZ)))

    cdef void begin(self) noexcept:
        """Find out whether it can be done at all, and what to wait for."""
        if self.through and self.pipe_in < 0:
            self.open_own(CHUNK)
        if self.error is not None:  # no descriptors left for a pipe of our own: others do without
            self.refused, self.step = True, STOPPED
        # An empty pipe moves nothing: EAGAIN, or EINVAL where it could not move anything.
        elif self.pipe_in >= 0 and splice(self.pipe_out, NULL, self.destination, NULL, CHUNK, FLAGS) < 0 and (
            c_errno != EAGAIN
        ):
            self.step = self.fail(DESTINATION)
        else:
            with nogil:
                self.step = self.settle(MOVED)

    cdef void go_on(self, bint ready) noexcept nogil:
        """Move what can be moved now that what it waits for is `ready`, or is due; `step` tells what came of it."""
        if self.stopping:
            self.step = self.wind_up()
        elif ready or (self.due > 0 and monotonic() >= self.due):
            self.step = self.settle(self.turn(ready))

    cdef Step settle(self, Step step) noexcept nogil:
        """After a step: decide what to wait for, or wind up if it was told to stop meanwhile."""
        while step == MOVED and self.offset >= 0 and not self.stopping:
            step = self.pull()  # a file is always ready
        if step == ENDED or step == FAILED:
            return step
        if self.stopping:
            return self.wind_up()
        if step == MOVED:
            return self.wait_for_source()
        # Of a file that moves nothing it is the destination that is full.
        return self.wait_for_destination(FULL) if step == NOTHING else step

    cdef Step turn(self, bint ready) noexcept nogil:
        """Do what was waited for."""
        cdef Wait waited = self.waits
        cdef Step step
        self.end_stall()
        if waited == PAUSING:
            return MOVED
        if waited == LEFT:
            return self.push()
        if waited == KEPT:
            return self.push_few()
        if waited == EMPTY and not ready:
            self.low_water.lapse()  # let go what waits below the low-water mark
            return MOVED
        self.plenty = False
        step = self.pull()
        return self.stand_still(waited) if step == NOTHING else step

    cdef Step stand_still(self, Wait waited) noexcept nogil:
        """Tell why nothing moves, by what was waited for."""
        if waited == EMPTY:  # the source was ready, so it is the destination that is full
            return self.wait_for_destination(FULL)
        if waited == FULL:  # both are ready: neither is to blame
            return self.step_over()
        return MOVED  # nothing was waited for: there may be no more

    cdef Step wind_up(self) noexcept nogil:
        """Move, without waiting, what was taken, and what a peer has been told is received."""
        cdef Step step = MOVED
        self.end_stall()
        if self.waits == KEPT and self.few_size > 0:
            step = self.push_few()
        elif self.waits == LEFT:
            step = self.push()
        if step == MOVED and self.low_water is not None:
            self.pull()
        self.end_stall()
        return STOPPED

    cdef Step pull(self) noexcept nogil:
        """Take what the source has, and see it through to the destination."""
        cdef ssize_t size
        cdef off_t offset = self.offset
        cdef int into = self.pipe_in if self.pipe_in >= 0 else self.destination
        if self.offset >= 0:
            size = sendfile(into, self.source, &offset, self.chunk)
        else:
            size = splice(self.source, NULL, into, NULL, self.chunk, FLAGS)
        if size == 0:  # of a socket that has a FIN, splice says so before urgent data too
            return ENDED if self.low_water is None else self.step_over()
        if size < 0:
            if c_errno == EAGAIN:
                return NOTHING
            return MOVED if c_errno == EINTR else self.fail(self.guilty(c_errno))
        if self.offset >= 0:
            self.offset = offset
        self.took(size)
        return self.gave(size)

    cdef void took(self, Py_ssize_t size) noexcept nogil:
        self.plenty = size >= PLENTY and self.pipe_in >= 0  # else a full pipe would be taken for an empty source
        self.counters.bytes_in += size
        self.counters.reads += 1
        if self.low_water is not None:
            self.low_water.arrived(size, monotonic())

    cdef Step gave(self, Py_ssize_t size) noexcept nogil:
        """Go on after bytes went into our own pipe, or to the destination."""
        if self.pipe_in >= 0:
            self.left = size
            return self.push()
        self.counters.bytes_out += size
        self.counters.writes += 1
        return MOVED

    cdef Step push(self) noexcept nogil:
        """Empty our own pipe into the destination."""
        cdef ssize_t moved
        while self.left > 0:
            moved = splice(self.pipe_out, NULL, self.destination, NULL, self.left, FLAGS)
            if moved > 0:
                self.left -= moved
                self.counters.bytes_out += moved
                self.counters.writes += 1
            elif moved < 0 and c_errno == EAGAIN:
                return self.wait_for_destination(LEFT)
            elif moved == 0 or c_errno != EINTR:
                return self.fail(DESTINATION)
        return MOVED

    cdef Step step_over(self) noexcept nogil:
        """Get past what splice does not move although both sides are ready, or find that it is the end.

        recv leaves urgent data out, as it does for every reader, and goes on behind it. Without a socket to ask, or if
        it has nothing after all, a pause keeps the loop from spinning.
        """
        cdef Py_ssize_t size = -1
        if self.low_water is not None:
            size = recv(self.source, self.few, sizeof(self.few), MSG_DONTWAIT)
            if size == 0:
                return ENDED
            if size < 0 and c_errno != EAGAIN and c_errno != EINTR:
                return self.fail(SOURCE)
        if size < 0:
            self.waits, self.fd, self.due = PAUSING, -1, monotonic() + PAUSE
            return WAITING
        self.few_size = size
        self.took(size)
        return self.push_few()

    cdef Step push_few(self) noexcept nogil:
        """Pass on what was received: whole or not at all, since it is no more than PIPE_BUF (pipe(7))."""
        cdef Py_ssize_t size = self.few_size
        while write(self.pipe_in if self.pipe_in >= 0 else self.destination, self.few, self.few_size) < 0:
            if c_errno == EAGAIN:
                return self.wait_for_destination(KEPT)
            if c_errno != EINTR:
                return self.fail(DESTINATION)
        self.few_size = 0  # `wind_up` may come next, which must not pass it on again
        return self.gave(size)

    cdef Step wait_for_source(self) noexcept nogil:
        """Ask to be woken up when the source has something, or what waits below the low-water mark is due."""
        if self.plenty:
            self.waits, self.fd, self.due = MORE, -1, ALWAYS
        else:
            self.waits, self.fd, self.events = EMPTY, self.source, POLLIN
            self.due = 0 if self.low_water is None else self.low_water.due()
        return WAITING

    cdef Step wait_for_destination(self, Wait waits) noexcept nogil:
        """Ask to be woken up when the destination takes bytes again."""
        self.waits, self.fd, self.events, self.due = waits, self.destination, POLLOUT, 0
        self.counters.stalls += 1
        self.stalled_since = monotonic()
        self.paused = True
        return WAITING

    cdef void end_stall(self) noexcept nogil:
        if self.paused:
            self.counters.stalled_seconds += monotonic() - self.stalled_since
            self.paused = False

    cdef bint flooded(self) noexcept nogil:
        return self.low_water is not None and self.low_water.flooding()

    cdef Side guilty(self, int number) noexcept nogil:
        """Tell which side a failed move is to be laid at."""
        if self.pipe_in >= 0:
            return SOURCE
        if self.low_water is not None:
            return DESTINATION if number == EPIPE else SOURCE
        return SOURCE if number in (EBADF, EINVAL, EIO, EISDIR) else DESTINATION

    cdef Step fail(self, Side side) noexcept nogil:
        self.side = side
        self.number = c_errno if c_errno else EIO
        return FAILED


def widen_pipe(int fd, long size=CHUNK):
    """Give a pipe room for a megabyte, if this user may have it; a full pipe costs its writer a wait each time."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < size:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        pass  # the user's pipes have all the memory they may have (pipe(7), pipe-user-pages-soft)

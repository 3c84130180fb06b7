# cython: language_level=3
"""Move bytes between a socket and a pipe, file or device inside the kernel: splice(2) and sendfile(2), without the GIL.

Goal: no byte enters user space, no Python runs while bytes move. Cost: two system calls for as much as has come.
Invariants:
- `splice` needs a pipe on one side: where neither side is one, bytes go through a pipe of ours, which is empty between
  two pulls. A regular file that is sent goes by `sendfile`, from an offset of ours: its position is left alone.
- No flag of a descriptor is changed. Pipes are used with SPLICE_F_NONBLOCK; a socket must be non-blocking already.
- A pump never waits by itself: it tells what for, and its `PumpLoop` waits in `ppoll`, which a wake-up ends at once.
- After a wake-up for the source without a byte moved, it is the destination that is full. If that is ready as well,
  urgent data (MSG_OOB), which splice does not pass but recv does, is stepped over; or another reader was faster.
- What cannot be spliced, or got no descriptors, is found out before a byte has moved: the pump is `refused`, and others
  take over.
"""

import fcntl
import os

from libc.errno cimport EAGAIN, EBADF, EINTR, EINVAL, EIO, EISDIR, ENOSYS, EPERM, EPIPE, ETIMEDOUT, errno as c_errno
from libc.math cimport fmax, fmin, modf
from libc.stdint cimport uint64_t
from posix.unistd cimport close, read, write

from ringmain._coalesce cimport Coalescer, monotonic
from ringmain._ring cimport Counters, call_unraisably

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #include <time.h>
    #ifdef __linux__
    #include <sys/sendfile.h>
    #define RINGMAIN_HAS_SPLICE 1
    #else
    #define RINGMAIN_HAS_SPLICE 0
    #define SPLICE_F_MOVE 0
    #define SPLICE_F_NONBLOCK 0
    static ssize_t splice(int a, void* b, int c, void* d, size_t e, unsigned f) { errno = ENOSYS; return -1; }
    static ssize_t sendfile(int a, int b, off_t* c, size_t d) { errno = ENOSYS; return -1; }
    static int ppoll(struct pollfd* a, nfds_t b, const struct timespec* c, const void* d) { errno = ENOSYS; return -1; }
    #endif
    """
    bint RINGMAIN_HAS_SPLICE
    unsigned int SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    ctypedef long off_t
    ssize_t splice(int source, void* source_offset, int destination, void* destination_offset, size_t size,
                   unsigned int flags) nogil
    ssize_t sendfile(int destination, int source, off_t* offset, size_t size) nogil
    struct pollfd:
        int fd
        short events, revents
    struct timespec:
        long tv_sec, tv_nsec
    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, const void* mask) nogil
    short POLLIN, POLLOUT
    unsigned long FIONREAD
    int ioctl(int fd, unsigned long request, void* value)
    enum:
        MSG_DONTWAIT
    ssize_t recv(int fd, void* buffer, size_t size, int flags) nogil

HAS_SPLICE = bool(RINGMAIN_HAS_SPLICE)

# The largest pipe that an unprivileged user gets (fs.pipe-max-size), and what one call moves at most.
PIPE_SIZE = 1 << 20
cdef size_t CHUNK = PIPE_SIZE
# The same for a flood between two sockets: with whole pipes its peers would take turns. Two floods keep all busy.
cdef size_t HALF = PIPE_SIZE // 2
cdef unsigned int FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK
# Seconds until it is tried again where both sides are ready and nothing moves.
cdef double PAUSE = 0.001
# A time that has passed.
cdef double ALWAYS = 1e-9
# After a read of this size there is more at once, as a rule: to wait for a low-water mark would leave the peers idle.
cdef Py_ssize_t PLENTY = 128 << 10


cdef class PumpLoop:
    """Let pumps move, each as soon as it can: one alone, or the two ways of a relay.

    Two share a thread until both have flooded at once. Questions and answers get through sooner then: who passes on the
    answer has just run, on a core that is awake. Two floods at once get through sooner, and take less CPU, with a
    thread each. (`python -m benchmarks run relay-latency relay-both`)
    """

    def __cinit__(self):
        self.wake_fd = -1

    def __init__(self, start):
        """Raise OSError where there are no descriptors left. `start` is given what to run on a thread of its own."""
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.start = start
        self.news = []

    def __dealloc__(self):
        if self.wake_fd >= 0:
            close(self.wake_fd)

    def add(self, Pump pump, object over):
        """Let a pump move until it is over, then call `over` from its thread. Not while two others are there.

        Raises what `start` raises, with the pump as it was.
        """
        self.news.append(pump)
        pump.loop, pump.over = self, over
        self.woken = True
        self.wake()
        if not self.running:
            self.running = True
            try:
                self.start(self.run)
            except BaseException:
                self.running = False
                if pump in self.news:
                    self.news.remove(pump)
                    pump.loop = pump.over = None
                raise

    def run(self):
        """Let the pumps move until all are over."""
        cdef Pump one = None, other = None, new
        while True:
            self.woken = False
            while self.news:
                new = self.news.pop(0)
                one, other = new, one
                if new.step == MOVED:  # else it comes from another loop
                    new.begin()
            if one is None:
                self.running = False
                return
            with nogil:
                self.serve(one, other)
            if other is not None and other.step != WAITING:
                other.finish()
                other = None
            if one.step != WAITING:
                one.finish()
                one, other = other, None
            if self.crowded(one, other):
                one.chunk = other.chunk = CHUNK
                other = self.part_with(other)

    cdef bint crowded(self, Pump one, Pump other) noexcept nogil:
        """Tell whether both ways are flooded, so that one of them should have another thread."""
        return other is not None and not self.inseparable and one.flooded() and other.flooded()

    cdef Pump part_with(self, Pump pump):
        """Let a pump go on on another thread; return it if there is none to be had."""
        over = pump.over
        try:
            PumpLoop(self.start).add(pump, over)
        except (OSError, RuntimeError, MemoryError):
            pump.loop, pump.over = self, over
            self.inseparable = True
            self.wake()  # in case that it was told to stop meanwhile
            return pump

    cdef void wake(self) noexcept:
        cdef uint64_t number = 1
        write(self.wake_fd, &number, sizeof(number))

    cdef void serve(self, Pump one, Pump other) noexcept nogil:
        """Let one or two pumps move until either is over, there is a new one, or they should part."""
        cdef pollfd fds[3]
        cdef timespec timeout
        cdef double due, seconds
        cdef uint64_t number
        fds[1].fd = -1
        fds[1].events = fds[1].revents = 0
        fds[2].fd, fds[2].events = self.wake_fd, POLLIN
        while one.step == WAITING and (other is None or other.step == WAITING):
            if self.woken or self.crowded(one, other):
                break
            fds[0].fd, fds[0].events = one.fd, one.events
            due = one.due
            if other is not None:
                fds[1].fd, fds[1].events = other.fd, other.events
                if other.due > 0:
                    due = fmin(due, other.due) if due > 0 else other.due
            if due > 0:
                timeout.tv_nsec = <long>(modf(fmax(due - monotonic(), 0), &seconds) * 1e9)
                timeout.tv_sec = <long>seconds
            if ppoll(fds, 3, &timeout if due > 0 else NULL, NULL) < 0:
                if c_errno != EINTR:
                    one.step = one.fail(SOURCE)
                continue
            if fds[2].revents:
                read(self.wake_fd, &number, sizeof(number))
            one.go_on(fds[0].revents != 0)
            if other is not None:
                other.go_on(fds[1].revents != 0)


cdef class Pump:
    """Move bytes from `source` to `destination` until the source ends, a side fails, or `stop` is called.

    Both are descriptors that stay the caller's, and open until the pump is over. Give a `coalescer` for a source that
    is a socket, an `offset` for a regular file to be sent from there, and `through` where neither side is a pipe. A
    file is sent by a pump that has its `PumpLoop` to itself: it is always ready.
    """

    def __cinit__(self):
        self.pipe_in = self.pipe_out = -1

    def __init__(
        self, int source, int destination, Counters counters, Coalescer coalescer=None, *, bint through=False,
        long long offset=-1
    ):
        self.source = source
        self.destination = destination
        self.counters = counters
        self.coalescer = coalescer
        self.offset = offset
        self.chunk = HALF if through else CHUNK
        if through:
            try:
                self.pipe_out, self.pipe_in = os.pipe2(os.O_CLOEXEC)
                widen_pipe(self.pipe_in)
            except OSError as error:  # the process is out of descriptors; blocks need none
                self.error = error

    def __dealloc__(self):
        self.close_own()

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
            # EPERM is what some sandboxes answer to system calls that they do not know.
            self.refused = self.number in (EINVAL, ENOSYS, EPERM) and self.counters.bytes_in == 0
            self.failed = "source" if self.side == SOURCE else "destination"
            if (self.side == SOURCE) != (self.coalescer is not None):
                verdict = "stopped"  # not the connection's fault
            else:
                verdict = "timed out" if self.number == ETIMEDOUT else "reset"
        else:
            verdict, self.error = self.stop_verdict, self.stop_error
        self.verdict = verdict
        self.close_own()  # whoever still holds the pump holds no descriptors
        over, self.over, self.loop = self.over, None, None
        call_unraisably(over)

    def refuse(self):
        """Give up before a byte has moved, so that others take over."""
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
        if self.verdict is not None or self.pipe_in >= 0 or ioctl(self.destination, FIONREAD, &size) < 0:
            return 0.0
        return min(1.0, size / <double>max(1, fcntl.fcntl(self.destination, fcntl.F_GETPIPE_SZ)))

    cdef void begin(self) noexcept:
        """Find out whether it can be done at all, and what to wait for."""
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
        if self.stopping or ready or (self.due > 0 and monotonic() >= self.due):
            self.step = self.settle(self.turn(ready)) if not self.stopping else self.wind_up()

    cdef Step settle(self, Step step) noexcept nogil:
        """After a step: let a file go on, or decide what to wait for."""
        while step == MOVED and self.offset >= 0 and not self.stopping:
            step = self.pull()
        if self.stopping and (step == MOVED or step == WAITING or step == NOTHING):
            return self.wind_up()
        if step == NOTHING:  # of a file: it is the destination that is full
            return self.wait_for_destination(FULL)
        return self.wait_for_source() if step == MOVED else step

    cdef Step turn(self, bint ready) noexcept nogil:
        """Do what was waited for."""
        cdef Step step
        if self.waits == PAUSING:
            return MOVED
        if self.waits == MORE:
            self.plenty = False
            step = self.pull()
            return MOVED if step == NOTHING else step
        if self.waits == EMPTY:
            if not ready:
                self.coalescer.lapse()  # let go what waits below the low-water mark
                return MOVED
            step = self.pull()
            # The source was ready, so it is the destination that is full.
            return self.wait_for_destination(FULL) if step == NOTHING else step
        self.end_stall()
        if self.waits == FULL:
            step = self.pull()
            return self.step_over() if step == NOTHING else step  # neither is to blame
        return self.push() if self.waits == LEFT else self.push_few()

    cdef Step wind_up(self) noexcept nogil:
        """Move, without waiting, what was taken, and what a peer has been told is received."""
        cdef Step step = MOVED
        self.end_stall()
        if self.waits == KEPT:
            step = self.push_few()
        elif self.waits == LEFT:
            step = self.push()
        if step == MOVED and self.coalescer is not None:
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
            return ENDED if self.coalescer is None else self.step_over()
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
        if self.coalescer is not None:
            self.coalescer.arrived(size, monotonic())

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
        if self.coalescer is not None:
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
        while write(self.pipe_in if self.pipe_in >= 0 else self.destination, self.few, self.few_size) < 0:
            if c_errno == EAGAIN:
                return self.wait_for_destination(KEPT)
            if c_errno != EINTR:
                return self.fail(DESTINATION)
        return self.gave(self.few_size)

    cdef Step wait_for_source(self) noexcept nogil:
        """Ask to be woken up when the source has something, or what waits below the low-water mark is due."""
        if self.plenty:
            self.waits, self.fd, self.due = MORE, -1, ALWAYS
        else:
            self.waits, self.fd, self.events = EMPTY, self.source, POLLIN
            self.due = 0 if self.coalescer is None else self.coalescer.due()
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
        return self.coalescer is not None and self.coalescer.flooding()

    cdef Side guilty(self, int number) noexcept nogil:
        """Tell which side a failed move is to be laid at."""
        if self.pipe_in >= 0:
            return SOURCE
        if self.coalescer is not None:
            return DESTINATION if number == EPIPE else SOURCE
        return SOURCE if number in (EBADF, EINVAL, EIO, EISDIR) else DESTINATION

    cdef Step fail(self, Side side) noexcept nogil:
        self.side = side
        self.number = c_errno if c_errno else EIO
        return FAILED


def widen_pipe(int fd):
    """Give a pipe room for a megabyte, if this user may have it; a full pipe costs its writer a wait each time."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < <long>CHUNK:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CHUNK)
    except OSError:
        pass  # the user's pipes have all the memory they may have (pipe(7), pipe-user-pages-soft)

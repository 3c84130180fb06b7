# cython: language_level=3
"""Move bytes between a socket and a pipe, file or device inside the kernel: splice(2) and sendfile(2), without the GIL.

Goal: no byte enters user space, no Python runs while bytes move. Cost: two system calls for as much as has come.
Invariants:
- `splice` needs a pipe on one side: where neither side is one, bytes go through a pipe of ours, which is empty between
  two pulls. A regular file that is sent goes by `sendfile`, from an offset of ours: its position is left alone.
- No flag of a descriptor is changed. Pipes are used with SPLICE_F_NONBLOCK; a socket must be non-blocking already.
- Whoever has nothing to give, or takes nothing, is waited for in `ppoll`, which the stop descriptor ends at once.
- After a wake-up for the source without a byte moved, it is the destination that is full. If that is ready as well,
  urgent data (MSG_OOB), which splice does not pass but recv does, is stepped over; or another reader was faster.
- What cannot be spliced, or got no descriptors, is found out before a byte has moved: the pump is `refused`, and others
  take over.
"""

import errno
import fcntl
import os

from libc.errno cimport EAGAIN, EBADF, EINTR, EINVAL, EIO, EISDIR, ENOSYS, EPERM, EPIPE, errno as c_errno
from libc.math cimport fmax, modf
from libc.stdint cimport uint64_t
from posix.unistd cimport close, write

from ringmain._coalesce cimport Coalescer, monotonic
from ringmain._ring cimport Counters

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
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
        MSG_DONTWAIT, PIPE_BUF
    ssize_t recv(int fd, void* buffer, size_t size, int flags) nogil

HAS_SPLICE = bool(RINGMAIN_HAS_SPLICE)

# The largest pipe that an unprivileged user gets (fs.pipe-max-size), and what one call moves at most.
PIPE_SIZE = 1 << 20
cdef size_t CHUNK = PIPE_SIZE
cdef unsigned int FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK
# Seconds until it is tried again where both sides are ready and nothing moves.
cdef double PAUSE = 0.001


cdef class Pump:
    """Move bytes from `source` to `destination` until the source ends, a side fails, or `stop` is called.

    Both are descriptors that stay the caller's, and open until `run` has returned. Give a `coalescer` for a source that
    is a socket, an `offset` for a regular file to be sent from there, and `through` where neither side is a pipe.
    """

    def __cinit__(self):
        self.pipe_in = self.pipe_out = self.stop_fd = -1

    def __init__(
        self, int source, int destination, Counters counters, Coalescer coalescer=None, *, bint through=False,
        long long offset=-1
    ):
        self.source = source
        self.destination = destination
        self.counters = counters
        self.coalescer = coalescer
        self.offset = offset
        try:
            self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            if through:
                self.pipe_out, self.pipe_in = os.pipe2(os.O_CLOEXEC)
                widen_pipe(self.pipe_in)
        except OSError as error:  # the process is out of descriptors; blocks need none
            self.error = error

    def __dealloc__(self):
        self.close_own()

    cdef void close_own(self) noexcept:
        if self.stop_fd >= 0:
            close(self.stop_fd)
        if self.pipe_in >= 0:
            close(self.pipe_in)
            close(self.pipe_out)
        self.stop_fd = self.pipe_in = self.pipe_out = -1

    def run(self):
        """Move bytes, in whichever thread, until it is over. Raises nothing: see `verdict`, `error` and `refused`."""
        cdef Step step
        if self.error is not None:  # no descriptors left for our own needs: others do without
            self.refuse()
            return
        with nogil:
            step = self.move()
        if step == ENDED:
            self.verdict = "ended"
        elif step == FAILED:
            # EPERM is what some sandboxes answer to system calls that they do not know.
            self.refused = self.number in (EINVAL, ENOSYS, EPERM) and self.counters.bytes_in == 0
            self.error = OSError(self.number, os.strerror(self.number))
            self.failed = "source" if self.side == SOURCE else "destination"
            if (self.side == SOURCE) != (self.coalescer is not None):
                self.verdict = "stopped"  # not the connection's fault
            else:
                self.verdict = "timed out" if self.number == errno.ETIMEDOUT else "reset"
        else:
            self.verdict, self.error = self.stop_verdict, self.stop_error
        self.close_own()  # whoever still holds the pump holds no descriptors

    def refuse(self):
        """Give up before a byte has moved, so that others take over."""
        self.refused, self.verdict = True, "stopped"

    def stop(self, str verdict="stopped", object error=None):
        """Let `run` return at once; what it took from the source goes to the destination first, if that takes it."""
        cdef uint64_t one = 1
        if not self.stopping:
            self.stop_verdict, self.stop_error = verdict, error
            self.stopping = True
            if self.stop_fd >= 0:  # not by os.eventfd_write: without the GIL, `run` could close it meanwhile
                write(self.stop_fd, &one, sizeof(one))

    @property
    def fullness(self):
        """The part of a pipe at the destination that its reader has yet to take, from 0 to 1."""
        cdef int size = 0
        if self.verdict is not None or self.pipe_in >= 0 or ioctl(self.destination, FIONREAD, &size) < 0:
            return 0.0
        return min(1.0, size / <double>max(1, fcntl.fcntl(self.destination, fcntl.F_GETPIPE_SZ)))

    cdef Step move(self) noexcept nogil:
        cdef Step step
        # An empty pipe moves nothing: EAGAIN, or EINVAL where it could not move anything.
        if self.pipe_in >= 0 and splice(self.pipe_out, NULL, self.destination, NULL, CHUNK, FLAGS) < 0:
            if c_errno != EAGAIN:
                return self.fail(DESTINATION)
        step = self.circulate()
        if step == STOPPED and self.coalescer is not None:
            self.pull()  # what a peer has been told is received
        return step

    cdef Step circulate(self) noexcept nogil:
        cdef Step step
        while not self.stopping:
            step = self.wait_for_source()
            if step == MOVED:
                step = self.pull()
            if step == AGAIN:  # the source was ready, so it is the destination that is full
                step = self.wait_for_destination()
                if step == MOVED:
                    step = self.pull()
            if step == AGAIN:  # neither is to blame
                step = self.step_over()
            if step != MOVED:
                return step
        return STOPPED

    cdef Step pull(self) noexcept nogil:
        """Take what the source has, and see it all through to the destination."""
        cdef ssize_t size
        cdef off_t offset = self.offset
        cdef int into = self.pipe_in if self.pipe_in >= 0 else self.destination
        if self.offset >= 0:
            size = sendfile(into, self.source, &offset, CHUNK)
        else:
            size = splice(self.source, NULL, into, NULL, CHUNK, FLAGS)
        if size == 0:  # of a socket that has a FIN, splice says so before urgent data too
            return ENDED if self.coalescer is None else self.step_over()
        if size < 0:
            if c_errno == EAGAIN:
                return AGAIN
            return MOVED if c_errno == EINTR else self.fail(self.guilty(c_errno))
        self.counters.bytes_in += size
        self.counters.reads += 1
        if self.coalescer is not None:
            self.coalescer.arrived(size, monotonic())
        if self.offset >= 0:
            self.offset = offset
        if self.pipe_in >= 0:
            return self.push(size)
        self.counters.bytes_out += size
        self.counters.writes += 1
        return MOVED

    cdef Step step_over(self) noexcept nogil:
        """Get past what splice does not move although both sides are ready, or find that it is the end.

        recv leaves urgent data out, as it does for every reader, and goes on behind it. Without a socket to ask, or if
        it has nothing after all, a pause keeps the loop from spinning.
        """
        cdef char few[PIPE_BUF]
        cdef Py_ssize_t size = -1
        cdef Py_ssize_t moved
        cdef Step step
        if self.coalescer is not None:
            size = recv(self.source, few, PIPE_BUF, MSG_DONTWAIT)
            if size == 0:
                return ENDED
            if size < 0 and c_errno != EAGAIN and c_errno != EINTR:
                return self.fail(SOURCE)
        if size < 0:
            step = self.wait(-1, 0, monotonic() + PAUSE)
            return MOVED if step == AGAIN else step
        self.counters.bytes_in += size
        self.counters.reads += 1
        self.coalescer.arrived(size, monotonic())
        while True:  # whole or not at all, since it is no more than PIPE_BUF (pipe(7))
            moved = write(self.pipe_in if self.pipe_in >= 0 else self.destination, few, size)
            if moved > 0:
                break
            if c_errno == EAGAIN:
                step = self.wait_for_destination()
                if step != MOVED:
                    return step
            elif c_errno != EINTR:
                return self.fail(DESTINATION)
        if self.pipe_in >= 0:
            return self.push(size)
        self.counters.bytes_out += size
        self.counters.writes += 1
        return MOVED

    cdef Step push(self, Py_ssize_t size) noexcept nogil:
        """Empty our own pipe into the destination."""
        cdef ssize_t moved
        cdef Step step
        while size > 0:
            moved = splice(self.pipe_out, NULL, self.destination, NULL, size, FLAGS)
            if moved > 0:
                size -= moved
                self.counters.bytes_out += moved
                self.counters.writes += 1
            elif moved < 0 and c_errno == EAGAIN:
                step = self.wait_for_destination()
                if step != MOVED:
                    return step
            elif moved == 0 or c_errno != EINTR:
                return self.fail(DESTINATION)
        return MOVED

    cdef Step wait_for_source(self) noexcept nogil:
        """Wait until the source has something, and let go what waits below the low-water mark when it is due."""
        cdef double due
        cdef Step step = AGAIN
        if self.offset >= 0:
            return MOVED
        while step == AGAIN:
            due = 0 if self.coalescer is None else self.coalescer.due()
            step = self.wait(self.source, POLLIN, due)
            if step == AGAIN:
                self.coalescer.lapse()
        return step

    cdef Step wait_for_destination(self) noexcept nogil:
        """Wait until the destination takes bytes again."""
        cdef double since = monotonic()
        cdef Step step
        self.counters.stalls += 1
        self.paused = True
        step = self.wait(self.destination, POLLOUT, 0)
        self.paused = False
        self.counters.stalled_seconds += monotonic() - since
        return step

    cdef Step wait(self, int fd, short events, double due) noexcept nogil:
        """Wait for a descriptor (-1: none); AGAIN when `due` comes first (0: never), a time on the monotonic clock."""
        cdef pollfd fds[2]
        cdef timespec timeout
        cdef double seconds
        cdef int ready
        fds[0].fd, fds[0].events = fd, events
        fds[1].fd, fds[1].events = self.stop_fd, POLLIN
        while True:
            if due > 0:
                timeout.tv_nsec = <long>(modf(fmax(due - monotonic(), 0), &seconds) * 1e9)
                timeout.tv_sec = <long>seconds
            ready = ppoll(fds, 2, &timeout if due > 0 else NULL, NULL)
            if ready == 0:
                return AGAIN
            if ready > 0:
                return STOPPED if fds[1].revents else MOVED
            if c_errno != EINTR:
                return self.fail(SOURCE if fd == self.source else DESTINATION)

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

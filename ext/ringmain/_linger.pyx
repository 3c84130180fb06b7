# cython: language_level=3
"""How long bytes may wait for others: in the socket, below its low-water mark, or in the ring until there are enough.

Goal: no byte waits longer than the linger. Cost: a timer that is set once for however many reads.
Invariants:
- While bytes may wait a timer is set; an idle connection has none. The loops' own timers count in milliseconds, which
  is as long as a byte may wait at all, so it is a timerfd (timerfd_create(2)).
- It is for the owner, who knows the loop, to watch `timer_fd` and to call `lapse`.
On the kernel path _pump holds bytes back, by the mark alone. The default is in settings.
"""

from ringmain._low_water import CAP as _CAP

from libc.math cimport INFINITY, fmax, modf
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC
from posix.unistd cimport close, read

from ringmain._blocks cimport Block
from ringmain._clock cimport monotonic
from ringmain._low_water cimport LowWater
from ringmain._ring cimport Ring

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


cdef class Timer:
    """A timer for the shortest waits, to be watched as a descriptor."""

    def __cinit__(self):
        self.timer_fd = -1

    def __dealloc__(self):
        self.close_timer()

    cdef void open_timer(self) noexcept:
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)

    cdef bint rang(self) noexcept:
        """Tell whether it was due, and is set no more; else it was set anew since it was readable."""
        cdef uint64_t expirations
        if read(self.timer_fd, &expirations, sizeof(expirations)) < 0:
            return False
        self.timing = False
        return True

    cdef void close_timer(self) noexcept:
        """Close the timer, once nobody watches it any more."""
        if self.timer_fd >= 0:
            close(self.timer_fd)
            self.timer_fd = -1

    cdef void set_timer(self, double seconds) noexcept:
        cdef itimerspec value
        cdef double whole
        value.it_interval.tv_sec = value.it_interval.tv_nsec = 0
        value.it_value.tv_nsec = <long>fmax(modf(seconds, &whole) * 1e9, 1)
        value.it_value.tv_sec = <long>whole
        timerfd_settime(self.timer_fd, 0, &value, NULL)
        self.timing = True


cdef class Linger(Timer):
    """What may wait on one connection, `seconds` at most; `min_block` is of no use without."""

    def __init__(self, int fd, Ring ring, double seconds, Py_ssize_t min_block):
        self.ring = ring
        self.low_water = LowWater(fd, seconds, _CAP)
        self.seconds = seconds
        self.min_block = min_block
        self.open_timer()

    cdef bint arrived(self, Py_ssize_t size) noexcept:
        """Account for bytes that are in the ring now; tell whether they should wait for more."""
        cdef bint held
        self.low_water.arrived(size, monotonic())
        held = self.holds_back()
        if held and self.held_since == 0:
            self.held_since = self.low_water.last
        if (held or self.low_water.mark > 1) and not self.timing:
            self.set_timer(self.seconds)
        return held

    cdef bint holds_back(self) noexcept:
        """Tell whether what is in the ring should wait for more."""
        return self.min_block > 1 and not self.overdue and not self.ring.holds(self.min_block)

    cdef void taken(self) noexcept:
        """Begin anew to wait for enough bytes, now that a block was taken."""
        if self.min_block <= 1:
            return
        self.overdue = False
        self.held_since = 0
        if self.ring.holds(1):
            self.held_since = monotonic()
            if not self.timing:
                self.set_timer(self.seconds)

    cdef bint lapse(self) noexcept:
        """Let go the bytes that wait, once that is due; tell whether those are free that waited in the ring."""
        cdef double now, left
        cdef double soonest = 0
        cdef bint freed = False
        if not self.rang():
            return False
        now = monotonic()
        if self.low_water.mark > 1:
            left = self.low_water.due() - now
            if left > 0:
                soonest = left
            else:
                self.low_water.lapse()
        if self.held_since > 0:
            left = self.held_since + self.seconds - now
            if left <= 0:
                self.overdue = freed = True
            elif soonest == 0 or left < soonest:
                soonest = left
        if soonest > 0:
            self.set_timer(soonest)
        return freed


cdef class Hold(Timer):
    """What may wait in a ring that many share, until a block has `enough`, or `seconds` after the last was released.

    So in a flood blocks are large, of many small writes there is a block in `seconds`, and a lone one waits for none.
    Whoever fills the ring adds to `stored`, and has all this judged once it has read what there was.
    """

    def __init__(self, Ring ring, double seconds, Py_ssize_t enough):
        self.ring = ring
        self.enough = enough
        self.last = -INFINITY
        if seconds > 0:
            self.open_timer()
        self.seconds = seconds if self.timer_fd >= 0 else 0  # not to be had on this system, or no descriptor is left

    cdef bint waits(self) noexcept:
        """Tell whether there is something, and nothing of it may be taken."""
        return self.stored > 0 and self.released == 0

    cdef void taken(self, Py_ssize_t size) noexcept:
        """Account for bytes that are in the ring no more, the first ones."""
        self.stored -= size
        self.released = max(0, self.released - size)

    cdef void release(self) noexcept:
        """Let all wait no longer."""
        if self.released < self.stored:
            self.released = self.stored
            self.last = monotonic()

    cdef void judge(self) noexcept:
        """Release blocks that have enough, or all when that is due; else the timer tells when it is."""
        cdef Block block = self.ring.current
        cdef Py_ssize_t begun = block.filled - block.start if block is not None else 0
        cdef double now, left
        if self.released == self.stored:
            return
        now = monotonic()
        left = self.last + self.seconds - now
        if begun >= self.enough or left <= 0:
            self.release()
            return
        if self.stored - begun > self.released:  # full blocks, before what is begun
            self.released = self.stored - begun
            self.last = now
            left = self.seconds
        if self.released < self.stored and not self.timing:
            self.set_timer(left)

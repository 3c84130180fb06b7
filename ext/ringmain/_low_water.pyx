# cython: language_level=3
"""Decide how far to raise a socket's receive low-water mark (SO_RCVLOWAT of socket(7)), from what came lately.

Goal: in a flood the reader wakes up less often and reads more at a time; no byte waits longer than `linger`.
Cost: a few comparisons a read; a system call only when the flow changes by half.
Invariants:
- The mark follows the flow: three quarters of what the last period of `linger` seconds brought, never above `cap`.
- A flow too slow to be worth it, and an idle connection, have the mark at 1: each byte is signalled as it comes.
- Above 1 the owner calls `lapse` when it is `due`. Lowering the mark makes the kernel signal what waits.
- Questions and answers are not made to wait time and again: a mark that lapsed before as much had come keeps the next
  one away for a while, and each further one for twice as long.
No timer and no event loop: the three ways of receiving (blocks, TLS, splice) bring their own.
"""

from libc.math cimport fmax, fmin

cdef extern from "<sys/socket.h>" nogil:
    int SOL_SOCKET
    int SO_RCVLOWAT
    int setsockopt(int fd, int level, int option, const void* value, unsigned int size)

# The highest mark. Half of a receive buffer is the most that the kernel allows, by default 3 MiB.
CAP = 2 << 20
# The part of what came in one period to wait for in the next. Near 1 a flow that varies would often wait it out.
cdef double SHARE = 0.75
# Below this, a mark saves too few wake-ups to be worth a timer.
cdef Py_ssize_t FLOOR = 8 << 10
# The part of the linger after which a mark is let go: a timer comes late, by 50 µs of slack alone (prctl(2)).
cdef double IN_TIME = 0.9
# For how many periods a mark that was raised in vain keeps the next one away, the first time and at most.
cdef double FIRST_PAUSE = 16
cdef double LONGEST_PAUSE = 1024


cdef class LowWater:
    """Set the low-water mark of one connected socket. `cap` is in bytes, `linger` and every `now` in seconds."""

    def __init__(self, int fd, double linger, Py_ssize_t cap):
        self.fd = fd
        self.linger = linger
        self.cap = cap
        self.mark = 1

    cdef void arrived(self, Py_ssize_t size, double now) noexcept nogil:
        """Account for bytes that were read, and set the mark for those to come."""
        cdef double elapsed
        if self.linger <= 0:
            return
        elapsed = now - self.since
        if self.mark == 1 and now - self.last >= IN_TIME * self.linger:
            self.came = 0  # a flood that is over: a lone byte after it must not raise the mark again
        self.last = now
        self.came += size
        if self.mark > 1:
            self.gained += size
            if self.gained >= self.mark:
                self.pause = 0
        if elapsed >= self.linger:
            if now >= self.paused_until:
                self.set_mark(<Py_ssize_t>(SHARE * self.came * (self.linger / elapsed)))
            self.since = now
            self.came = 0
        elif self.mark == 1 and now >= self.paused_until:
            self.set_mark(<Py_ssize_t>(SHARE * self.came))  # a flood begins: the period's end is not waited for

    cdef bint flooding(self) noexcept nogil:
        """Tell whether there is a mark that was worth raising."""
        return self.mark > 1 and self.gained >= self.mark

    cdef double due(self) noexcept nogil:
        """Return when `lapse` must be called unless something arrives before, or 0 when the mark is 1."""
        return 0 if self.mark == 1 else self.last + IN_TIME * self.linger

    cdef void lapse(self) noexcept nogil:
        """Let go what waits: nothing came for `linger` seconds."""
        if self.gained < self.mark:
            self.pause = fmin(fmax(2 * self.pause, FIRST_PAUSE * self.linger), LONGEST_PAUSE * self.linger)
            self.paused_until = self.due() + self.pause
        self.set_mark(1)

    cdef void set_mark(self, Py_ssize_t wish) noexcept nogil:
        cdef Py_ssize_t mark = min(wish, self.cap)
        cdef int value
        if mark < FLOOR or self.linger <= 0:
            mark = 1
        elif mark != self.cap and 2 * mark < 3 * self.mark and 3 * mark > 2 * self.mark:
            return  # not worth a system call
        if mark == self.mark:
            return
        value = <int>mark
        if setsockopt(self.fd, SOL_SOCKET, SO_RCVLOWAT, &value, sizeof(value)) == 0:
            if self.mark == 1:
                self.gained = 0
            self.mark = mark
        else:
            self.linger = 0  # not to be had on this system

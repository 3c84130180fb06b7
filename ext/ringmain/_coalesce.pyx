# cython: language_level=3
"""Decide how far to raise a socket's receive low-water mark (SO_RCVLOWAT of socket(7)), from what came lately.

Goal: in a flood the reader wakes up less often and reads more at a time; no byte waits longer than `linger`.
Cost: two comparisons a read; a system call only when the flow changes by a factor of two.
Invariants:
- The mark follows the flow: half of what the last period of `linger` seconds brought, never above `cap`.
- A flow too slow to be worth it, and an idle connection, have the mark at 1: each byte is signalled as it comes.
- Above 1 the owner calls `lapse` when it is `due`. Lowering the mark makes the kernel signal what waits.
No timer and no event loop: the three ways of receiving (blocks, TLS, splice) bring their own.
"""

cdef extern from "<sys/socket.h>" nogil:
    int SOL_SOCKET
    int SO_RCVLOWAT
    int setsockopt(int fd, int level, int option, const void* value, unsigned int size)

# Below this, a mark saves too few wake-ups to be worth a timer.
cdef Py_ssize_t FLOOR = 8 << 10


cdef class Coalescer:
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
        self.last = now
        self.came += size
        if elapsed >= self.linger:
            self.set_mark(<Py_ssize_t>(self.came * (self.linger / elapsed) / 2))
            self.since = now
            self.came = 0
        elif self.mark == 1:
            self.set_mark(self.came // 2)  # a flood begins: the period's end is not waited for

    cdef double due(self) noexcept nogil:
        """Return when `lapse` must be called unless something arrives before, or 0 when the mark is 1."""
        return 0 if self.mark == 1 else self.last + self.linger

    cdef void lapse(self) noexcept nogil:
        """Let go what waits: nothing came for `linger` seconds."""
        self.came = 0  # a flood that is over: a lone byte after it must not raise the mark again
        self.set_mark(1)

    cdef void set_mark(self, Py_ssize_t wish) noexcept nogil:
        cdef Py_ssize_t mark = FLOOR
        cdef int value
        if wish < FLOOR or self.cap < FLOOR or self.linger <= 0:
            mark = 1
        else:
            while mark * 2 <= wish and mark * 2 <= self.cap:
                mark *= 2
        if mark == self.mark:
            return
        value = <int>mark
        if setsockopt(self.fd, SOL_SOCKET, SO_RCVLOWAT, &value, sizeof(value)) == 0:
            self.mark = mark
        else:
            self.linger = 0  # not to be had on this system

# cython: language_level=3
"""Wait for pumps: one alone, or the two ways of a relay, in one `ppoll` that a wake-up ends at once.

Goal: a byte waits for no thread of Python's, and a pump that is told to stop does not wait for a byte.
Invariants: pumps move and wait without the GIL; only the beginning and the end of one take it. A pump is in one loop,
and what it tells (`step`, `fd`, `events`, `due`) is all that its loop waits by.
"""

import os

from libc.errno cimport EINTR, errno as c_errno
from libc.math cimport fmin
from libc.stdint cimport uint64_t
from posix.unistd cimport close, read, write

from ringmain._pump cimport CHUNK, MOVED, SOURCE, WAITING, Pump
from ringmain._splice cimport POLLIN, poll_until, pollfd


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

    cpdef void wake(self) noexcept:
        """Let the thread look at its pumps anew: one is there, or was told to stop."""
        cdef uint64_t number = 1
        write(self.wake_fd, &number, sizeof(number))

    cdef void serve(self, Pump one, Pump other) noexcept nogil:
        """Let one or two pumps move until either is over, there is a new one, or they should part."""
        cdef pollfd fds[3]
        cdef double due
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
            if poll_until(fds, 3, due) < 0:
                if c_errno != EINTR:
                    one.step = one.fail(SOURCE)
                continue
            if fds[2].revents:
                read(self.wake_fd, &number, sizeof(number))
            one.go_on(fds[0].revents != 0)
            if other is not None:
                other.go_on(fds[1].revents != 0)

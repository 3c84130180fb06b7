# cython: language_level=3
# Fields of a pump; _pump.pyx tells what it promises.

from ringmain._coalesce cimport Coalescer
from ringmain._ring cimport Counters

cdef enum Side:
    NEITHER
    SOURCE
    DESTINATION


cdef enum Step:
    MOVED           # or ready to: go on
    ENDED           # the source has no more
    AGAIN           # nothing moves right now, or the time is up
    FAILED          # `side` failed with `number`
    STOPPED


cdef class Pump:
    cdef readonly Counters counters
    cdef readonly str verdict           # None while bytes move; set once, by `run`
    cdef readonly object error          # the OSError behind the verdict, or what `stop` was given
    cdef readonly str failed            # whose error it is: "source", "destination", or None
    cdef readonly bint refused          # one of them cannot be spliced; no byte has moved
    cdef readonly bint paused           # the destination takes nothing: the source waits
    cdef Coalescer coalescer            # None where the source is no socket
    cdef int source, destination
    cdef int pipe_out, pipe_in          # a pipe of our own where neither side is one, else -1
    cdef int stop_fd                    # an eventfd, readable once the pump was told to stop
    cdef bint stopping
    cdef str stop_verdict
    cdef object stop_error
    cdef long long offset               # where a source that is a file goes on, else -1
    cdef Side side
    cdef int number                     # errno of the side that failed

    cdef void close_own(self) noexcept
    cdef Step move(self) noexcept nogil
    cdef Step circulate(self) noexcept nogil
    cdef Step pull(self) noexcept nogil
    cdef Step step_over(self) noexcept nogil
    cdef Step push(self, Py_ssize_t size) noexcept nogil
    cdef Step wait_for_source(self) noexcept nogil
    cdef Step wait_for_destination(self) noexcept nogil
    cdef Step wait(self, int fd, short events, double due) noexcept nogil
    cdef Side guilty(self, int number) noexcept nogil
    cdef Step fail(self, Side side) noexcept nogil

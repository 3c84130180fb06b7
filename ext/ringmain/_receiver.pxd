# cython: language_level=3
# Fields of a receiver: what every way of receiving (plain here, TLS in _tls_receiver) shares.

from ringmain._counters cimport Counters
from ringmain._linger cimport Linger
from ringmain._ring cimport Block, Claim, Ring


cdef class Receiver:
    cdef readonly Ring ring
    cdef readonly Counters counters
    cdef readonly str verdict           # None while the stream goes on; set once
    cdef readonly long long taken       # where in the stream the last block that was handed out ends
    cdef public object on_skip          # called once, by the loop, with the offset of the first record skipped
    cdef readonly object error          # the exception behind the verdict, if any
    cdef readonly bint paused           # no block was free: the peer waits
    cdef object link                    # None once it is let go
    cdef object loop                    # that of the link
    cdef int fd
    cdef object waiter                  # the Future of a consumer that found nothing, else None
    cdef double paused_at
    cdef Py_ssize_t at_least            # the smallest window worth a system call
    cdef Linger linger                  # None where no byte may wait for others, and after the verdict

    cdef bint claim_window(self) except -1
    cdef int received(self, Py_ssize_t size) except -1
    cdef int count_skipped(self) except -1
    cdef int wake(self) except -1
    cdef int give_up(self) except -1
    cdef int end(self, str verdict, object error) except -1
    cdef void end_stall(self) noexcept
    cdef int shut(self) except -1
    cdef int hold(self) except -1
    cdef int go_on(self) except -1

# cython: language_level=3
# Fields of one of many streams that are merged, and of whoever merges them; _member.pyx tells what they promise.

from ringmain._carry cimport Carry
from ringmain._ring cimport Block, Ring
from ringmain._tls cimport Session


cdef class Host:
    cdef object loop                    # the first field: the collector takes it away before what others point to
    cdef readonly Ring ring
    cdef readonly bint paused           # no block was free: all peers wait
    cdef readonly long long stalls
    cdef readonly double stalled_seconds
    cdef double paused_at

    cdef int let_go(self, Member member, str verdict, object error) except -1
    cdef int announce(self, Member member) except -1


cdef class Member(Carry):
    cdef readonly object link
    cdef readonly str verdict           # None while the stream goes on; set once
    cdef readonly object error          # the exception behind the verdict, if any
    cdef readonly long long taken       # where in the stream the last of it ends that was handed out
    cdef readonly long long dropped     # bytes of a last record without an end that were thrown away
    cdef public object on_end           # called once, by the loop, when it has a verdict and the ring all that is whole
    cdef public object on_skip          # called once, by the loop, with the offset of the first record skipped
    cdef Host host
    cdef Session session                # None for a plain one, and after the verdict
    cdef int fd
    cdef str heard                      # the verdict that the last read has brought
    cdef object heard_error
    cdef Py_ssize_t untaken             # bytes of it in the ring
    cdef long long stalls_before        # of the host, when this began
    cdef double stalled_before
    cdef bint reading                   # without the GIL, perhaps into `data`
    cdef bint unread                    # the last read has left something that epoll does not tell of
    cdef bint queued                    # to be read because of that
    cdef bint blocked                   # the last read has something to write first
    cdef bint hung_up                   # an end that comes is ours
    cdef bint told_skip

    cdef Py_ssize_t receive(self, Block block, char* where, Py_ssize_t room) except -1
    cdef Py_ssize_t read(self, char* where, Py_ssize_t room) except -1
    cdef Py_ssize_t decrypt(self, char* where, Py_ssize_t room) except -1
    cdef void count_stalls(self) noexcept

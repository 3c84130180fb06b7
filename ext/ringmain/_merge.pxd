# cython: language_level=3
# Fields of what merges the records of many streams; _merge.pyx tells what it promises.

from libc.stdint cimport uint32_t

from ringmain._member cimport Member
from ringmain._sorter cimport Sorter


cdef class Merger(Sorter):
    cdef int epoll_fd
    cdef dict by_fd                     # members that are read
    cdef bint watching                  # the loop watches epoll_fd
    cdef bint scheduled                 # the loop will call `go_on`
    cdef object waiter                  # the Future of a consumer that found nothing, else None
    cdef bint news                      # a member has ended since a consumer waited last
    cdef list round                     # members that were ready when it began
    cdef Py_ssize_t at                  # whose turn it is
    cdef long long stalls_then          # how many stalls there had been when it began
    cdef list queue                     # members that have something that epoll does not tell of, for the next round
    cdef Py_ssize_t queued              # how many of those there are, in the round too

    cdef int turn(self) except -1
    cdef bint next_round(self) except -1
    cdef Py_ssize_t serve(self, Member member) except? -2
    cdef int await_more(self, Member member) except -1
    cdef bint listen(self, int fd, int operation, uint32_t events) noexcept
    cdef int settle(self, bint stalled) except -1
    cdef int wake(self) except -1

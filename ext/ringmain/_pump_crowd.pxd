# cython: language_level=3
# Fields of a crowd of pumps; _pump_crowd.pyx tells what they promise.

from libc.stdint cimport uint32_t

from ringmain._epoll cimport epoll_event
from ringmain._pump cimport Pump
from ringmain._pump_loop cimport PumpLoop

cdef enum:
    SPARE = 64              # empty pipes that are kept for those who have something to move


cdef struct Watch:
    void* reader            # the Pump whose source this descriptor is, borrowed from `pumps`, or NULL
    void* writer            # the one whose destination it is
    uint32_t asked          # the events that epoll is asked for; 0: it does not know it


cdef class PumpCrowd(PumpLoop):
    cdef int epoll_fd
    cdef dict pumps                     # those that move; the values are None
    cdef Watch* watches                 # by descriptor
    cdef int watched                    # how many there is room for
    cdef void** timed                   # the Pumps with a `due`, borrowed too
    cdef int timed_count, timed_room
    cdef int[SPARE][2] spares           # pipes that nobody has, their reading ends first
    cdef int spare_count
    cdef int over                       # how many of `pumps` have ended

    cdef bint make_room(self, Pump pump) noexcept
    cdef void admit(self, Pump pump)
    cdef void see_off(self)
    cdef void leave(self, Pump pump, int fd) noexcept
    cdef void serve_all(self) noexcept nogil
    cdef double serve_due(self) noexcept nogil
    cdef int wait_for_any(self, epoll_event* events, double due) noexcept nogil
    cdef void serve_ready(self, int fd, uint32_t events) noexcept nogil
    cdef void turn(self, Pump pump, bint ready) noexcept nogil
    cdef void settle(self, Pump pump) noexcept nogil
    cdef bint ask(self, int fd, uint32_t events) noexcept nogil
    cdef bint lend(self, Pump pump) noexcept nogil
    cdef void take_back(self, Pump pump) noexcept nogil
    cdef void note_due(self, Pump pump, bint has_due) noexcept nogil

# cython: language_level=3
# Fields of the wait of bytes for others; _linger.pyx tells what it promises.

from ringmain._low_water cimport LowWater
from ringmain._ring cimport Ring


cdef class Linger:
    cdef readonly int timer_fd          # a timerfd that is readable when `lapse` is due; -1 where there is none
    cdef Ring ring
    cdef LowWater low_water
    cdef double seconds                 # that a byte may wait for others
    cdef Py_ssize_t min_block           # fewer bytes than these wait in the ring
    cdef double held_since              # when the first of them came, 0 for none
    cdef bint overdue                   # they have waited long enough
    cdef bint timing                    # the timer is set

    cdef bint arrived(self, Py_ssize_t size) noexcept
    cdef bint holds_back(self) noexcept
    cdef void taken(self) noexcept
    cdef bint lapse(self) noexcept
    cdef void close_timer(self) noexcept
    cdef void set_timer(self, double seconds) noexcept

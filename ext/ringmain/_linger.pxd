# cython: language_level=3
# Fields of the wait of bytes for others; _linger.pyx tells what it promises.

from ringmain._low_water cimport LowWater
from ringmain._ring cimport Ring


cdef class Timer:
    cdef readonly int timer_fd          # a timerfd that is readable when it is due; -1 where there is none
    cdef bint timing                    # the timer is set

    cdef void open_timer(self) noexcept
    cdef bint rang(self) noexcept
    cdef void close_timer(self) noexcept
    cdef void set_timer(self, double seconds) noexcept


cdef class Linger(Timer):
    cdef Ring ring
    cdef LowWater low_water
    cdef double seconds                 # that a byte may wait for others
    cdef Py_ssize_t min_block           # fewer bytes than these wait in the ring
    cdef double held_since              # when the first of them came, 0 for none
    cdef bint overdue                   # they have waited long enough

    cdef bint arrived(self, Py_ssize_t size) noexcept
    cdef bint holds_back(self) noexcept
    cdef void taken(self) noexcept
    cdef bint lapse(self) noexcept


cdef class Hold(Timer):
    cdef Ring ring
    cdef double seconds                 # that a byte may wait for others; 0: none waits
    cdef Py_ssize_t enough              # as many bytes in a block wait for no others
    cdef Py_ssize_t stored              # bytes in the ring that nobody has taken
    cdef Py_ssize_t released            # how many of them, the first ones, need not wait
    cdef double last                    # when some were released last

    cdef bint waits(self) noexcept
    cdef void taken(self, Py_ssize_t size) noexcept
    cdef void release(self) noexcept
    cdef void judge(self) noexcept

# cython: language_level=3
# Fields of a loop of pumps; _pump_loop.pyx tells what they promise.

from ringmain._pump cimport Pump


cdef class PumpLoop:
    cdef int wake_fd                    # an eventfd, readable once there is a new pump or one was told to stop
    cdef object start                   # starts a thread
    cdef list news                      # pumps that `run` has not seen
    cdef bint running                   # a thread is in `run`, or about to be
    cdef bint woken                     # there are news
    cdef bint inseparable               # there is no thread for a second pump

    cdef bint crowded(self, Pump one, Pump other) noexcept nogil
    cdef Pump part_with(self, Pump pump)
    cpdef void wake(self) noexcept
    cdef void serve(self, Pump one, Pump other) noexcept nogil

# cython: language_level=3
# Fields of the policy that raises a socket's receive low-water mark; _low_water.pyx tells what it promises.


cdef class LowWater:
    cdef readonly int fd
    cdef readonly double linger         # seconds that a byte may wait at most
    cdef readonly Py_ssize_t cap        # bytes, the highest mark
    cdef readonly Py_ssize_t mark       # bytes, the mark in force; 1 is the kernel's own
    cdef Py_ssize_t came                # bytes since `since`
    cdef double since                   # when the period began, on the monotonic clock
    cdef double last                    # when bytes came last
    cdef Py_ssize_t gained              # bytes since the mark was raised
    cdef double pause                   # seconds without a mark that the last vain one has cost
    cdef double paused_until

    cdef void arrived(self, Py_ssize_t size, double now) noexcept nogil
    cdef bint flooding(self) noexcept nogil
    cdef double due(self) noexcept nogil
    cdef void lapse(self) noexcept nogil
    cdef void set_mark(self, Py_ssize_t wish) noexcept nogil

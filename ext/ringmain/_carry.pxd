# cython: language_level=3
# Fields of what one stream has begun of a record; _carry.pyx tells what they promise.

from ringmain._cutter cimport Cutter
from ringmain._ring cimport Counters


cdef class Carry:
    cdef readonly Counters counters
    cdef Cutter cutter
    cdef Py_ssize_t max_record
    cdef bint skips                     # records that outgrow max_record are left out
    cdef char* data                     # `capacity` bytes, or NULL
    cdef Py_ssize_t capacity
    cdef Py_ssize_t size                # bytes of it that came
    cdef Py_ssize_t whole               # of these, how many belong to whole records that wait for room
    cdef long long offset               # where in the stream `data` begins
    cdef bint too_long                  # the record that it begins with has outgrown max_record
    cdef bint skipping                  # the same, and it is being left out
    cdef bint skipped                   # a record was left out
    cdef long long long_at              # where the first record began that was too long
    cdef long long counted              # where what was counted as left out ends

    cdef Py_ssize_t piece(self, const char* data, Py_ssize_t* start, Py_ssize_t seen, Py_ssize_t end) noexcept
    cdef Py_ssize_t reach(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept
    cdef void refuse(self, Py_ssize_t start, Py_ssize_t end) noexcept
    cdef void count_skipped(self, long long offset) noexcept
    cdef bint keep(self, const char* data, Py_ssize_t size) noexcept
    cdef bint append(self, const char* data, Py_ssize_t size) noexcept
    cdef bint make_room(self, Py_ssize_t size) noexcept
    cdef void drop_front(self, Py_ssize_t size) noexcept
    cdef void forget(self) noexcept

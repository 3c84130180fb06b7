# cython: language_level=3
# Fields of what one stream has begun of a record; _carry.pyx tells what they promise.

from ringmain._counters cimport Counters
from ringmain._cutter cimport Cutter
from ringmain._ring cimport Claim


cdef class Carry:
    cdef readonly Counters counters
    cdef Cutter cutter
    cdef bint counted                   # sizes may stand in front of records
    cdef Py_ssize_t max_record
    cdef bint skips                     # records that outgrow max_record are left out
    cdef char* data                     # `capacity` bytes, or NULL
    cdef Py_ssize_t capacity
    cdef Py_ssize_t size                # bytes of it that came
    cdef Py_ssize_t whole               # of these, how many belong to whole records that wait for room
    cdef long long offset               # where in the stream `data` begins
    cdef Claim refusal                  # why what it begins with is no record to be had; CLAIMED: it may be one
    cdef bint skipping                  # a record that is too long is being left out
    cdef long long skip_end             # where in the stream it ends; 0: not known yet
    cdef bint skipped                   # a record was left out
    cdef long long first_skipped        # where the first of these began
    cdef long long refused_at           # where the last record began that was too long or malformed
    cdef long long left_out             # where what was counted as left out ends

    cdef Py_ssize_t piece(self, const char* data, Py_ssize_t* start, Py_ssize_t seen, Py_ssize_t end) noexcept
    cdef bint refuses(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept
    cdef void leave_out(self, Py_ssize_t start, Py_ssize_t end, long long size) noexcept
    cdef long long unfinished(self) noexcept
    cdef void count_skipped(self, long long offset) noexcept
    cdef bint keep(self, const char* data, Py_ssize_t size) noexcept
    cdef bint append(self, const char* data, Py_ssize_t size) noexcept
    cdef bint make_room(self, Py_ssize_t size) noexcept
    cdef void drop_front(self, Py_ssize_t size) noexcept
    cdef void forget(self) noexcept

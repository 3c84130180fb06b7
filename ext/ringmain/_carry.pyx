# cython: language_level=3, boundscheck=False, wraparound=False
"""What one of many streams has begun of a record, while the whole ones go into a ring that all share.

Goal: whole records only, however they come. Cost: a search of what is new; a copy of what is left. A record whose size
stands in front is refused by that, and left out by that, before its bytes are there.
Invariants:
- `data` has the rest of the stream that is in no block yet, less than `max_record` bytes of one record, and in front of
  it at most `whole` bytes that wait for room. Of a record that is left out it has `cutter.overlap` bytes at most.
- Memory is had while there are bytes, and never more than `max_record` of it.
No I/O, no Python: it is called between reading a state and writing it.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.string cimport memcpy, memmove

from ringmain._cutter cimport BAD, UNTOLD
from ringmain._ring cimport MALFORMED, TOO_LONG

cdef extern from *:
    long long PY_LLONG_MAX

cdef Py_ssize_t SMALL = 512  # bytes that are had at least


cdef class Carry:
    """Keep what has come of one stream's last record."""

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    cdef Py_ssize_t piece(self, const char* data, Py_ssize_t* start, Py_ssize_t seen, Py_ssize_t end) noexcept:
        """Return how far one gets by whole records, none of them too long; `start` is moved behind what is left out.

        data: bytes of the stream from `offset` on. Where that is `start` itself there is none, and what is behind it is
        to be kept, unless there is a `refusal`. No record between `start` and `seen` has an end.
        """
        cdef Py_ssize_t found
        while True:
            if self.skipping:
                if self.skip_end == 0:
                    found = self.cutter.first(data, start[0], end)
                else:
                    found = self.skip_end - self.offset if self.skip_end <= self.offset + end else -1
                self.count_skipped(self.offset + (end if found < 0 else found))
                if found < 0:
                    start[0] = max(start[0], end - self.cutter.overlap)
                    return start[0]
                self.skipping = False
                start[0] = found
            if end - start[0] < self.max_record:
                found = max(start[0], self.cutter.last(data, start[0], max(start[0], seen), end))
            else:
                found = self.cutter.reach(data, start[0], end, self.max_record)
            if found > start[0] or not (self.counted or end - found >= self.max_record):
                return found
            if not self.refuses(data, found, end) or not self.skipping:
                return found

    cdef bint refuses(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept:
        """Take note if what begins between two offsets, and is not whole, is too long or no record; tell whether."""
        cdef long long size = self.cutter.size_at(data, start, end)
        if size == BAD:
            self.refused_at = self.offset + start
            self.refusal = MALFORMED
        elif size > self.max_record or end - start >= self.max_record:
            self.leave_out(start, end, size)
        else:
            return False
        return True

    cdef void leave_out(self, Py_ssize_t start, Py_ssize_t end, long long size) noexcept:
        """Take note that the record of which that has come is too long; `size` as `Cutter.size_at` returns it."""
        self.refused_at = self.offset + start
        if not self.skips:
            self.refusal = TOO_LONG
            return
        if not self.skipped:
            self.first_skipped = self.refused_at
        self.skipping = self.skipped = True
        self.skip_end = self.refused_at + min(size, PY_LLONG_MAX - self.refused_at) if size > 0 else 0
        self.counters.skipped_records += 1
        self.left_out = self.refused_at
        self.count_skipped(self.offset + end)

    cdef long long unfinished(self) noexcept:
        """Return where the record begins that has not come whole though its size stands in front, or -1."""
        if self.skipping:
            return self.refused_at if self.skip_end > 0 else -1
        if self.size == 0 or not self.counted:
            return -1
        return self.offset if self.cutter.size_at(self.data, 0, self.size) != UNTOLD else -1

    cdef void count_skipped(self, long long offset) noexcept:
        self.counters.skipped_bytes += offset - self.left_out
        self.left_out = offset

    cdef bint keep(self, const char* data, Py_ssize_t size) noexcept:
        """Have these bytes, which are not in `data`, instead of those that there were; False without memory."""
        self.size = 0
        if size == 0 or self.capacity > 4 * max(size, SMALL):
            self.forget()
        return size == 0 or self.append(data, size)

    cdef bint append(self, const char* data, Py_ssize_t size) noexcept:
        if not self.make_room(size):
            return False
        memcpy(self.data + self.size, data, size)
        self.size += size
        return True

    cdef bint make_room(self, Py_ssize_t size) noexcept:
        """Have memory for that many bytes more, twice what there was, if it is to grow; False without."""
        cdef Py_ssize_t capacity = max(SMALL, self.size + size, min(2 * self.capacity, self.max_record))
        cdef char* data
        if self.size + size <= self.capacity:
            return True
        data = <char*>PyMem_RawRealloc(self.data, capacity)
        if data == NULL:
            return False
        self.data = data
        self.capacity = capacity
        return True

    cdef void drop_front(self, Py_ssize_t size) noexcept:
        """Be rid of the first bytes, and of memory that the others do not need."""
        cdef char* data
        self.size -= size
        self.offset += size
        if self.size == 0:
            self.forget()
        elif size:
            memmove(self.data, self.data + size, self.size)
            if self.capacity > 4 * max(self.size, SMALL):
                data = <char*>PyMem_RawRealloc(self.data, max(self.size, SMALL))
                if data != NULL:
                    self.data = data
                    self.capacity = max(self.size, SMALL)

    cdef void forget(self) noexcept:
        """Let go of all that it has."""
        PyMem_RawFree(self.data)
        self.data = NULL
        self.size = self.capacity = self.whole = 0

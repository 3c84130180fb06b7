# cython: language_level=3, boundscheck=False, wraparound=False
"""What one of many streams has begun of a record, while the whole ones go into a ring that all share.

Goal: whole records only, however they come. Cost: a search of what is new; a copy of what is left.
Invariants:
- `data` has the rest of the stream that is in no block yet, less than `max_record` bytes of one record, and in front of
  it at most `whole` bytes that wait for room. Of a record that is left out it has `cutter.overlap` bytes at most.
- Memory is had while there are bytes, and never more than `max_record` of it.
No I/O, no Python: it is called between reading a state and writing it.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.string cimport memcpy, memmove

cdef Py_ssize_t SMALL = 512  # bytes that are had at least


cdef class Carry:
    """Keep what has come of one stream's last record."""

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    cdef Py_ssize_t piece(self, const char* data, Py_ssize_t* start, Py_ssize_t seen, Py_ssize_t end) noexcept:
        """Return how far one gets by whole records, none of them too long; `start` is moved behind what is left out.

        data: bytes of the stream from `offset` on. Where that is `start` itself there is none, and what is behind it is
        to be kept, unless it is `too_long`. No record between `start` and `seen` has an end.
        """
        cdef Py_ssize_t found
        while True:
            if self.skipping:
                found = self.cutter.first(data, start[0], end)
                self.count_skipped(self.offset + (end if found < 0 else found))
                if found < 0:
                    start[0] = max(start[0], end - self.cutter.overlap)
                    return start[0]
                self.skipping = False
                start[0] = found
            if end - start[0] < self.max_record:
                return max(start[0], self.cutter.last(data, start[0], max(start[0], seen), end))
            found = self.reach(data, start[0], end)
            if found > start[0] or end - found < self.max_record:
                return found
            self.refuse(found, end)
            if self.too_long:
                return found
            start[0] = found

    cdef Py_ssize_t reach(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept:
        """Return how far one can get from `start` by whole records, none longer than `max_record`."""
        cdef Py_ssize_t found
        while start < end:
            found = self.cutter.last(data, start, start, start + min(end - start, self.max_record))
            if found < 0:
                break
            start = found
        return start

    cdef void refuse(self, Py_ssize_t start, Py_ssize_t end) noexcept:
        """Take note that the record between two offsets of the data is too long."""
        if not self.skipped:
            self.long_at = self.offset + start
        if self.skips:
            self.skipping = self.skipped = True
            self.counters.skipped_records += 1
            self.counted = self.offset + start
            self.count_skipped(self.offset + end)
        else:
            self.too_long = True

    cdef void count_skipped(self, long long offset) noexcept:
        self.counters.skipped_bytes += offset - self.counted
        self.counted = offset

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

# cython: language_level=3
"""Where records end: all that a ring knows of what is in its blocks.

No I/O, no Python but for `last_end`: the ring calls it between reading its state and writing it, where it may not
raise. Nothing is kept of what is looked at: one cutter serves any number of streams.
"""


cdef class Cutter:
    """Tell where records end.

    Of a record that is thrown away, `overlap` bytes are kept, since its end may begin in them. `max_record` has to be
    `least` bytes at least. Where `counted`, sizes may stand in front of records.
    """

    cdef Py_ssize_t first(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Return the offset behind the first record that ends between two offsets, or -1.

        One without a size in front begins at `start`, or goes on there.
        """
        return -1

    cdef Py_ssize_t last(self, const char* data, Py_ssize_t start, Py_ssize_t seen, Py_ssize_t end) noexcept nogil:
        """Return the same of the last record; one of any kind begins at `start`, and none ends before `seen`."""
        return -1

    cdef long long size_at(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Return the size, all included, of the record that begins at `start`, or UNTOLD, SHORT or BAD."""
        return UNTOLD

    cdef Py_ssize_t trim(self, const char* data, Py_ssize_t start, Py_ssize_t* header, Py_ssize_t* end) noexcept nogil:
        """Return the offset behind the record that begins at `start`, or -1 if it has no end before `end`.

        `header` becomes the size of what stands in front of its content, `end` the offset behind that.
        """
        return -1

    cdef Py_ssize_t reach(
        self, const char* data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t longest
    ) noexcept nogil:
        """Return how far one can get from `start` by whole records, none longer than that."""
        cdef Py_ssize_t found
        while start < end:
            found = self.last(data, start, start, start + min(end - start, longest))
            if found < 0:
                break
            start = found
        return start

    def last_end(self, bytearray data not None, Py_ssize_t seen, Py_ssize_t end):
        """Return the offset behind the last whole record of the first `end` bytes; 0 if none ends behind `seen`."""
        if not 0 <= seen <= end <= len(data):
            raise ValueError("offsets beyond the data")
        return max(0, self.last(data, 0, seen, end))

    cdef Py_ssize_t behind(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Return the offset behind the record that begins at `start` and is there whole."""
        cdef long long size = self.size_at(data, start, end)
        return start + size if size > 0 else self.first(data, start, end)

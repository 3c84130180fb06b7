# cython: language_level=3, boundscheck=False, wraparound=False
"""Where records end that have a delimiter behind them. Each octet is looked at about once, however the data came."""

from libc.string cimport memchr, memcmp

from ringmain._cutter cimport Cutter

cdef extern from *:
    """
    #include <string.h>
    #ifndef __linux__
    static void* memrchr(const void* bytes, int byte, size_t size) {
        for (const char* end = (const char*)bytes + size; size > 0; size--)
            if (*--end == (char)byte) return (void*)end;
        return NULL;
    }
    #endif
    """
    void* memrchr(const void* bytes, int byte, size_t size) noexcept nogil


cdef class Delimiter(Cutter):
    """Tell where records end that have these octets, one or more, behind them."""

    def __cinit__(self, bytes octets not None):
        self.octets = octets
        self.first_octet = octets
        self.size = len(octets)
        self.overlap = self.size - 1
        self.least = max(1, self.size)
        # Where a delimiter may begin within another, which of them count is told from the front of a record only.
        self.ambiguous = any([octets.startswith(octets[size:]) for size in range(1, self.size)])

    cdef Py_ssize_t first(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Return the offset behind the first record that ends between two offsets, or -1."""
        cdef Py_ssize_t at = start + self.overlap
        cdef const char* found
        while at < end:
            found = <const char*>memchr(data + at, self.first_octet[self.overlap], end - at)
            if found == NULL:
                break
            at = found + 1 - data
            if memcmp(data + at - self.size, self.first_octet, self.size) == 0:
                return at
        return -1

    cdef Py_ssize_t last(self, const char* data, Py_ssize_t start, Py_ssize_t seen, Py_ssize_t end) noexcept nogil:
        """Return the same of the last record; none ends between `start` and `seen`."""
        cdef Py_ssize_t stop = max(start, seen - self.overlap) + self.overlap
        cdef Py_ssize_t found = -1
        cdef const char* hit
        if self.ambiguous:
            start = stop - self.overlap
            while (start := self.first(data, start, end)) >= 0:
                found = start
            return found
        while end > stop:
            hit = <const char*>memrchr(data + stop, self.first_octet[self.overlap], end - stop)
            if hit == NULL:
                break
            end = hit + 1 - data
            if memcmp(data + end - self.size, self.first_octet, self.size) == 0:
                return end
            end -= 1
        return -1

    cdef Py_ssize_t trim(self, const char* data, Py_ssize_t start, Py_ssize_t* header, Py_ssize_t* end) noexcept nogil:
        """Return the offset behind the record that begins at `start`, or -1 if it has no end before `end`."""
        cdef Py_ssize_t behind = self.first(data, start, end[0])
        header[0] = 0
        end[0] = behind - self.size
        return behind

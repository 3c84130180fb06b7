# cython: language_level=3, boundscheck=False, wraparound=False
"""Where frames end, whose sizes stand in front: binary lengths, and the octet counting of syslog (RFC 6587).

Cost: each frame's head is looked at about once, and once more a read for one that has come in part. Its content is not
looked at, but that of a line of syslog (RFC 6587, 3.4.2), of which each octet is, about once.
"""

from libc.string cimport memchr

from ringmain._cutter cimport BAD, SHORT, UNTOLD, Cutter

cdef enum:
    DIGITS = 10  # of an octet count: 9 GB, where no syslog message has 1 MB


cdef class Frames(Cutter):
    """Tell where frames end.

    width: 1 to 8 bytes of a binary length, which counts what follows it; `little` if its first byte is the lowest. 0 is
    syslog's octet counting: digits that count what follows the space behind them, or "<" and a line.
    """

    def __cinit__(self, int width=0, bint little=False):
        if not 0 <= width <= 8:
            raise ValueError("a length has 8 bytes at most")
        self.width = width
        self.little = little
        self.counted = True
        self.least = width or DIGITS + 1

    cdef Py_ssize_t first(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Return the offset behind the first line that ends between two offsets, or -1."""
        cdef const char* hit = <const char*>memchr(data + start, c"\n", end - start) if end > start else NULL
        return hit + 1 - data if hit != NULL else -1

    cdef Py_ssize_t last(self, const char* data, Py_ssize_t start, Py_ssize_t seen, Py_ssize_t end) noexcept nogil:
        """Return the offset behind the last frame that ends before `end`, or -1; none ends before `seen`."""
        cdef Py_ssize_t found = -1
        cdef long long size
        while start < end:
            size = self.size_at(data, start, end)
            if size == UNTOLD:
                start = self.first(data, max(start, seen), end)
                if start < 0:
                    break
            elif 0 < size <= end - start:
                start += size
            else:
                break
            found = start
        return found

    cdef long long size_at(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Return the size, head included, of the frame that begins at `start`, or UNTOLD, SHORT or BAD."""
        cdef const unsigned char* head = <const unsigned char*>data + start
        cdef Py_ssize_t size = end - start
        cdef unsigned long long length = 0
        cdef int at
        if size <= 0:
            return SHORT
        if self.width == 0:
            return UNTOLD if head[0] == c"<" else size_of_counted(head, size)
        if size < self.width:
            return SHORT
        for at in range(self.width):
            length = length << 8 | head[self.width - 1 - at if self.little else at]
        return <long long>length + self.width if length < (1ULL << 63) - 8 else BAD

    cdef Py_ssize_t trim(self, const char* data, Py_ssize_t start, Py_ssize_t* header, Py_ssize_t* end) noexcept nogil:
        """Return the offset behind the frame that begins at `start`, or -1 if it has no end before `end`."""
        cdef long long size = self.size_at(data, start, end[0])
        cdef Py_ssize_t behind
        header[0] = self.width
        if size == UNTOLD:
            behind = self.first(data, start, end[0])
            end[0] = behind - 1
            return behind
        if not 0 < size <= end[0] - start:
            return -1
        if self.width == 0:
            while data[start + header[0]] != c" ":
                header[0] += 1
            header[0] += 1
        end[0] = start + size
        return end[0]


cdef long long size_of_counted(const unsigned char* head, Py_ssize_t size) noexcept nogil:
    """Return the size of a frame that has its octet count in front: a digit but 0, other digits, and a space."""
    cdef long long count = 0
    cdef int at
    for at in range(<int>min(size, DIGITS + 1)):
        if head[at] == c" " and at > 0:
            return count + at + 1
        if not (c"0" if at > 0 else c"1") <= head[at] <= c"9":
            return BAD
        count = 10 * count + (head[at] - c"0")
    return SHORT if size <= DIGITS else BAD

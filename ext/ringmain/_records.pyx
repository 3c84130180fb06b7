# cython: language_level=3, boundscheck=False, wraparound=False
"""Where the records of a buffer end: lines at the speed of memchr(3), CSV by following its quotes. Outside the GIL.

No I/O, no event loop, nothing kept of what is looked at.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t
from libc.string cimport memchr

cdef enum:
    NEWLINE = 10
    RETURN = 13

cdef enum State:
    AT_FIELD  # where a quote opens a quoted field
    IN_FIELD
    IN_FIELD_ESCAPED
    IN_QUOTES
    IN_QUOTES_ESCAPED
    BEHIND_QUOTE  # which closes the field, unless another one follows


def after(object data, unsigned char delimiter, Py_ssize_t start, Py_ssize_t count):
    """Return (offset, found): where `count` records from `start` on end, each with its delimiter.

    `data` is a contiguous buffer. Where it has fewer, `offset` is behind the last one found, or `start`.
    """
    cdef Py_buffer buffer
    cdef const char* base
    cdef const char* hit
    cdef Py_ssize_t offset = start
    cdef Py_ssize_t found = 0
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        if not 0 <= start <= buffer.len:
            raise IndexError(start)
        base = <const char*>buffer.buf
        with nogil:
            while found < count:
                hit = <const char*>memchr(base + offset, delimiter, buffer.len - offset)
                if hit == NULL:
                    break
                offset = hit - base + 1
                found += 1
    finally:
        PyBuffer_Release(&buffer)
    return offset, found


def line_ends(object data):
    """Return the offset behind each line, the unterminated last one's too, as a memoryview of int64."""
    cdef CsvRecords lines = CsvRecords(-1, -1, -1)
    lines.only_newlines = True
    return lines.ends(data)


cdef class CsvRecords:
    r"""Tell where the records of CSV end, as the chunker of Arrow does: "\n", "\r" or "\r\n" outside of quotes.

    A quote opens only at the beginning of a field; anywhere else it is a character like others. delimiter, quote and
    escape are octets, -1 for none. Each octet is looked at once, however the data is cut.
    """
    cdef int delimiter
    cdef int quote
    cdef int escape
    cdef bint double_quote
    cdef bint only_newlines
    cdef State state

    def __init__(self, int delimiter, int quote, int escape, bint double_quote=True):
        self.delimiter = delimiter
        self.quote = quote
        self.escape = escape
        self.double_quote = double_quote
        self.state = AT_FIELD

    def reset(self):
        """Expect the first octet of a record."""
        self.state = AT_FIELD

    def last_end(self, object data):
        """Return the offset behind the last record that ends in the data, 0 if none does. The data goes on next time.

        Where the data is plain lines that is looked for no further than needed.
        """
        cdef Py_buffer buffer
        cdef const char* base
        cdef Py_ssize_t end, found
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            base = <const char*>buffer.buf
            with nogil:
                found = 0
                if self.is_plain(base, buffer.len):
                    found = buffer.len
                else:
                    end = self.next_end(base, 0, buffer.len)
                    while end >= 0:
                        found = end
                        end = self.next_end(base, found, buffer.len)
        finally:
            PyBuffer_Release(&buffer)
        return found

    def first_end(self, object data):
        """Return the offset behind the first record of the data, its length if that does not end in it."""
        cdef Py_buffer buffer
        cdef Py_ssize_t end
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            self.state = AT_FIELD
            end = self.next_end(<const char*>buffer.buf, 0, buffer.len)
            return buffer.len if end < 0 else end
        finally:
            PyBuffer_Release(&buffer)

    def ends(self, object data):
        """Return the offset behind each record, the unterminated last one's too, as a memoryview of int64.

        The data begins with a record.
        """
        cdef Py_buffer buffer
        cdef Py_ssize_t count
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                count = self.write_ends(<const char*>buffer.buf, buffer.len, NULL)
            offsets = bytearray(count * sizeof(int64_t))
            if count:
                self.write_ends(<const char*>buffer.buf, buffer.len, <int64_t*><char*>offsets)
            return memoryview(offsets).cast("q")
        finally:
            PyBuffer_Release(&buffer)

    def are_lines(self, object data):
        """Tell whether a record ends where each line of the data does. The data begins with a record."""
        cdef Py_buffer buffer
        cdef bint are
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                are = self.end_as_lines(<const char*>buffer.buf, buffer.len)
        finally:
            PyBuffer_Release(&buffer)
        return are

    cdef bint end_as_lines(self, const char* base, Py_ssize_t size) noexcept nogil:
        cdef const char* newline
        cdef Py_ssize_t end
        cdef Py_ssize_t at = 0
        self.state = AT_FIELD
        if self.is_plain(base, size):
            return True
        while at < size:
            newline = <const char*>memchr(base + at, NEWLINE, size - at)
            end = self.next_end(base, at, size)
            if end < 0 or (newline != NULL and newline - base + 1 < end):
                return False
            at = end
        return True

    cdef Py_ssize_t write_ends(self, const char* base, Py_ssize_t size, int64_t* ends) noexcept nogil:
        """Write the offsets where `ends` is not NULL; return their number."""
        cdef Py_ssize_t count = 0
        cdef Py_ssize_t at = 0
        self.state = AT_FIELD
        while at < size:
            at = self.next_end(base, at, size)
            if at < 0:
                at = size
            if ends != NULL:
                ends[count] = at
            count += 1
        return count

    cdef bint is_plain(self, const char* base, Py_ssize_t size) noexcept nogil:
        """Tell whether the data is whole lines without a quote or an escape."""
        return (
            self.state == AT_FIELD and size > 0 and base[size - 1] == NEWLINE
            and (self.quote < 0 or memchr(base, self.quote, size) == NULL)
            and (self.escape < 0 or memchr(base, self.escape, size) == NULL)
        )

    cdef Py_ssize_t next_end(self, const char* base, Py_ssize_t at, Py_ssize_t size) noexcept nogil:
        """Return the offset behind the record that goes on at `at`, or -1 and keep the state it is in."""
        cdef State state = self.state
        cdef const char* hit
        cdef unsigned char octet
        if self.only_newlines:
            hit = <const char*>memchr(base + at, NEWLINE, size - at)
            return -1 if hit == NULL else hit - base + 1
        while at < size:
            octet = <unsigned char>base[at]
            if state == BEHIND_QUOTE:
                state = IN_FIELD
                if octet == self.quote and self.double_quote:
                    state = IN_QUOTES
                    at += 1
                continue
            at += 1
            if state == IN_FIELD_ESCAPED:
                state = IN_FIELD
            elif state == IN_QUOTES_ESCAPED:
                state = IN_QUOTES
            elif state == IN_QUOTES:
                if octet == self.escape:
                    state = IN_QUOTES_ESCAPED
                elif octet == self.quote:
                    state = BEHIND_QUOTE
            elif state == AT_FIELD and octet == self.quote:
                state = IN_QUOTES
            elif octet == self.escape:
                state = IN_FIELD_ESCAPED
            elif octet == self.delimiter:
                state = AT_FIELD
            elif octet == NEWLINE or octet == RETURN:
                if octet == RETURN and at < size and base[at] == NEWLINE:
                    at += 1
                self.state = AT_FIELD
                return at
            else:
                state = IN_FIELD
        self.state = state
        return -1

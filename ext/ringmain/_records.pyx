# cython: language_level=3, boundscheck=False, wraparound=False
"""Where the records of a buffer end: lines at the speed of memchr(3), CSV by following its quotes. Outside the GIL.

No I/O, no event loop, nothing kept of what is looked at.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport int64_t, uint64_t
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


def split_value(object data, bint objects=False, Py_ssize_t depth=0):
    """Return the offset of the first line that holds only a part of a JSON value, or -1.

    Between two parts of one value there is always a bracket, a comma or a colon: no line of whole values ends in
    one of [{,: and none begins with one of ]},: in JSON. With `objects` each line must also begin with { and end
    with }, and with a `depth` no value may be nested deeper than that. Blank lines are passed over. Whether a line is
    JSON at all is for the parser to find out.
    """
    cdef Py_buffer buffer
    cdef const char* base
    cdef const char* hit
    cdef Py_ssize_t found = -1
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t end
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        base = <const char*>buffer.buf
        with nogil:
            while at < buffer.len:
                hit = <const char*>memchr(base + at, NEWLINE, buffer.len - at)
                end = buffer.len if hit == NULL else hit - base
                if not holds_values(base + at, base + end, objects) or 0 < depth < depth_of(base + at, base + end):
                    found = at
                    break
                at = end + 1
    finally:
        PyBuffer_Release(&buffer)
    return found


cdef enum:
    LEVELS = 256
    SLOTS = 1 << 16


def fields_of(object data, uint64_t seed, Py_ssize_t most):
    """Return how many different fields the objects of some JSON have, inner ones too; at most `most` + 1 are counted.

    most: below 2 ** 15. A secret seed keeps strangers from fields that are taken for one.
    """
    cdef Py_buffer buffer
    cdef Py_ssize_t count
    cdef uint64_t* slots = <uint64_t*>PyMem_RawCalloc(SLOTS, sizeof(uint64_t))
    if slots == NULL:
        raise MemoryError
    try:
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                count = count_fields(<const char*>buffer.buf, <const char*>buffer.buf + buffer.len, seed, slots, most)
        finally:
            PyBuffer_Release(&buffer)
    finally:
        PyMem_RawFree(slots)
    return count


cdef Py_ssize_t count_fields(
    const char* at, const char* end, uint64_t seed, uint64_t* slots, Py_ssize_t most
) noexcept nogil:
    cdef uint64_t path[LEVELS]  # the field that is being read at each level, with those around it
    cdef uint64_t name
    cdef Py_ssize_t depth = 0
    cdef Py_ssize_t count = 0
    path[0] = seed
    while at < end and count <= most:
        if at[0] == c'"':
            name = path[depth - 1 if depth > 0 else 0]
            at += 1
            while at < end and at[0] != c'"':
                if at[0] == c"\\" and at + 1 < end:
                    at += 1
                name = (name ^ <unsigned char>at[0]) * <uint64_t>0x9E3779B97F4A7C15
                name ^= name >> 29
                at += 1
            at += 1
            while at < end and (is_space(at[0]) or at[0] == NEWLINE):
                at += 1
            if at < end and at[0] == c":":
                path[depth] = name | 1  # 0 is an empty slot
                count += is_new(path[depth], slots)
            continue
        if (at[0] == c"{" or at[0] == c"[") and depth < LEVELS - 1:
            depth += 1
            path[depth] = path[depth - 1]
        elif (at[0] == c"}" or at[0] == c"]") and depth > 0:
            depth -= 1
        at += 1
    return count


cdef bint is_new(uint64_t path, uint64_t* slots) noexcept nogil:
    cdef size_t slot = <size_t>(path >> 20) % SLOTS
    while slots[slot] != 0:
        if slots[slot] == path:
            return False
        slot = (slot + 1) % SLOTS
    slots[slot] = path
    return True


cdef bint holds_values(const char* first, const char* end, bint objects) noexcept nogil:
    while first < end and is_space(first[0]):
        first += 1
    if first == end:
        return True
    while is_space((end - 1)[0]):
        end -= 1
    if objects:
        return first[0] == c"{" and (end - 1)[0] == c"}"
    return not (
        first[0] == c"]" or first[0] == c"}" or first[0] == c"," or first[0] == c":"
        or (end - 1)[0] == c"[" or (end - 1)[0] == c"{" or (end - 1)[0] == c"," or (end - 1)[0] == c":"
    )


cdef Py_ssize_t depth_of(const char* at, const char* end) noexcept nogil:
    """Return how deep brackets are nested outside of strings."""
    cdef Py_ssize_t depth = 0
    cdef Py_ssize_t deepest = 0
    cdef bint in_string = False
    while at < end:
        if in_string:
            if at[0] == c"\\":
                at += 1
            elif at[0] == c'"':
                in_string = False
        elif at[0] == c'"':
            in_string = True
        elif at[0] == c"{" or at[0] == c"[":
            depth += 1
            deepest = max(deepest, depth)
        elif at[0] == c"}" or at[0] == c"]":
            depth -= 1
        at += 1
    return deepest


cdef bint is_space(char octet) noexcept nogil:
    return octet == c" " or octet == c"\t" or octet == RETURN

# cython: language_level=3, boundscheck=False, wraparound=False
"""What text of JSON has, looked at before it is parsed: values in parts, how deep they are, how many fields.

Outside the GIL. No I/O, nothing kept of what is looked at.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport uint64_t
from libc.string cimport memchr

cdef enum:
    NEWLINE = 10
    RETURN = 13
    LEVELS = 256
    SLOTS = 1 << 16


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

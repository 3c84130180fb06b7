# cython: language_level=3
"""Count delimiters at the speed of memchr(3), outside the GIL."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memchr


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

# cython: language_level=3
# What the ring asks about where records end; _delimiter.pyx tells what is promised.

cimport cython


@cython.final
cdef class Delimiter:
    cdef bytes octets
    cdef const char* first_octet
    cdef Py_ssize_t size
    cdef Py_ssize_t overlap                 # bytes at the end of what was searched that may begin a delimiter
    cdef bint ambiguous                     # one may begin within another, as in b"aba"

    cdef Py_ssize_t first(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    cdef Py_ssize_t last(self, const char* data, Py_ssize_t start, Py_ssize_t seen, Py_ssize_t end) noexcept nogil

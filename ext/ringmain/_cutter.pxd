# cython: language_level=3
# What a ring asks about where records end; _cutter.pyx tells what is promised.


cdef class Cutter:
    cdef Py_ssize_t overlap                 # bytes at the end of what was searched that the end of a record may begin in

    cdef Py_ssize_t first(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    cdef Py_ssize_t last(self, const char* data, Py_ssize_t start, Py_ssize_t seen, Py_ssize_t end) noexcept nogil

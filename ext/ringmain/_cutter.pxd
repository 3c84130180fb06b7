# cython: language_level=3
# What a ring asks about where records end; _cutter.pyx tells what is promised.

cdef enum:
    UNTOLD = 0              # no size stands in front of this record, which ends at a delimiter
    SHORT = -1              # its size has come only in part
    BAD = -2                # no record begins like this


cdef class Cutter:
    cdef Py_ssize_t overlap                 # bytes at the end of what was searched where the end of a record may begin
    cdef readonly Py_ssize_t least          # what max_record has to be: a size that stands in front, or a delimiter
    cdef bint counted                       # sizes may stand in front of records

    cdef Py_ssize_t first(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    cdef Py_ssize_t last(self, const char* data, Py_ssize_t start, Py_ssize_t seen, Py_ssize_t end) noexcept nogil
    cdef Py_ssize_t reach(
        self, const char* data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t longest
    ) noexcept nogil
    cdef Py_ssize_t behind(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    cdef long long size_at(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    cdef Py_ssize_t trim(self, const char* data, Py_ssize_t start, Py_ssize_t* header, Py_ssize_t* end) noexcept nogil

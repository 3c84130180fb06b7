# cython: language_level=3
# A queue of whose bytes follow each other; _runs.pyx tells what it promises.

cimport cython
from cpython.object cimport PyObject

cdef struct Run:
    PyObject* owner                     # borrowed
    Py_ssize_t size
    long long end                       # where in the owner's stream it ends


@cython.final
cdef class Runs:
    cdef Run* items                     # `capacity` of them, a power of two
    cdef size_t capacity, head
    cdef size_t count

    cdef bint append(self, PyObject* owner, Py_ssize_t size, long long end) noexcept
    cdef Run* first(self) noexcept
    cdef void drop_first(self) noexcept

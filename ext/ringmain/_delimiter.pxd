# cython: language_level=3
# A cutter at octets; _delimiter.pyx tells how.

cimport cython

from ringmain._cutter cimport Cutter


@cython.final
cdef class Delimiter(Cutter):
    cdef bytes octets
    cdef const char* first_octet
    cdef Py_ssize_t size
    cdef bint ambiguous                     # one may begin within another, as in b"aba"

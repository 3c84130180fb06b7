# cython: language_level=3
# Fields of what streams share that are read into one ring; _sorter.pyx tells what they promise.

from ringmain._cutter cimport Cutter
from ringmain._linger cimport Hold
from ringmain._member cimport Host, Member
from ringmain._runs cimport Runs

cdef enum:
    STALLED = -1            # instead of how much was read: the ring has no room


cdef class Sorter(Host):
    cdef Cutter cutter
    cdef Py_ssize_t max_record
    cdef bytes terminator
    cdef bint skips
    cdef readonly bint closed
    cdef set members                    # those that are read, and those of which the consumer has not had all
    cdef list gone                      # members of which all was taken after their verdict
    cdef Runs runs                      # whose the bytes are that the ring has
    cdef size_t most_runs
    cdef Hold hold                      # what of that may be taken
    cdef Member stuck                   # the one that has whole records for which the ring has no room
    cdef Py_ssize_t quantum             # bytes that each is read at most in this round
    cdef Py_ssize_t least               # the smallest window worth a system call
    cdef Py_ssize_t large               # a carry of so many bytes is read to by itself

    cdef Py_ssize_t read(self, Member member) except? -2
    cdef Py_ssize_t read_behind(self, Member member) except? -2
    cdef Py_ssize_t read_apart(self, Member member) except? -2
    cdef int sort(self, Member member, char* data, Py_ssize_t seen, Py_ssize_t end) except -1
    cdef int cut(self, Member member, Py_ssize_t seen) except -1
    cdef int judge(self, Member member) except -1
    cdef bint wind_up(self, Member member) except -1
    cdef int complete(self, Member member) except -1
    cdef bint flush(self, Member member) except -1
    cdef bint claim(self, Py_ssize_t at_least) except -1
    cdef object lend(self, bint tagged)
    cdef int strike(self, Py_ssize_t size) except -1

# cython: language_level=3
# Fields of a TLS session, and how _tls_receiver reads by it.

from ringmain._read_ahead cimport Ahead
from ringmain._write_behind cimport Behind


cdef class Session:
    cdef readonly str version           # "TLSv1.3" or the like
    cdef readonly object cipher         # OpenSSL's name of the suite
    cdef object sock
    cdef object sslobj                  # keeps the SSL inside it alive
    cdef void* connection               # that SSL, or NULL for Python's own calls
    cdef Ahead* source                  # what that reads from, or NULL
    cdef Behind* sink                   # what that writes to, or NULL
    cdef object error                   # what the last read that failed has failed by
    cdef char* window                   # what Python's own read fills, and its size
    cdef Py_ssize_t room
    cdef size_t limit                   # what a record holds at most
    cdef size_t record                  # of Python's own write: see `begun`
    cdef object stopped                 # what stopped a write that had written something: the next one raises it
    cdef object failure                 # raised by every write from now on
    cdef object heard                   # raised by every `read` from now on

    cdef int read_ahead(self) except -1
    cdef int read_into(self, char* window, size_t room, size_t* filled, long* records) except -1
    cdef tuple verdict(self, bint heard_reset)
    cdef int read_by_python(self, char* window, size_t room, size_t* filled, long* records) except -1
    cdef Py_ssize_t write_by_python(self, object data) except -1
    cdef object exception_for(self, int answer, int number)
    cdef object true_error(self, object error)

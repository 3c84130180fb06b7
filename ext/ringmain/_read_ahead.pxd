# cython: language_level=3
# The source of a TLS connection's bytes, and what it has read ahead.

cdef struct Ahead:
    void* connection
    int fd
    bint ended
    char* data              # AHEAD bytes, or NULL: OpenSSL gets no more from the kernel than it asks for
    char* start
    char* end
    Py_ssize_t budget       # bytes that may still be taken from the kernel, then a pause
    bint spent              # the last read paused because of that
    double allowed          # messages without data that the peer may still send
    double counted          # when `allowed` was true
    bint refused            # it has sent more

cdef Ahead* bounded(object sslobj, int fd) except? NULL
cdef void allot(Ahead* ahead) noexcept
cdef int read_records(
    Ahead* ahead, char* window, size_t room, size_t* filled, long* records, int* number
) noexcept nogil

# cython: language_level=3
# What _tls_receiver and _tls_sender use of libssl; _libssl.pyx tells how it is found.

# Answers of SSL_get_error, <openssl/ssl.h>.
cdef enum:
    SSL_ERROR_NONE = 0
    SSL_ERROR_SSL = 1
    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_WANT_WRITE = 3
    SSL_ERROR_ZERO_RETURN = 6

# The source of a connection's bytes, and what it has read ahead.
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
cdef Ahead* read_ahead_of(object sslobj, int fd) except? NULL
cdef int read_records(
    Ahead* ahead, char* window, size_t room, size_t* filled, long* records, int* number
) noexcept nogil
cdef void* connection_of(object sslobj) except? NULL
cdef size_t record_limit(void* connection) noexcept
cdef int write_records(
    void* connection, const char* data, size_t size, size_t limit, size_t* begun, size_t* written, int* number
) noexcept nogil
cdef object error_of(int answer, int number)

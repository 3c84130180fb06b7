# cython: language_level=3, boundscheck=False, wraparound=False
"""Send a TLS stream a record at a time, so that it is known which bytes the peer can have decrypted.

OpenSSL takes a write whole or not at all: of several records that are written at once and broken off, the peer may
have some, and nobody can tell which. A record that the kernel has only in part cannot be decrypted.
Records go out in a loop outside the GIL by way of _libssl; where that cannot be, by Python's own `write`. A peer that
has asked for smaller records (max_fragment_length, RFC 6066) gets one of those at a time.
"""

import ssl

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from ringmain._libssl cimport (
    SSL_ERROR_NONE,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN,
    Ahead,
    bounded,
    connection_of,
    error_of,
    read_records,
    record_limit,
    write_records,
)

from ringmain._tls_receiver import true_error

cdef Py_ssize_t RECORD = 16 << 10


cdef class TlsSender:
    """Write to a handshaken, non-blocking `ssl.SSLSocket`, and read what its peer sends, to throw it away."""

    cdef object sock
    cdef object sslobj                  # keeps the SSL inside it alive
    cdef void* connection               # that SSL, or NULL for Python's own calls
    cdef Ahead* source                  # what that reads from, or NULL
    cdef size_t limit                   # what a record holds at most
    cdef size_t record                  # see `begun`
    cdef object stopped                 # what stopped a write that had written something: the next one raises it
    cdef object failure                 # raised by every write from now on
    cdef object heard                   # raised by every read from now on

    def __init__(self, sock):
        self.sock, self.sslobj = sock, sock._sslobj
        self.connection = connection_of(self.sslobj)
        self.source = bounded(self.sslobj, sock.fileno())
        self.limit = record_limit(self.connection) if self.connection != NULL else RECORD

    @property
    def begun(self):
        """The size of a record that the kernel has in part, or 0: the next write must begin with the same bytes."""
        return self.record

    def write(self, data):
        """Write records until all is with the kernel or it takes no more; return how many bytes the whole ones have.

        Raises SSLWantWriteError or SSLWantReadError instead of returning 0, and OSError for a connection that broke.
        """
        cdef Py_buffer buffer
        cdef size_t written = 0
        cdef int number = 0
        cdef int answer
        if self.failure is not None:
            raise self.failure
        if self.stopped is not None:
            error, self.stopped = self.stopped, None
            raise error
        if self.connection == NULL:
            return self.write_by_python(data)
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                answer = write_records(
                    self.connection, <const char*>buffer.buf, buffer.len, self.limit, &self.record, &written, &number
                )
        finally:
            PyBuffer_Release(&buffer)
        if answer == SSL_ERROR_NONE:
            return written
        error = self.failed(answer, number)
        if answer != SSL_ERROR_WANT_WRITE and answer != SSL_ERROR_WANT_READ:
            self.failure = error
        elif written:
            self.stopped = error
        if written:
            return written
        raise error

    def read(self, buffer):
        """Read into a buffer; return how much, 0 after close_notify. Raises as `write`."""
        cdef Py_buffer view
        cdef size_t got = 0
        cdef long records = 0
        cdef int number = 0
        cdef int answer
        if self.heard is not None:
            raise self.heard
        if self.source == NULL:
            try:
                return self.sslobj.read(len(buffer), buffer)
            except ssl.SSLEOFError as error:
                raise true_error(error, self.sock) from None
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            with nogil:
                answer = read_records(self.source, <char*>view.buf, view.len, &got, &records, &number)
        finally:
            PyBuffer_Release(&view)
        if answer not in (SSL_ERROR_NONE, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN):
            self.heard = error_of(answer, number)  # an alert is told once
        if got or answer == SSL_ERROR_ZERO_RETURN:
            return got
        raise self.heard or self.failed(SSL_ERROR_WANT_READ if answer == SSL_ERROR_NONE else answer, number)

    cdef object failed(self, int answer, int number):
        if answer == SSL_ERROR_WANT_WRITE:
            return ssl.SSLWantWriteError(answer, "the socket is full")
        if answer == SSL_ERROR_WANT_READ:
            return ssl.SSLWantReadError(answer, "the socket is empty")
        if answer == SSL_ERROR_ZERO_RETURN:  # it said goodbye before it closed, which is why the kernel takes no more
            return ssl.SSLZeroReturnError(answer, "the peer closed the connection")
        return error_of(answer, number)

    cdef Py_ssize_t write_by_python(self, object data) except -1:
        """Write one record; else as `write`."""
        cdef Py_ssize_t size = self.record if self.record else min(RECORD, len(data))
        self.record = size
        try:
            self.sslobj.write(data[:size])
        except ssl.SSLEOFError as error:
            raise true_error(error, self.sock) from None
        self.record = 0
        return size

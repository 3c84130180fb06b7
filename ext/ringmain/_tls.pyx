# cython: language_level=3, boundscheck=False, wraparound=False
"""One TLS session, over the libssl that Python has loaded: read into a window, write records, end, tell errors apart.

Many records a call are read and written in a loop outside the GIL, by the SSL inside Python's object; where that cannot
be had (_libssl tells when), Python's own calls do one record at a time. A peer that has asked for smaller records
(max_fragment_length, RFC 6066) gets such.
When close_notify is sent `net.link` decides; what it means that none came, _tls_receiver and `net.failures`.
"""

import errno
import os
import socket
import ssl

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport errno as c_errno

from ringmain._libssl cimport (
    SSL_ERROR_NONE,
    SSL_ERROR_SSL,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN,
    SSL_OP_IGNORE_UNEXPECTED_EOF,
    connection_of,
    libssl,
)
from ringmain._read_ahead cimport allot, bounded, read_records
from ringmain._write_behind cimport gathered, make_room, write_records

cdef Py_ssize_t RECORD = 16 << 10       # bytes; the most that one holds
cdef int TCP_CLOSE = 7                  # <netinet/tcp.h>


def bound(sock):
    """Bound what the peer can make one call of a handshake, read or close do, on an `ssl.SSLSocket`.

    Each call takes 64 KiB at most from the kernel, then it raises SSLWantReadError with more to read. A peer that sends
    over 1,000 messages without data, and over 100 a second, gets an SSLError.
    """
    if sock._sslobj is not None:  # None where the peer has gone already
        bounded(sock._sslobj, sock.fileno())


cdef class Session:
    """A handshaken, non-blocking `ssl.SSLSocket`, wrapped with `suppress_ragged_eofs=False`, which stays the caller's.

    `version` and `cipher` are what was agreed on. The SSL lives as long as this does, whoever closes the socket.
    """

    def __init__(self, sock):
        self.sock, self.sslobj = sock, sock._sslobj
        self.connection = connection_of(self.sslobj)
        self.source = bounded(self.sslobj, sock.fileno())
        self.sink = gathered(self.sslobj, sock.fileno())
        self.limit = record_limit(self.connection) if self.connection != NULL else RECORD
        cipher = sock.cipher()
        self.version, self.cipher = sock.version(), cipher[0] if cipher else None

    def __getbuffer__(self, Py_buffer* view, int flags):
        # The session itself is the buffer that Python's own read fills, so that no view is made per read.
        if self.window == NULL:
            raise BufferError("there is no window to fill")
        PyBuffer_FillInfo(view, self, self.window, self.room, 0, flags)

    @property
    def begun(self):
        """How many bytes are encrypted that the kernel does not have yet: the next write must begin with the same."""
        return self.record if self.sink == NULL else self.sink.begun

    @property
    def has_ticket(self):
        """Whether a server has sent a session ticket, which is a record that is never handed out."""
        session = self.sslobj.session  # read-only
        return session is not None and session.has_ticket

    def may_reject_us(self):
        """Tell whether a TLS 1.3 server has asked for a certificate, and so may yet refuse ours; True if unknown.

        The list of signatures that it takes for one is in that request only.
        """
        if self.sock.server_side or self.version != "TLSv1.3":
            return False
        return self.connection == NULL or libssl.get_sigalgs(self.connection, -1, NULL, NULL, NULL, NULL, NULL) > 0

    def expect_end(self):
        """Let an end without close_notify be one like any other: else OpenSSL sends an alert and writes no more."""
        if self.connection != NULL:
            libssl.set_options(self.connection, SSL_OP_IGNORE_UNEXPECTED_EOF)

    def send_close_notify(self):
        """Say that nothing follows, and read nothing; False where that cannot be done, but by `shut_down`.

        Raises SSLWantWriteError when it is to be tried again once the socket is writable.
        """
        cdef int result, answer
        if self.connection == NULL:
            return False
        libssl.clear_errors()
        result = libssl.shutdown(self.connection)
        if result < 0:
            answer = libssl.get_error(self.connection, result)
            if answer == SSL_ERROR_WANT_WRITE:
                raise ssl.SSLWantWriteError(answer, "close_notify waits")
            raise error_of(answer, c_errno)
        return True

    def shut_down(self):
        """Say that nothing follows by Python's own call, which goes on to read, and drops what has come."""
        self.sslobj.shutdown()

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
        if self.sink == NULL:
            return self.write_by_python(data)
        if not make_room(self.sink):
            raise MemoryError
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                answer = write_records(
                    self.sink, <const char*>buffer.buf, buffer.len, self.limit, &written, &number
                )
        finally:
            PyBuffer_Release(&buffer)
        if answer == SSL_ERROR_NONE:
            return written
        error = self.exception_for(answer, number)
        if answer != SSL_ERROR_WANT_WRITE and answer != SSL_ERROR_WANT_READ:
            self.failure = error
        elif written and answer == SSL_ERROR_WANT_WRITE:  # what is to be read first may have come by the next write
            self.stopped = error
        if written:
            return written
        raise error

    def read(self, buffer):
        """Read into a buffer; return how much, 0 after close_notify. Raises as `write`."""
        cdef Py_buffer view
        cdef size_t got = 0
        cdef long records = 0
        cdef int answer
        if self.heard is not None:
            raise self.heard
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            answer = self.read_into(<char*>view.buf, view.len, &got, &records)
        finally:
            PyBuffer_Release(&view)
        if failed(answer):
            self.heard = self.error  # an alert is told once
        if got or answer == SSL_ERROR_ZERO_RETURN:
            return got
        raise self.heard or self.exception_for(SSL_ERROR_WANT_READ if answer == SSL_ERROR_NONE else answer, 0)

    cdef int read_ahead(self) except -1:
        """Take more from the kernel than is asked for, for those who read all that comes."""
        if self.source != NULL:
            allot(self.source)
        return 0

    cdef int read_into(self, char* window, size_t room, size_t* filled, long* records) except -1:
        """Decrypt records into the window until it is full or there are no more for now; return SSL_get_error's answer.

        The answer is SSL_ERROR_NONE too where there is more, but it is others' turn, as `source.spent` tells. After any
        but that, WANT_READ, WANT_WRITE and ZERO_RETURN, `error` is the exception. Lets go of the GIL.
        """
        cdef int number = 0
        cdef int answer
        if self.source == NULL:
            return self.read_by_python(window, room, filled, records)
        with nogil:
            answer = read_records(self.source, window, room, filled, records, &number)
        if failed(answer):
            self.error = error_of(answer, number)  # before others use OpenSSL
        return answer

    cdef tuple verdict(self, bint heard_reset):
        """Return what a read that failed means to the stream, and the exception behind it.

        `heard_reset` tells that the kernel, which tells of a reset once, has told it to who sends.
        """
        error = self.error
        if isinstance(error, ssl.SSLEOFError) and heard_reset:
            error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        # ssl.SSLError is an OSError: broken records and alerts are a stream that did not end as it should.
        if isinstance(error, ssl.SSLError):
            return "truncated", error
        return "timed out" if isinstance(error, TimeoutError) else "reset", error

    cdef int read_by_python(self, char* window, size_t room, size_t* filled, long* records) except -1:
        """Read one record; else as `read_into`."""
        self.window, self.room = window, room
        try:
            filled[0] = self.sslobj.read(room, self)
        except ssl.SSLWantReadError:
            return SSL_ERROR_WANT_READ
        except ssl.SSLWantWriteError:
            return SSL_ERROR_WANT_WRITE
        except OSError as error:
            self.error = self.true_error(error)
            return SSL_ERROR_SSL
        finally:
            self.window = NULL
        records[0] = 1
        return SSL_ERROR_NONE if filled[0] else SSL_ERROR_ZERO_RETURN

    cdef Py_ssize_t write_by_python(self, object data) except -1:
        """Write one record; else as `write`."""
        cdef Py_ssize_t size = self.record if self.record else min(RECORD, len(data))
        self.record = size
        try:
            self.sslobj.write(data[:size])
        except ssl.SSLEOFError as error:
            raise self.true_error(error) from None
        self.record = 0
        return size

    cdef object exception_for(self, int answer, int number):
        if answer == SSL_ERROR_WANT_WRITE:
            return ssl.SSLWantWriteError(answer, "the socket is full")
        if answer == SSL_ERROR_WANT_READ:
            return ssl.SSLWantReadError(answer, "the socket is empty")
        if answer == SSL_ERROR_ZERO_RETURN:  # it said goodbye before it closed, which is why the kernel takes no more
            return ssl.SSLZeroReturnError(answer, "the peer closed the connection")
        return error_of(answer, number)

    cdef object true_error(self, object error):
        """Return the ConnectionResetError that CPython shows as an SSLEOFError, or the error as it is.

        The ssl module takes any failure of the system call for an end of file (it looks at SSL_read_ex's 0, not at
        errno). OpenSSL 3 names a real one; where it does not, a socket that knows no peer any more was reset.
        """
        if isinstance(error, ssl.SSLEOFError) and error.reason is None:
            if self.sock.family == socket.AF_UNIX:  # which says what it has once only, and not by its state
                return error
            if self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
                return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return error


cdef inline bint failed(int answer) noexcept:
    return answer not in (SSL_ERROR_NONE, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN)


cdef size_t record_limit(void* connection) noexcept:
    """Return how many bytes a record to this peer holds at most."""
    cdef int code = libssl.fragment_code(libssl.get_session(connection))
    return 512 << (code - 1) if 1 <= code <= 4 else RECORD  # RFC 6066, section 4


cdef object error_of(int answer, int number):
    """Return the exception that stands for SSL_get_error's answer and errno."""
    cdef unsigned long code = libssl.last_error()
    cdef const char* text = libssl.reason(code) if code else NULL
    libssl.clear_errors()
    if answer != SSL_ERROR_SSL and number:
        return OSError(number, os.strerror(number))
    words = text.decode() if text != NULL else "unexpected eof"
    error = (ssl.SSLEOFError if "unexpected eof" in words else ssl.SSLError)(answer, words)
    error.reason = words
    return error

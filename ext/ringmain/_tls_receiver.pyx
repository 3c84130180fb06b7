# cython: language_level=3, boundscheck=False, wraparound=False
"""Receive a TLS stream: OpenSSL decrypts straight into the ring, under the loop's add_reader.

The event loops' own TLS hides truncation, has no half-close, and loses the tail of a paused stream, so the engine is
the non-blocking `ssl.SSLSocket` of the standard library. One read is at most one record (16 KiB), so records are read
in a loop outside the GIL, by the libssl that `_ssl` itself uses. What is found inside Python's objects is checked
before it is trusted; where it does not look as expected, the same loop calls Python's own `read`.
Invariants:
- Read until OpenSSL wants more before waiting on the descriptor: with read-ahead, data may sit inside OpenSSL.
- At most TURN bytes a turn of the loop, so that other callbacks run.
- Bytes come before the verdict; close_notify alone is a clean end.
"""

import _ssl
import errno
import os
import socket
import ssl

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint64_t
from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyObject

from ringmain._receiver cimport Receiver

cdef Py_ssize_t TURN = 1 << 20

cdef int TCP_CLOSE = 7  # <netinet/tcp.h>

cdef object SSLWantReadError = ssl.SSLWantReadError
cdef object SSLWantWriteError = ssl.SSLWantWriteError
cdef object SSLEOFError = ssl.SSLEOFError

# <openssl/ssl.h>
cdef enum:
    SSL_ERROR_NONE = 0
    SSL_ERROR_SSL = 1
    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_WANT_WRITE = 3
    SSL_ERROR_ZERO_RETURN = 6
    SSL_CTRL_SET_READ_AHEAD = 41

cdef struct LibSsl:
    uint64_t (*get_options)(const void* context) noexcept
    long (*ctrl)(void* context, int command, long number, void* pointer) noexcept
    void (*set_read_buffer)(void* context, size_t size) noexcept
    void* (*get_context)(const void* connection) noexcept
    int (*read)(void* connection, void* buffer, size_t size, size_t* got) noexcept nogil
    int (*get_error)(const void* connection, int result) noexcept nogil
    void (*clear_errors)() noexcept nogil
    unsigned long (*last_error)() noexcept
    const char* (*reason)(unsigned long error) noexcept

# The heads of CPython's PySSLContext and PySSLSocket, unchanged since 3.2.
cdef struct ContextHead:
    PyObject ob_base
    void* context

cdef struct ConnectionHead:
    PyObject ob_base
    PyObject* socket
    void* connection
    PyObject* context

cdef LibSsl libssl
# Whether libssl was found: not where it is built into the interpreter.
HAS_LIBSSL = find_libssl(getattr(_ssl, "__file__", None))


cdef bint find_libssl(object module_path) except -1:
    """Look up the functions of the libssl that `_ssl` has loaded; tell whether all are there."""
    cdef void* library
    if module_path is None:
        return False
    library = dlopen(module_path.encode(), RTLD_LAZY)
    if library == NULL:
        return False
    (<void**>&libssl.get_options)[0] = dlsym(library, "SSL_CTX_get_options")
    (<void**>&libssl.ctrl)[0] = dlsym(library, "SSL_CTX_ctrl")
    (<void**>&libssl.set_read_buffer)[0] = dlsym(library, "SSL_CTX_set_default_read_buffer_len")
    (<void**>&libssl.get_context)[0] = dlsym(library, "SSL_get_SSL_CTX")
    (<void**>&libssl.read)[0] = dlsym(library, "SSL_read_ex")
    (<void**>&libssl.get_error)[0] = dlsym(library, "SSL_get_error")
    (<void**>&libssl.clear_errors)[0] = dlsym(library, "ERR_clear_error")
    (<void**>&libssl.last_error)[0] = dlsym(library, "ERR_peek_last_error")
    (<void**>&libssl.reason)[0] = dlsym(library, "ERR_reason_error_string")
    return (
        libssl.get_options != NULL and libssl.ctrl != NULL and libssl.set_read_buffer != NULL
        and libssl.get_context != NULL and libssl.read != NULL and libssl.get_error != NULL
        and libssl.clear_errors != NULL and libssl.last_error != NULL and libssl.reason != NULL
    )


cdef void* context_of(object context) except? NULL:
    """Return the SSL_CTX inside an `ssl.SSLContext`, or NULL."""
    cdef void* found = (<ContextHead*><PyObject*>context).context
    if not HAS_LIBSSL or libssl.get_options(found) != <uint64_t>(int(context.options) & 0xFFFFFFFFFFFFFFFF):
        return NULL
    return found


cdef void* connection_of(object sslobj) except? NULL:
    """Return the SSL inside an `_ssl._SSLSocket`, or NULL."""
    cdef ConnectionHead* head = <ConnectionHead*><PyObject*>sslobj
    cdef object context = sslobj.context
    cdef void* expected = context_of(context)
    if expected == NULL or head.context != <PyObject*>context or libssl.get_context(head.connection) != expected:
        return NULL
    return head.connection


def enable_read_ahead(context, size_t size=1 << 16):
    """Let OpenSSL read up to `size` bytes a system call for this `ssl.SSLContext`; tell whether it could be done.

    Python leaves read-ahead off and has no switch for it, which costs two system calls a record.
    """
    cdef void* found = context_of(context)
    if found == NULL:
        return False
    libssl.ctrl(found, SSL_CTRL_SET_READ_AHEAD, 1, NULL)
    libssl.set_read_buffer(found, size)
    return True


def true_error(error, sock):
    """Return the ConnectionResetError that CPython shows as an SSLEOFError, or the error as it is.

    The ssl module takes any failure of the system call for an end of file (it looks at SSL_read_ex's 0, not at errno).
    OpenSSL 3 names a real one; where it does not, a socket that knows no peer any more was reset.
    """
    if isinstance(error, SSLEOFError) and error.reason is None:
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    return error


cdef class TlsReceiver(Receiver):
    """Receive from a handshaken, non-blocking `ssl.SSLSocket`, wrapped with `suppress_ragged_eofs=False`."""

    cdef object read
    cdef void* connection               # the SSL inside the socket, or NULL for Python's read instead
    cdef bint writing

    def __init__(self, loop, ring, counters, linger, sock, min_block=1):
        Receiver.__init__(self, loop, ring, counters, linger, sock, min_block)
        self.read = sock._sslobj.read
        self.connection = connection_of(sock._sslobj)

    def __getbuffer__(self, Py_buffer* view, int flags):
        # The receiver itself is the buffer that OpenSSL fills, so that no view is made per read.
        PyBuffer_FillInfo(view, self, self.ring.window, self.ring.window_size, 0, flags)

    def __len__(self):
        return self.ring.window_size

    def on_readable(self):
        """Decrypt what has come; called by the loop when the socket is readable, or by itself to go on."""
        cdef Py_ssize_t size
        cdef Py_ssize_t left = TURN
        if self.verdict is not None or self.paused:
            return
        if self.writing:
            self.writing = False
            self.loop.remove_writer(self.fd)
        while left > 0:
            if not self.claim_window():
                return
            size = self.decrypt() if self.connection != NULL else self.decrypt_by_python()
            if size <= 0:
                return
            left -= size
        self.loop.call_soon(self.on_readable)

    cdef Py_ssize_t decrypt(self) except -1:
        """Read records into the window until it is full or there are no more for now; return their size.

        0 means that nothing is left to do here: the loop, or the verdict, says how it goes on.
        """
        cdef size_t filled = 0
        cdef size_t got = 0
        cdef long records = 0
        cdef int answer = SSL_ERROR_NONE
        cdef int number = 0
        cdef char* window = self.ring.window
        cdef size_t room = self.ring.window_size
        with nogil:
            libssl.clear_errors()
            while filled < room:
                if libssl.read(self.connection, window + filled, room - filled, &got) != 1:
                    number = c_errno
                    answer = libssl.get_error(self.connection, 0)
                    break
                filled += got
                records += 1
        if filled:
            self.counters.reads += records - 1
            self.received(filled)
        if answer == SSL_ERROR_NONE:
            return filled
        if answer == SSL_ERROR_WANT_WRITE:
            self.await_writable()
        elif answer == SSL_ERROR_ZERO_RETURN:
            self.end("ended", None)
            self.shut()
        elif answer != SSL_ERROR_WANT_READ:
            self.fail(error_of(answer, number))
        return 0

    cdef Py_ssize_t decrypt_by_python(self) except -1:
        """Read one record; else as `decrypt`."""
        cdef Py_ssize_t size
        try:
            size = self.read(self.ring.window_size, self)
        except SSLWantReadError:
            return 0
        except SSLWantWriteError:
            self.await_writable()
            return 0
        except (SSLEOFError, OSError) as error:
            self.fail(true_error(error, self.sock))
            return 0
        if size == 0:
            self.end("ended", None)
            self.shut()
        else:
            self.received(size)
        return size

    cdef int await_writable(self) except -1:
        """Go on once the socket is writable: a key update has to go out first."""
        self.writing = True
        self.loop.add_writer(self.fd, self.on_readable)
        return 0

    cdef int fail(self, object error) except -1:
        # ssl.SSLError is an OSError: broken records and alerts are a stream that did not end as it should.
        if isinstance(error, ssl.SSLError):
            self.end("truncated", error)
        elif isinstance(error, TimeoutError):
            self.end("timed out", error)
        else:
            self.end("reset", error)
        return self.shut()

    cdef int shut(self) except -1:
        self.connection = NULL
        if self.writing:
            self.writing = False
            self.loop.remove_writer(self.fd)
        self.read = None
        return Receiver.shut(self)

    cdef int go_on(self) except -1:
        Receiver.go_on(self)
        self.loop.call_soon(self.on_readable)  # for what is inside OpenSSL already
        return 0


cdef object error_of(int answer, int number):
    """Return the exception for SSL_get_error's answer, as the ssl module would but for resets."""
    cdef unsigned long code = libssl.last_error()
    cdef const char* text = libssl.reason(code) if code else NULL
    libssl.clear_errors()
    if answer != SSL_ERROR_SSL and number:
        return OSError(number, os.strerror(number))
    words = text.decode() if text != NULL else "end of file"
    error = (SSLEOFError if text == NULL or "unexpected eof" in words else ssl.SSLError)(answer, words)
    error.reason = words
    return error

# cython: language_level=3, boundscheck=False, wraparound=False
"""Receive a TLS stream: OpenSSL decrypts straight into the ring, under the loop's add_reader.

The event loops' own TLS hides truncation, has no half-close, and loses the tail of a paused stream, so the engine is
the non-blocking `ssl.SSLSocket` of the standard library, read in a loop here. One read is at most one record (16 KiB).
Invariants:
- Read until OpenSSL wants more before waiting on the descriptor: with read-ahead, data may sit inside OpenSSL.
- At most TURN bytes a turn of the loop, so that other callbacks run.
- Bytes come before the verdict; close_notify alone is a clean end.
"""

import errno
import socket
import ssl

from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym
from libc.stdint cimport uint64_t

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyObject

from ringmain._receiver cimport Receiver

cdef Py_ssize_t TURN = 1 << 20

cdef int TCP_CLOSE = 7  # <netinet/tcp.h>

cdef object SSLWantReadError = ssl.SSLWantReadError
cdef object SSLWantWriteError = ssl.SSLWantWriteError
cdef object SSLEOFError = ssl.SSLEOFError


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
    cdef bint writing

    def __init__(self, loop, ring, counters, linger, sock, min_block=1):
        Receiver.__init__(self, loop, ring, counters, linger, sock, min_block)
        self.read = sock._sslobj.read

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
            try:
                size = self.read(self.ring.window_size, self)
            except SSLWantReadError:
                return
            except SSLWantWriteError:  # a key update has to go out first
                self.writing = True
                self.loop.add_writer(self.fd, self.on_readable)
                return
            except (SSLEOFError, OSError) as error:
                self.fail(error)
                return
            if size == 0:
                self.end("ended", None)
                self.shut()
                return
            self.received(size)
            left -= size
        self.loop.call_soon(self.on_readable)

    cdef int fail(self, object error) except -1:
        error = true_error(error, self.sock)
        # ssl.SSLError is an OSError: broken records and alerts are a stream that did not end as it should.
        if isinstance(error, ssl.SSLError):
            self.end("truncated", error)
        elif isinstance(error, TimeoutError):
            self.end("timed out", error)
        else:
            self.end("reset", error)
        return self.shut()

    cdef int shut(self) except -1:
        if self.writing:
            self.writing = False
            self.loop.remove_writer(self.fd)
        self.read = None
        return Receiver.shut(self)

    cdef int go_on(self) except -1:
        Receiver.go_on(self)
        self.loop.call_soon(self.on_readable)  # for what is inside OpenSSL already
        return 0


# The head of CPython's PySSLContext, unchanged since 3.2. What is found there is checked before it is used.
cdef struct ContextHead:
    PyObject ob_base
    void* ssl_ctx

cdef int SSL_CTRL_SET_READ_AHEAD = 41  # <openssl/ssl.h>

ctypedef uint64_t (*get_options_t)(const void*) noexcept
ctypedef long (*ctrl_t)(void*, int, long, void*) noexcept
ctypedef void (*set_buffer_t)(void*, size_t) noexcept


def enable_read_ahead(context, str module_path, size_t size=1 << 16):
    """Let OpenSSL read up to `size` bytes a system call for this `ssl.SSLContext`; tell whether it could be done.

    Python leaves read-ahead off and has no switch for it, which costs two system calls a record. `module_path` is the
    file of the `_ssl` module, whose libssl is the one that made the context.
    """
    cdef void* library = dlopen(module_path.encode(), RTLD_LAZY)
    cdef void* ssl_ctx = (<ContextHead*><PyObject*>context).ssl_ctx
    cdef void* get_options
    cdef void* ctrl
    cdef void* set_buffer
    if library == NULL:
        return False
    get_options = dlsym(library, "SSL_CTX_get_options")
    ctrl = dlsym(library, "SSL_CTX_ctrl")
    set_buffer = dlsym(library, "SSL_CTX_set_default_read_buffer_len")
    if get_options == NULL or ctrl == NULL or set_buffer == NULL:
        return False
    if (<get_options_t>get_options)(ssl_ctx) != <uint64_t>(int(context.options) & 0xFFFFFFFFFFFFFFFF):
        return False
    (<ctrl_t>ctrl)(ssl_ctx, SSL_CTRL_SET_READ_AHEAD, 1, NULL)
    (<set_buffer_t>set_buffer)(ssl_ctx, size)
    return True

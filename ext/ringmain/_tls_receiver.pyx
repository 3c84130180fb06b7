# cython: language_level=3, boundscheck=False, wraparound=False
"""Receive a TLS stream: OpenSSL decrypts straight into the ring, under the loop's add_reader.

The event loops' own TLS hides truncation, has no half-close, and loses the tail of a paused stream, so the engine is
the non-blocking `ssl.SSLSocket` of the standard library. One read is at most one record (16 KiB), so records are read
in a loop outside the GIL by way of _libssl; where that cannot be, the same loop calls Python's own `read`.
Invariants:
- Read until OpenSSL wants more before waiting on the descriptor: what was read ahead is no longer in the socket.
- At most TURN bytes a turn of the loop, so that other callbacks run, and of what carries no data not much more than a
  window (_libssl bounds it).
- Bytes come before the verdict; close_notify alone is a clean end.
"""

import errno
import socket
import ssl

from cpython.buffer cimport PyBuffer_FillInfo

from ringmain._libssl cimport (
    SSL_ERROR_NONE,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN,
    Ahead,
    error_of,
    read_ahead_of,
    read_records,
)
from ringmain._receiver cimport Receiver
from ringmain._ring cimport Block

cdef Py_ssize_t TURN = 512 << 10

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
    cdef Ahead* ahead                   # what the SSL inside the socket reads from, or NULL for Python's read instead
    cdef bint writing
    cdef Block pinned                   # what Python's read fills

    def __init__(self, loop, ring, counters, linger, sock, min_block=1):
        Receiver.__init__(self, loop, ring, counters, linger, sock, min_block)
        self.read = sock._sslobj.read
        self.ahead = read_ahead_of(sock._sslobj, self.fd)

    def __getbuffer__(self, Py_buffer* view, int flags):
        # The receiver itself is the buffer that OpenSSL fills, so that no view is made per read.
        cdef Block block = self.ring.current
        if block is None or self.ring.window_size == 0:
            raise BufferError("there is no window to fill")
        PyBuffer_FillInfo(view, self, self.ring.window, self.ring.window_size, 0, flags)
        block.pinned += 1
        self.pinned = block

    def __releasebuffer__(self, Py_buffer* view):
        block, self.pinned = self.pinned, None
        self.ring.unpin(block)

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
            if self.verdict is not None or not self.claim_window():
                return
            size = self.decrypt() if self.ahead != NULL else self.decrypt_by_python()
            if size <= 0:
                return
            left -= size
        self.loop.call_soon(self.on_readable)

    cdef Py_ssize_t decrypt(self) except -1:
        """Read records into the window until it is full or there are no more for now; return their size.

        0 means that nothing is left to do here: the loop, or the verdict, says how it goes on. Where there is more, but
        it is others' turn, it is a whole turn's size.
        """
        cdef size_t filled = 0
        cdef long records = 0
        cdef int number = 0
        cdef int answer
        cdef bint spent
        cdef object error = None
        cdef Block block = self.ring.current
        # Without the GIL whoever stops this and closes the socket lets go of the SSL that `ahead` belongs to, unless it
        # is held here, and takes our fields away.
        cdef object _held = self.read
        cdef Ahead* ahead = self.ahead
        cdef char* window = self.ring.window
        cdef size_t room = self.ring.window_size
        block.pinned += 1
        with nogil:
            answer = read_records(ahead, window, room, &filled, &records, &number)
        self.ring.unpin(block)
        if self.verdict is not None:
            return 0
        spent = ahead.spent
        if answer not in (SSL_ERROR_NONE, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN):
            error = error_of(answer, number)  # before others use OpenSSL
        if filled:
            self.counters.reads += records - 1
            self.received(filled)
            if self.verdict is not None:
                return 0
        if answer == SSL_ERROR_NONE:
            return TURN if spent else filled
        if answer == SSL_ERROR_WANT_WRITE:
            self.await_writable()
        elif answer == SSL_ERROR_ZERO_RETURN:
            self.end("ended", None)
            self.shut()
        elif error is not None:
            self.fail(error)
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
            if self.verdict is None:
                self.fail(true_error(error, self.sock))
            return 0
        if self.verdict is not None:
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
        if self.sock is None:  # as in `go_on`
            self.loop.remove_writer(self.fd)
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
        self.ahead = NULL
        self.read = None
        try:
            if self.writing:
                self.writing = False
                self.loop.remove_writer(self.fd)
        finally:
            Receiver.shut(self)
        return 0

    cdef int go_on(self) except -1:
        Receiver.go_on(self)
        self.loop.call_soon(self.on_readable)  # for what is inside OpenSSL already
        return 0

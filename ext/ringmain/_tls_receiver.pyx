# cython: language_level=3, boundscheck=False, wraparound=False
"""Receive a TLS stream: OpenSSL decrypts straight into the ring, under the loop's add_reader.

The event loops' own TLS hides truncation, has no half-close, and loses the tail of a paused stream, so the engine is
the non-blocking `ssl.SSLSocket` of the standard library. One read of it is at most one record (16 KiB), so the link's
session reads in a loop.
Invariants:
- Read until OpenSSL wants more before waiting on the descriptor: what was read ahead is no longer in the socket.
- At most TURN bytes a turn of the loop, so that other callbacks run, and of what carries no data not much more than a
  window (_read_ahead bounds it).
- Bytes come before the verdict; close_notify alone is a clean end.
"""

from ringmain._libssl cimport SSL_ERROR_NONE, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN
from ringmain._receiver cimport Receiver
from ringmain._ring cimport Block
from ringmain._tls cimport Session

cdef Py_ssize_t TURN = 512 << 10


cdef class TlsReceiver(Receiver):
    """Receive from a link that is under TLS, by its session."""

    cdef Session session                # None once the link is let go

    def __init__(self, link, ring, counters, linger, min_block=1):
        Receiver.__init__(self, link, ring, counters, linger, min_block)
        self.session = link.session
        self.session.read_ahead()

    def on_readable(self):
        """Decrypt what has come; called by the loop when the socket is readable, or by itself to go on."""
        cdef Py_ssize_t size
        cdef Py_ssize_t left = TURN
        if self.verdict is not None or self.paused:
            return
        while left > 0:
            if self.verdict is not None or not self.claim_window():
                return
            size = self.decrypt()
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
        cdef int answer
        cdef Block block = self.ring.current
        # Without the GIL whoever stops this and closes the socket takes our fields away, and would let go of the SSL,
        # unless that is held here.
        cdef Session session = self.session
        block.pinned += 1
        try:
            answer = session.read_into(self.ring.window, self.ring.window_size, &filled, &records)
        finally:
            self.ring.unpin(block)
        if self.verdict is not None:
            return 0
        if filled:
            self.counters.reads += records - 1
            self.received(filled)
            if self.verdict is not None:
                return 0
        if answer == SSL_ERROR_NONE:
            return TURN if session.source != NULL and session.source.spent else filled
        if answer == SSL_ERROR_WANT_WRITE:
            self.link.when_writable(self.on_readable)  # a key update has to go out first
        elif answer == SSL_ERROR_ZERO_RETURN:
            self.end("ended", None)
            self.shut()
        elif answer != SSL_ERROR_WANT_READ:
            verdict, error = session.verdict(self.link.heard_reset)
            self.end(verdict, error)
            self.shut()
        return 0

    cdef int shut(self) except -1:
        self.session = None
        return Receiver.shut(self)

    cdef int go_on(self) except -1:
        Receiver.go_on(self)
        self.loop.call_soon(self.on_readable)  # for what is inside OpenSSL already
        return 0

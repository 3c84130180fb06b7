# cython: language_level=3, boundscheck=False, wraparound=False
"""One of many streams whose records are merged: how it is read, plain or under TLS, and what became of it.

Invariants:
- The verdict is set once, and bytes that came before it are in the ring, wait in `whole`, or are counted.
- Memory that is read into stays while the GIL is let go, whoever stops the stream meanwhile.
"""

import os

from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT, errno as c_errno

from ringmain._carry cimport Carry
from ringmain._counters cimport Counters
from ringmain._cutter cimport Cutter
from ringmain._libssl cimport SSL_ERROR_NONE, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN
from ringmain._ring cimport Block
from ringmain._tls cimport Session

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* buffer, size_t size, int flags)
    int MSG_DONTWAIT


cdef class Host:
    """Whoever merges streams, as they know it."""

    cdef int let_go(self, Member member, str verdict, object error) except -1:
        """End a stream that has no verdict yet."""
        raise NotImplementedError

    cdef int announce(self, Member member) except -1:
        """Have the end of a stream told, now that the ring has all that is whole of it."""
        raise NotImplementedError


cdef class Member(Carry):
    """One stream, until one of five verdicts; see `Receiver`, which it can stand for. Made by `Merger.add`.

    `counters` are written while bytes come; `blocks` counts the pieces in which its bytes were handed out.
    """

    def __init__(self, Host host, object link, Counters counters, Cutter cutter, Py_ssize_t max_record, bint skips):
        self.host = host
        self.link = link
        self.fd = link.fd
        self.session = link.session
        self.counters = counters
        self.cutter = cutter
        self.counted = cutter.counted
        self.max_record = max_record
        self.skips = skips
        self.stalls_before = host.stalls
        self.stalled_before = host.stalled_seconds

    @property
    def paused(self):
        """Whether no block was free, so that the peer waits, as all others do."""
        return self.host is not None and self.host.paused

    def stop(self, str verdict="stopped", object error=None):
        """End the stream from our side, keeping the whole records that came. Does nothing after a verdict."""
        if self.verdict is None and self.host is not None and self.host.loop is not None:
            self.host.let_go(self, verdict, error)

    def hang_up(self):
        """Take an end that comes from now on for ours: it is "stopped", and what is left no record."""
        self.hung_up = True

    cdef Py_ssize_t receive(self, Block block, char* where, Py_ssize_t room) except -1:
        """Read what has come, to a block of the ring or to `data`; lets go of the GIL.

        `heard`, `unread` and `blocked` tell what else the read has brought. 0 after a verdict, also one that came
        meanwhile.
        """
        cdef Py_ssize_t got = 0
        self.unread = self.blocked = False
        self.reading = True
        if block is not None:
            block.pinned += 1
        try:
            got = self.read(where, room) if self.session is None else self.decrypt(where, room)
        finally:
            self.reading = False
            if block is not None:
                self.host.ring.unpin(block)
            if self.verdict is not None and self.whole == 0:
                self.forget()
        if self.verdict is not None:
            return 0
        self.counters.bytes_in += got
        self.count_stalls()
        return got

    cdef Py_ssize_t read(self, char* where, Py_ssize_t room) except -1:
        cdef Py_ssize_t got
        cdef int number
        with nogil:
            got = recv(self.fd, where, room, MSG_DONTWAIT)
            number = c_errno
        if got > 0:
            self.counters.reads += 1
            return got
        if got == 0:
            self.heard = "ended"
        elif number != EAGAIN and number != EINTR:
            self.heard_error = OSError(number, os.strerror(number))
            self.heard = "timed out" if number == ETIMEDOUT else "reset"
        return 0

    cdef Py_ssize_t decrypt(self, char* where, Py_ssize_t room) except -1:
        cdef size_t got = 0
        cdef long records = 0
        # Whoever stops this meanwhile takes our field away, and would let go of the SSL.
        cdef Session session = self.session
        cdef int answer = session.read_into(where, room, &got, &records)
        self.counters.reads += records
        if answer == SSL_ERROR_NONE:
            self.unread = True
        elif answer == SSL_ERROR_WANT_WRITE:
            self.blocked = True
        elif answer == SSL_ERROR_ZERO_RETURN:
            self.heard = "ended"
        elif answer != SSL_ERROR_WANT_READ:
            self.heard, self.heard_error = session.verdict(self.link.heard_reset)
        return got

    cdef void count_stalls(self) noexcept:
        self.counters.stalls = self.host.stalls - self.stalls_before
        self.counters.stalled_seconds = self.host.stalled_seconds - self.stalled_before

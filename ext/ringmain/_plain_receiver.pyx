# cython: language_level=3, boundscheck=False, wraparound=False
"""Receive plain TCP into the ring.

Invariant: at most TURN bytes a turn of the loop, so that other callbacks run and the consumer gets what may still be in
a cache. The loops' own protocols read up to 32 windows in a row.
"""

import os

from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT, errno as c_errno

from ringmain._receiver cimport Receiver
from ringmain._ring cimport Block

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* buffer, size_t size, int flags)
    int MSG_PEEK

# What one turn of the loop reads at most: as much as the highest mark lets come. Fewer, longer turns save more than a
# destination that fits the fastest cache does.
cdef Py_ssize_t TURN = 2 << 20


cdef class PlainReceiver(Receiver):
    """Receive plain TCP."""

    def on_readable(self):
        """Read what has come; called by the loop when the socket is readable."""
        cdef Py_ssize_t left = TURN
        cdef Py_ssize_t size, asked
        cdef int number = 0
        cdef char next_byte
        cdef Block block
        cdef char* window
        if self.paused:
            return
        while left > 0 and self.verdict is None:
            if not self.claim_window():
                return
            asked = min(self.ring.window_size, left)
            block = self.ring.current
            window = self.ring.window
            block.pinned += 1
            with nogil:
                size = recv(self.fd, window, asked, 0)
                if size < 0:
                    number = c_errno
            self.ring.unpin(block)
            if self.verdict is not None:
                return
            if size > 0:
                self.received(size)
                left -= size
                if size == asked:
                    if left <= 0:  # the rest may be below the mark, which the loop would not tell of
                        self.loop.call_soon(self.on_readable)
                    continue
                # That was all there is. If a reset is behind it this is the only call: uvloop's handle has died of it.
                with nogil:
                    size = recv(self.fd, &next_byte, 1, MSG_PEEK)
                    if size < 0:
                        number = c_errno
                if size == 0:  # for a turn that finds nothing else: what came is cut and taken first
                    self.loop.call_soon(self.on_readable)
                if size >= 0:
                    return
            if self.verdict is not None:
                return
            if size == 0:
                self.end("ended", None)
                self.shut()
                return
            if number == EINTR:
                continue
            if number != EAGAIN:
                self.end("timed out" if number == ETIMEDOUT else "reset", OSError(number, os.strerror(number)))
                self.shut()
            return

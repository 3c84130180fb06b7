# cython: language_level=3, boundscheck=False, wraparound=False
"""Merge many streams into one ring, whole records only.

Goal: what one stream costs, for a thousand: one kernel copy into a cache-hot block, and the rest of a record once more.
Cost: the loop watches one epoll descriptor that has all the sockets, so that it calls Python once a turn however many
are ready; a stall is one `remove_reader`.
Invariants:
- The ring has whole records (_sorter). What a stream has begun of one is in its own carry (_carry), so that a peer that
  stalls within a record holds nobody else's.
- A round reads once from each stream that was ready. A stall breaks it off, and it goes on with whose turn it was: to
  begin anew would starve those at its end. At most TURN bytes a turn of the loop.
- Epoll hears of a socket again as long as it has something. What is inside OpenSSL, or was read ahead, it cannot know:
  who has such is in `queue`.
- Whatever can run Python (an allocation, the loop, a release) or lets go of the GIL comes where the state is whole, and
  after it `verdict` is looked at again: a finalizer may have stopped the stream, or closed all of this.
"""

import os

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint32_t
from posix.unistd cimport close

from ringmain._clock cimport monotonic
from ringmain._counters cimport Counters
from ringmain._cutter cimport Cutter
from ringmain._epoll cimport (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLIN,
    EPOLLOUT,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
)
from ringmain._member cimport Member
from ringmain._ring cimport Ring
from ringmain._runs cimport Runs
from ringmain._sorter cimport STALLED, Sorter

cdef enum:
    EVENTS = 1024           # that one call brings; the kernel begins with the others next time

# Bytes a turn of the loop, so that timers and consumers run, and what is read is still in a cache when they do. To
# decrypt is about four times the work of a copy.
cdef Py_ssize_t TURN = 1 << 20
cdef Py_ssize_t TLS_FACTOR = 4
# Bytes that one stream is read at most in a round: its part of the ring, within these. Where the consumer is slower,
# the others wait for each of them; where it is not, short reads would only cost more, a tenth at 256 streams.
cdef Py_ssize_t SLOW_QUANTUM = 64 << 10
cdef Py_ssize_t LEAST_QUANTUM = 256 << 10
cdef Py_ssize_t MOST_QUANTUM = 1 << 20


cdef class Merger(Sorter):
    """Feed the records of many connections to a ring of its own, which must not cut.

    `cutter` tells where records end. One of more than max_record bytes stops its stream with an OverflowError, or with
    `skips` is left out; what is none with a ValueError of the offset and of what stands there. A last record without an
    end gets `terminator`, or where that is empty is dropped; one that is shorter than its size says makes a proper end
    "truncated", with an EOFError. A record waits for others until they fill half a block, for `linger` seconds at most
    after the last block was to be had, and for nobody once any stream has ended or all wait for room. Memory: the ring,
    one record, and for each stream what it has of a record. Raises OSError where there is no descriptor left.
    """

    def __cinit__(self):
        self.epoll_fd = -1

    def __init__(
        self, object loop, Ring ring not None, Cutter cutter not None, Py_ssize_t max_record, bytes terminator=b"",
        bint skips=False, double linger=0
    ):
        Sorter.__init__(self, loop, ring, cutter, max_record, terminator, skips, linger)
        self.by_fd, self.round, self.queue = {}, [], []
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(c_errno, os.strerror(c_errno))
        if self.hold.timer_fd >= 0 and not self.listen(self.hold.timer_fd, EPOLL_CTL_ADD, EPOLLIN):
            raise OSError(c_errno, os.strerror(c_errno))
        ring.on_release = self.block_released

    def __dealloc__(self):
        if self.epoll_fd >= 0:
            close(self.epoll_fd)

    @property
    def fullness(self):
        """The part of the ring that is filled or lent, from 0 to 1."""
        return self.ring.fullness

    def add(self, object link, Counters counters not None):
        """Begin to read from a link, which stays the caller's to close, after the verdict; return the Member.

        Raises OSError where the system has no room to watch it.
        """
        cdef Member member = Member(self, link, counters, self.cutter, self.max_record, self.skips)
        if self.closed:
            raise RuntimeError("the merger is closed")
        before = self.by_fd.get(member.fd)
        if before is not None:  # its socket was closed before it was stopped
            self.let_go(before, "stopped", None)
        if not self.listen(member.fd, EPOLL_CTL_ADD, EPOLLIN):
            raise OSError(c_errno, os.strerror(c_errno))
        self.members.add(member)
        self.by_fd[member.fd] = member
        if member.session is not None:
            member.unread = member.queued = True  # the handshake may have read ahead
            self.queued += 1
            self.queue.append(member)
            member.session.read_ahead()
        self.settle(self.paused)
        return member

    def take(self):
        """Return whole records of any streams as an owned read-only memoryview, or None when there are none."""
        return self.lend(False)

    def take_tagged(self):
        """Return a Member and whole records of it, in order; or None when there are none. Views may share a block."""
        return self.lend(True)

    def wait(self):
        """Return a Future that is done once there is something to take, or a member has ended. One consumer at a time.

        It is done as well when the ring is full, since the consumer may hold it all.
        """
        if self.waiter is not None and not self.waiter.done():
            raise RuntimeError("another task is already waiting for these streams")
        waiter = self.loop.create_future()
        self.waiter = waiter
        if self.hold.released or self.news or self.closed:  # since the caller has looked
            self.wake()
        return waiter

    def close(self):
        """Stop all streams and forget what was not taken; nobody is called back any more."""
        if self.closed or self.loop is None:
            return
        self.closed = True
        self.ring.on_release = None
        try:
            if self.watching and not self.loop.is_closed():
                self.loop.remove_reader(self.epoll_fd)
        finally:
            for member in list(self.members):
                (<Member>member).whole = 0
                if (<Member>member).verdict is None:
                    self.let_go(member, "stopped", None)
            self.members.clear()
            self.at = 0
            self.runs, self.round, self.queue, self.stuck = Runs(), [], [], None
            self.ring.drop()
            self.hold.stored = self.hold.released = 0
            self.hold.close_timer()
            close(self.epoll_fd)
            self.epoll_fd = -1
            if not self.loop.is_closed():
                self.wake()

    def on_readable(self):
        """Read what has come; called by the loop."""
        if not self.paused:
            self.turn()

    def go_on(self):
        """Read what epoll does not tell of; called by the loop."""
        self.scheduled = False
        if not self.paused:
            self.turn()

    def block_released(self):
        """Note that a block is free again. May be called from any thread, during any deallocation."""
        if self.loop is not None and not self.closed:  # else the collector is taking it apart
            try:
                self.loop.call_soon_threadsafe(self.resume)
            except RuntimeError:  # the loop is closed, and nobody waits
                pass

    def resume(self):
        """Go on where there was no room; called by the loop."""
        if self.paused:
            self.turn()

    cdef int turn(self) except -1:
        """Go on with the round, or begin one, until there is something to take, or nothing to read, or no room.

        To look again at once costs less than to come back for what has come meanwhile.
        """
        cdef Py_ssize_t left = TURN
        cdef Py_ssize_t size, at
        cdef bint stalled = False
        if self.closed or self.loop is None:
            return 0
        try:
            if self.stuck is not None:
                stalled = not self.wind_up(self.stuck)
            while not stalled and left > 0 and (self.at < len(self.round) or self.next_round()):
                at = self.at
                self.at += 1
                size = self.serve(self.round[at])
                left -= size
                if size == STALLED:
                    stalled = True
                    if self.stuck is None and not self.closed:  # it was not read
                        self.at = at
                elif self.at == len(self.round):
                    self.at = 0
                    self.round.clear()
                    self.hold.judge()
                    if not self.hold.waits():
                        break
        finally:
            self.settle(stalled)
        return 0

    cdef bint next_round(self) except -1:
        """Find who is ready; False if nobody is."""
        cdef epoll_event[EVENTS] events
        cdef int found, index
        cdef Member member
        cdef list empty = []
        with nogil:
            found = epoll_wait(self.epoll_fd, events, EVENTS, 0)
        if self.closed:
            return False
        self.at, self.round, self.queue = 0, self.queue, empty
        for index in range(found):
            member = self.by_fd.get(events[index].data.fd)
            if member is None:  # it is the timer
                self.hold.rang()
            elif not member.queued:
                self.round.append(member)
        share = self.ring.block_size * self.ring.block_count // max(1, len(self.round))
        self.quantum = min(max(share, LEAST_QUANTUM if self.stalls == self.stalls_then else SLOW_QUANTUM), MOST_QUANTUM)
        self.stalls_then = self.stalls
        return len(self.round) > 0

    cdef Py_ssize_t serve(self, Member member) except? -2:
        """Read once from a stream; return what that cost, in bytes, or STALLED."""
        cdef Py_ssize_t size
        if member.verdict is not None:
            return 0
        if member.blocked:
            self.listen(member.fd, EPOLL_CTL_MOD, EPOLLIN)
            member.blocked = False
        size = self.read(member)
        if member.verdict is None and (size != STALLED or self.stuck is not None):
            self.await_more(member)
        if member.session is None or size == STALLED:
            return size
        return TLS_FACTOR * (max(size, SLOW_QUANTUM) if member.unread else size)

    cdef int await_more(self, Member member) except -1:
        """See to it that a stream that was read is read again."""
        if member.queued:
            self.queued -= 1
        member.queued = member.unread
        if member.queued:
            self.queued += 1
            self.queue.append(member)
        if member.blocked:
            self.listen(member.fd, EPOLL_CTL_MOD, EPOLLOUT)
        return 0

    cdef int let_go(self, Member member, str verdict, object error) except -1:
        if self.by_fd.get(member.fd) is member:
            del self.by_fd[member.fd]
            self.listen(member.fd, EPOLL_CTL_DEL, 0)
        if member.queued:
            member.queued = False
            self.queued -= 1
        return Sorter.let_go(self, member, verdict, error)

    cdef int announce(self, Member member) except -1:
        """Have a stream's end told, after all that came of it."""
        self.hold.release()
        if member.untaken == 0:
            self.members.discard(member)
        if not self.closed:
            try:
                self.loop.call_soon_threadsafe(self.tell, member)
            except RuntimeError:  # the loop is closed, and nobody waits
                pass
        return 0

    def tell(self, Member member not None):
        """Tell that a stream has ended; called by the loop."""
        if self.closed:
            return
        self.news = True
        call, member.on_end = member.on_end, None
        try:
            if call is not None:
                call()
        finally:
            self.wake()

    cdef bint listen(self, int fd, int operation, uint32_t events) noexcept:
        cdef epoll_event event
        event.events, event.data.fd = events, fd
        return epoll_ctl(self.epoll_fd, operation, fd, &event) == 0

    cdef int settle(self, bint stalled) except -1:
        """Have the loop call when there is something to do, and the consumer know of what there is."""
        cdef int fd = self.epoll_fd
        if self.closed:
            return 0
        if stalled and not self.paused:
            self.paused_at = monotonic()
            self.stalls += 1
        elif self.paused and not stalled:
            self.stalled_seconds += monotonic() - self.paused_at
        self.paused = stalled
        if self.watching == stalled:
            self.watching = not stalled
            if stalled:
                self.loop.remove_reader(fd)
            else:
                self.loop.add_reader(fd, self.on_readable)
                if self.closed:  # meanwhile
                    self.loop.remove_reader(fd)
        if self.queued and not self.scheduled and not self.paused:
            self.scheduled = True
            self.loop.call_soon(self.go_on)
        if self.paused:
            self.hold.release()
        else:
            self.hold.judge()
        if self.paused or self.hold.released:
            self.wake()
        return 0

    cdef int wake(self) except -1:
        waiter = self.waiter
        if waiter is not None:
            self.waiter, self.news = None, False
            if not waiter.done():
                waiter.set_result(None)
        return 0

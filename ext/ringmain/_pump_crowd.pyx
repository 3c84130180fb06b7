# cython: language_level=3, boundscheck=False, wraparound=False
"""Wait for any number of pumps on one thread: the many passages of a relay.

Goal: what a pump costs, for a thousand: no system call for one that has nothing to do, and the same two for a chunk.
Cost: one `epoll_wait` for all that are ready, and where a pump changes from its source to its destination or back up to
four `epoll_ctl`.
Invariants:
- Both ways of a passage have the same two sockets, so a descriptor has one `Watch` with both pumps. Epoll may be asked
  for what nobody waits for any more; it is told so when it reports that, and not before, since mostly the pump soon
  waits for the same again. Of a descriptor that nobody waits for it must not know: errors are reported unasked.
- Each pump that can move moves one chunk a round, so that none keeps others waiting.
- A pipe of our own is lent to a pump that has something to move, and taken back when it is empty: as many are open as
  there are pumps with a destination that is full, and a few spare. A pump that gets none, as the process has no
  descriptors left, is `refused` between two chunks, with no byte of it here: blocks go on where it was.
- `pumps`, `watches` and `timed` belong to the thread in `run`.
"""

import os

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.unistd cimport close, read

from ringmain._clock cimport monotonic
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
from ringmain._pump cimport EMPTY, FULL, KEPT, LEFT, MORE, SOURCE, STOPPED, WAITING, Pump
from ringmain._pump_loop cimport PumpLoop
from ringmain._splice cimport POLLIN, poll_until, pollfd

cdef enum:
    EVENTS = 256            # that one call brings; the kernel begins with the others next time

# What one of many moves at once, while others wait for it, and what a pipe holds: 256 of them an ordinary user may have
# (fs.pipe-user-pages-soft) before the kernel gives him smaller ones, which pass as many bytes in more turns.
cdef long TURN = 256 << 10


cdef class PumpCrowd(PumpLoop):
    """Let pumps move, each as soon as it can, all on one thread, which lasts as long as there are any.

    Raises OSError where there are no descriptors left. `start` is given what to run on a thread. `len` tells how many
    pumps there are.
    """

    def __cinit__(self):
        self.epoll_fd = -1
        self.pumps = {}

    def __init__(self, start):
        cdef epoll_event event
        PumpLoop.__init__(self, start)
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        event.events, event.data.fd = EPOLLIN, self.wake_fd
        if self.epoll_fd < 0 or epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.wake_fd, &event) < 0:
            raise OSError(c_errno, os.strerror(c_errno))

    def __dealloc__(self):
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        free(self.watches)
        free(self.timed)

    def __len__(self):
        return len(self.pumps) + len(self.news)

    def run(self):
        """Let the pumps move until all are over."""
        while True:
            while self.news:
                self.admit(self.news.pop(0))
            for pump in self.pumps:
                if (<Pump>pump).stopping and (<Pump>pump).step == WAITING:
                    self.turn(<Pump>pump, False)
            self.see_off()
            if not self.pumps and not self.news:
                while self.spare_count:
                    self.spare_count -= 1
                    close(self.spares[self.spare_count][0])
                    close(self.spares[self.spare_count][1])
                self.running = False
                return
            with nogil:
                self.serve_all()

    cdef void admit(self, Pump pump):
        """Begin with a pump."""
        pump.chunk = TURN
        self.pumps[pump] = None
        if not self.make_room(pump):
            pump.refuse()
            pump.step = STOPPED
            self.over += 1
            return
        self.watches[pump.source].reader = <void*>pump
        self.watches[pump.destination].writer = <void*>pump
        self.lend(pump)
        pump.begin()
        self.settle(pump)

    cdef bint make_room(self, Pump pump) noexcept:
        cdef int fd = max(pump.source, pump.destination)
        cdef void* grown
        if fd >= self.watched:
            grown = realloc(self.watches, 2 * (fd + 1) * sizeof(Watch))
            if grown == NULL:
                return False
            self.watches = <Watch*>grown
            memset(&self.watches[self.watched], 0, (2 * (fd + 1) - self.watched) * sizeof(Watch))
            self.watched = 2 * (fd + 1)
        if len(self.pumps) > self.timed_room:
            grown = realloc(self.timed, 2 * len(self.pumps) * sizeof(void*))
            if grown == NULL:
                return False
            self.timed = <void**>grown
            self.timed_room = <int>(2 * len(self.pumps))
        return True

    cdef void see_off(self):
        """Tell of those that are over. Python code runs meanwhile, and may bring news, but nobody else's turn."""
        cdef Pump pump
        if not self.over:
            return
        self.over = 0
        for pump in list(self.pumps):
            if pump.step != WAITING:
                self.leave(pump, pump.source)
                self.leave(pump, pump.destination)
                del self.pumps[pump]
                pump.finish()

    cdef void leave(self, Pump pump, int fd) noexcept:
        """Forget a descriptor of a pump: its owner may close it as soon as it hears that the pump is over."""
        cdef Watch* watch
        if fd >= self.watched:
            return
        watch = &self.watches[fd]
        if watch.reader == <void*>pump:
            watch.reader = NULL
        if watch.writer == <void*>pump:
            watch.writer = NULL
        if watch.reader == NULL and watch.writer == NULL:
            self.ask(fd, 0)

    cdef void serve_all(self) noexcept nogil:
        """Let the pumps move until any of them is over, there is a new one, or one was told to stop."""
        cdef epoll_event[EVENTS] events
        cdef int index, found
        cdef uint64_t number
        cdef bint woken = False
        while not woken and not self.over:
            found = self.wait_for_any(events, self.serve_due())
            for index in range(found):
                if events[index].data.fd == self.wake_fd:
                    woken = True
                    read(self.wake_fd, &number, sizeof(number))
                else:
                    self.serve_ready(events[index].data.fd, events[index].events)

    cdef double serve_due(self) noexcept nogil:
        """Let those move whose time has come; return when the next one's comes, 0: there is none."""
        cdef double now = monotonic()
        cdef double due = 0
        cdef int index = self.timed_count
        cdef void* pump
        while index > 0:  # backwards: those that are added meanwhile have their turn next time
            index -= 1
            pump = self.timed[index]
            if (<Pump>pump).due <= now:
                self.turn(<Pump>pump, False)
        for index in range(self.timed_count):
            pump = self.timed[index]
            if due == 0 or (<Pump>pump).due < due:
                due = (<Pump>pump).due
        return due

    cdef int wait_for_any(self, epoll_event* events, double due) noexcept nogil:
        """Wait until one is ready, or until a time, which epoll_wait itself would round to milliseconds."""
        cdef pollfd all_of_them
        if self.over:
            return 0
        if due > monotonic():
            all_of_them.fd, all_of_them.events = self.epoll_fd, POLLIN
            poll_until(&all_of_them, 1, due)
        return epoll_wait(self.epoll_fd, events, EVENTS, 0 if due > 0 else -1)

    cdef void serve_ready(self, int fd, uint32_t events) noexcept nogil:
        """Let those move that wait for a descriptor, one of them for each way."""
        cdef Watch* watch = &self.watches[fd]
        cdef void* reader = watch.reader
        cdef void* writer = watch.writer
        cdef uint32_t wanted = 0
        if reader != NULL and ((<Pump>reader).step != WAITING or (<Pump>reader).waits not in (EMPTY, MORE)):
            reader = NULL
        if writer != NULL and ((<Pump>writer).step != WAITING or (<Pump>writer).waits not in (FULL, LEFT, KEPT)):
            writer = NULL
        if reader != NULL:
            wanted |= EPOLLIN
        if writer != NULL:
            wanted |= EPOLLOUT
        if watch.asked & events & ~wanted or not wanted:
            self.ask(fd, watch.asked & wanted)
        # Errors are for both. Whose `due` has come already moves without being told.
        if reader != NULL and events & ~EPOLLOUT and (<Pump>reader).waits == EMPTY:
            self.turn(<Pump>reader, True)
        if writer != NULL and events & ~EPOLLIN:
            self.turn(<Pump>writer, True)

    cdef void turn(self, Pump pump, bint ready) noexcept nogil:
        """Let a pump move that is `ready`, or due, or was told to stop."""
        if pump.pipe_in >= 0 or self.lend(pump):
            pump.go_on(ready)
        else:
            pump.end_stall()
            pump.low_water.set_mark(1)  # what takes over begins without one
            pump.refused, pump.step = True, STOPPED
        self.settle(pump)

    cdef void settle(self, Pump pump) noexcept nogil:
        """After a pump has moved: see to what it waits for."""
        cdef uint32_t events
        if pump.left == 0:
            self.take_back(pump)
        if pump.step == WAITING and pump.fd >= 0:
            events = EPOLLIN if pump.events == POLLIN else EPOLLOUT
            if not self.watches[pump.fd].asked & events and not self.ask(pump.fd, self.watches[pump.fd].asked | events):
                pump.step = pump.fail(SOURCE)
        self.note_due(pump, pump.step == WAITING and pump.due > 0)
        self.over += pump.step != WAITING

    cdef bint ask(self, int fd, uint32_t events) noexcept nogil:
        """Ask epoll for events of a descriptor, or with 0 for none at all; tell whether it can do that."""
        cdef Watch* watch = &self.watches[fd]
        cdef epoll_event event
        if events == watch.asked:
            return True
        event.events, event.data.fd = events, fd
        if epoll_ctl(
            self.epoll_fd, EPOLL_CTL_DEL if not events else EPOLL_CTL_MOD if watch.asked else EPOLL_CTL_ADD, fd, &event
        ) < 0:
            return False
        watch.asked = events
        return True

    cdef bint lend(self, Pump pump) noexcept nogil:
        """Give a pump an empty pipe; False where there is none to be had."""
        if self.spare_count:
            self.spare_count -= 1
            pump.pipe_out, pump.pipe_in = self.spares[self.spare_count][0], self.spares[self.spare_count][1]
        else:
            with gil:
                pump.open_own(TURN)
        return pump.pipe_in >= 0

    cdef void take_back(self, Pump pump) noexcept nogil:
        if pump.pipe_in >= 0 and self.spare_count < SPARE:
            self.spares[self.spare_count][0], self.spares[self.spare_count][1] = pump.pipe_out, pump.pipe_in
            self.spare_count += 1
        elif pump.pipe_in >= 0:
            close(pump.pipe_out)
            close(pump.pipe_in)
        pump.pipe_in = pump.pipe_out = -1

    cdef void note_due(self, Pump pump, bint has_due) noexcept nogil:
        """Keep those together that wait for a time, so that nobody looks at the others."""
        cdef int at = pump.timed_at
        cdef void* other
        if has_due and at < 0:
            self.timed[self.timed_count] = <void*>pump
            pump.timed_at = self.timed_count
            self.timed_count += 1
        elif not has_due and at >= 0:
            self.timed_count -= 1
            self.timed[at] = self.timed[self.timed_count]
            other = self.timed[at]
            (<Pump>other).timed_at = at
            pump.timed_at = -1

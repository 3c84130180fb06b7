# cython: language_level=3, boundscheck=False, wraparound=False
"""Read streams into a ring that they share, whole records only, and hand out what is in it.

Cost: a search of what is new, and a copy of the rest of a record from the window to the stream's carry and back.
Invariants:
- The ring has whole records; `runs` has an entry for every byte that it has and nobody has taken. Of these a consumer
  gets what `hold` has released.
- A carry that has grown `large` is read to by itself, and copied once.
- One stream at most has whole records for which the ring has no room, `stuck`: nobody is read until it has.
- Whatever can run Python (an allocation, the loop, a release) or lets go of the GIL comes where the state is whole, and
  after it `verdict` is looked at again: a finalizer may have stopped the stream, or closed all of this.
"""

from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from cpython.object cimport PyObject
from libc.string cimport memcpy, memmove

from ringmain._clock cimport monotonic
from ringmain._cutter cimport UNTOLD, Cutter
from ringmain._linger cimport Hold
from ringmain._member cimport Host, Member
from ringmain._ring cimport CLAIMED, MALFORMED, Block, Ring
from ringmain._runs cimport Run, Runs

# A carry of so many bytes is large: to copy it to the window and back for each read would cost more than a copy at the
# end does.
cdef Py_ssize_t LARGE = 64 << 10

cdef enum:
    HEAD = 16  # bytes that are told of what is no record


cdef class Sorter(Host):
    """Sort what streams bring into a ring that does not cut; see `Merger`."""

    def __init__(
        self, object loop, Ring ring not None, Cutter cutter not None, Py_ssize_t max_record, bytes terminator not None,
        bint skips, double linger
    ):
        if ring.cutter is not None:
            raise ValueError("records are cut before they are in the ring, which must not have a delimiter")
        if max_record < max(1, cutter.least, len(terminator)):
            raise ValueError("a record has at least its delimiter, or its size")
        self.loop, self.ring, self.cutter = loop, ring, cutter
        self.max_record, self.terminator, self.skips = max_record, terminator, skips
        self.members, self.gone, self.runs = set(), [], Runs()
        self.most_runs = max(1024, ring.block_size * ring.block_count // 256)
        self.least = max(1, ring.block_size // 4)
        self.large = max(1, min(LARGE, ring.block_size // 2))
        self.hold = Hold(ring, linger, max(1, ring.block_size // 2))
        # Behind half a block another one is begun: whole ones, of which a consumer often keeps one, are in no cache.
        ring.room = self.least if linger <= 0 else ring.block_size - self.hold.enough + 1
        ring.grow_for(max_record)

    cdef Py_ssize_t read(self, Member member) except? -2:
        """Read once from a stream, and take note of its end; return how much, or STALLED."""
        cdef Py_ssize_t size = self.read_behind(member) if member.size < self.large else self.read_apart(member)
        if size == STALLED or member.verdict is not None or self.wind_up(member):
            return size
        return STALLED

    cdef Py_ssize_t read_behind(self, Member member) except? -2:
        """Read into the ring, behind what there is of a record; return how much, or STALLED."""
        cdef Ring ring = self.ring
        cdef Py_ssize_t kept, got
        if not self.claim(member.size + min(self.quantum, self.least)):
            return STALLED
        if member.verdict is not None:
            return 0
        kept = member.size
        got = member.receive(ring.current, ring.window + kept, min(ring.window_size - kept, self.quantum))
        if got:
            if kept:
                memcpy(ring.window, member.data, kept)
            self.sort(member, ring.window, kept, kept + got)
        return got

    cdef Py_ssize_t read_apart(self, Member member) except? -2:
        """Read behind what there is of a large record; return how much."""
        cdef Py_ssize_t room = min(self.max_record - member.size, self.quantum)
        cdef Py_ssize_t seen = member.size
        cdef Py_ssize_t got
        if not member.make_room(min(room, seen)):
            self.let_go(member, "stopped", MemoryError())
            return 0
        got = member.receive(None, member.data + seen, min(room, member.capacity - seen))
        if got:
            member.size += got
            self.cut(member, seen)
        return got

    cdef int cut(self, Member member, Py_ssize_t seen) except -1:
        """Find what is whole of that which a stream carries."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t end = member.piece(member.data, &at, seen, member.size)
        member.drop_front(at)
        member.whole = end - at
        return self.judge(member)

    cdef int sort(self, Member member, char* data, Py_ssize_t seen, Py_ssize_t end) except -1:
        """Commit the whole records that are in the window, and let the stream carry the rest."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t stop
        cdef bint kept = True
        while (stop := member.piece(data, &at, seen, end)) > at:
            kept = self.runs.append(<PyObject*>member, stop - at, member.offset + stop)
            if not kept:
                break
            if done < at:  # something was left out
                memmove(data + done, data + at, stop - at)
            done += stop - at
            at = stop
            if end - at < self.max_record and not member.counted:
                break
        self.ring.commit_bytes(done)
        self.hold.stored += done
        member.untaken += done
        member.offset += at
        if not kept or not member.keep(data + at, end - at):
            member.dropped += end - at
            member.forget()
            self.let_go(member, "stopped", MemoryError())
        return self.judge(member)

    cdef int judge(self, Member member) except -1:
        """Do what is to be done about records that are too long, and what is none."""
        if member.skipped and not member.told_skip:
            member.told_skip = True
            if member.on_skip is not None:
                self.loop.call_soon(member.on_skip, member.first_skipped)
        if member.refusal == CLAIMED or member.verdict is not None:
            return 0
        if member.refusal == MALFORMED:
            error = ValueError(member.refused_at, member.data[:min(member.size, HEAD)])
        else:
            error = OverflowError(f"the record at offset {member.refused_at} is longer than {self.max_record} bytes")
        if member.verdict is None:  # since memory was had
            self.let_go(member, "stopped", error)
        return 0

    cdef bint wind_up(self, Member member) except -1:
        """Commit what waits, and then, where the stream has ended, do that; False where there is no room."""
        if member.whole:
            if not self.flush(member):
                return False
            if member.counted and member.verdict is None:  # what is behind it tells at once whether it may go on
                self.cut(member, member.size)
        if member.heard is None or member.verdict is not None:
            return True
        if member.hung_up:
            member.heard = "stopped"
        elif member.heard == "ended":
            self.complete(member)
            if member.whole and not self.flush(member):
                return False
        if member.verdict is None:
            self.let_go(member, member.heard, member.heard_error)
        return True

    cdef int complete(self, Member member) except -1:
        """Make a record of what is left at a proper end, or say that it is a part of one."""
        cdef long long offset = member.unfinished()
        if offset >= 0:
            member.heard, member.heard_error = "truncated", EOFError(f"it ended within the record at offset {offset}")
        elif member.size and self.terminator and not member.skipping:
            if member.size + len(self.terminator) > self.max_record:
                member.leave_out(0, member.size, UNTOLD)
                self.judge(member)
            elif member.append(self.terminator, len(self.terminator)):
                # What is left may have had a part of its delimiter: what is behind the first would be another's record.
                member.size = member.whole = self.cutter.first(member.data, 0, member.size)
            else:
                member.heard, member.heard_error = "stopped", MemoryError()
        return 0

    cdef bint flush(self, Member member) except -1:
        """Commit the whole records that a stream carries; False where there is no room, then it is `stuck`."""
        cdef Py_ssize_t size
        if not self.claim(member.whole):
            self.stuck = member if not self.closed else None
            return False
        size = member.whole
        if not self.runs.append(<PyObject*>member, size, member.offset + size):
            self.stuck = member
            raise MemoryError
        self.stuck = None
        memcpy(self.ring.window, member.data, size)
        self.ring.commit_bytes(size)
        self.hold.stored += size
        member.untaken += size
        member.whole = 0
        member.drop_front(size)
        if member.verdict is not None:
            self.announce(member)
        return True

    cdef bint claim(self, Py_ssize_t at_least) except -1:
        """Have a window of at least that many bytes, if there is room. A finalizer may stop and close anything."""
        return self.ring.claim(at_least) == CLAIMED and self.runs.count < self.most_runs and not self.closed

    cdef int let_go(self, Member member, str verdict, object error) except -1:
        """End a stream that has no verdict yet: what is whole is kept, also where there is no room for it yet."""
        member.verdict, member.error = verdict, error
        member.counters.ended = monotonic()
        member.count_stalls()
        if not member.skipping:
            member.dropped += member.size - member.whole
        member.size = member.whole
        if member.whole == 0:
            if not member.reading:
                member.forget()
            self.announce(member)
        member.session = member.heard_error = None
        return 0

    cdef object lend(self, bint tagged):
        """Return a view of what comes next, of one stream's, with the Member, if it is `tagged`."""
        cdef Block block
        cdef Member member
        cdef Py_ssize_t end
        while self.loop is not None and self.hold.released:
            block = <Block>self.ring.ready if self.ring.ready != NULL else self.ring.current
            end = block.filled
            if tagged:
                end = min(end, block.start + self.runs.first().size)
            view = self.ring.lend(block, end)
            if view is not None:  # else others have taken it while it was made
                member = <Member>self.runs.first().owner
                self.strike(PyMemoryView_GET_BUFFER(view).len)
                if self.gone:
                    gone, self.gone = self.gone, []
                    self.members.difference_update(gone)
                return (member, view) if tagged else view
        return None

    cdef int strike(self, Py_ssize_t size) except -1:
        """Account for what was taken."""
        cdef Member member
        cdef Run* run
        cdef Py_ssize_t part
        cdef bint crowded = self.runs.count >= self.most_runs
        self.hold.taken(size)
        while size:
            run = self.runs.first()
            member = <Member>run.owner
            part = min(size, run.size)
            size -= part
            run.size -= part
            member.taken = run.end - run.size
            member.untaken -= part
            member.counters.blocks += 1
            if run.size == 0:
                self.runs.drop_first()
            if member.untaken == 0 and member.whole == 0 and member.verdict is not None:
                self.gone.append(member)
        if crowded and self.paused:
            self.loop.call_soon(self.resume)
        return 0

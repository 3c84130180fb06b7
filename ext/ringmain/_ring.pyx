# cython: language_level=3, boundscheck=False, wraparound=False
"""A bounded ring of blocks that a socket fills and a consumer borrows.

Goal: hand what arrives to Python in few, large, read-only views, without a copy and without a Python object per read.
Cost: claim and commit are a few comparisons; take makes one memoryview; no allocation in steady state.
Invariants:
- All blocks together never have more than `ring_size`, and with a cutter `max_record`, bytes (`_blocks`).
- A block is in exactly one place: `free`, `ready`, `current`, or out with its last bytes lent (retired).
- `start <= filled <= capacity`; a byte below `filled` of the current block is never written again while a view lives.
- A retired block returns to `free` when its last view dies.
- With a cutter every block taken ends where a record does, but for a last one without its delimiter, and nothing is
  ever split or reordered. A record whose size stands in front is never taken in part.
- The bytes of a block follow each other in the stream too: what is skipped is between two blocks.
- Python code runs in three places only, each with nothing half-done: while a block is made, while a view is made (the
  collector, which lets views die and calls whatever they meant to somebody), and in `on_release`. What was read before
  is read again afterwards. A view may die in any thread, also while another reads into the window without the GIL.
No I/O, no event loop, no locks: every entry holds the GIL.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_GET_BUFFER
from cpython.object cimport PyObject
from libc.string cimport memcpy, memmove

from ringmain._blocks cimport Block, BlockPool
from ringmain._cutter cimport BAD, UNTOLD, Cutter
from ringmain._delimiter cimport Delimiter

cdef extern from *:
    """
    #define ringmain_own(view) (view)
    """
    PyObject* make_view "PyMemoryView_FromObject" (object exporter) noexcept  # NULL with an exception, to be owned too
    object own "ringmain_own" (PyObject* view)
    long long PY_LLONG_MAX


@cython.final
@cython.no_gc_clear
cdef class Ring(BlockPool):
    """Hold the blocks of one loader.

    ring_size, block_size and max_record are bytes. Every taken block has to end at the delimiter, if that is not empty,
    or where a cutter says. A record, its delimiter or size included, of more than max_record bytes ends the stream, or
    with `skips` is left out.
    """

    def __cinit__(
        self, Py_ssize_t ring_size, Py_ssize_t block_size, bytes delimiter=b"", Py_ssize_t max_record=1 << 26,
        bint skips=False, Cutter cutter=None
    ):
        if block_size < 1 or ring_size < 4 * block_size:
            raise ValueError("a ring needs at least four blocks: to fill, to carry a partial record, and two to lend")
        self.cutter = Delimiter(delimiter) if delimiter else cutter
        if max_record < (self.cutter.least if self.cutter is not None else 1):
            raise ValueError("a record has at least its delimiter, or its size")
        self.block_size = self.largest = block_size
        self.block_count = ring_size // block_size
        self.max_record = max_record
        self.budget = ring_size
        self.delimiter = delimiter
        self.skips = skips and self.cutter is not None
        if self.cutter is not None:
            self.counted = self.cutter.counted
            self.grow_for(max_record)

    def __repr__(self):
        return f"<Ring {self.block_count} blocks of {self.block_size} bytes, {self.lent} lent>"

    def reserve(self, Py_ssize_t at_least=1):
        """Return a writable view of at least that many bytes, or None when no block is free.

        It is shorter only where a record is about to outgrow `max_record`. `at_least` is `block_size` at most.
        The view borrows the ring's memory: fill it, call `commit`, and drop it before the next call of any kind.
        May be repeated; raises OverflowError when a record has outgrown `max_record`, ValueError where none begins.
        """
        if at_least > self.block_size:
            raise ValueError("cannot reserve more than a block")
        cdef Claim claim = self.claim(at_least)
        if claim == CLAIMED:
            return PyMemoryView_FromMemory(self.window, self.window_size, PyBUF_WRITE)
        if claim == TOO_LONG:
            raise OverflowError(f"a record is longer than {self.max_record} bytes")
        if claim == MALFORMED:
            raise ValueError(f"no record begins with {self.head[:self.head_size]}")
        return None

    def commit(self, Py_ssize_t size):
        """Declare the first `size` bytes of the last reservation filled."""
        if size < 0 or size > self.window_size:
            raise ValueError("cannot commit more than was reserved")
        self.commit_bytes(size)

    cpdef object take(self):
        """Return all that is filled as a read-only view that owns its block, or None when there is nothing to take.

        Blocks come in order, at most one at a time; with a cutter, up to the last record that came whole.
        """
        cdef Block block
        cdef Py_ssize_t end
        cdef long long skipped
        while True:
            block = <Block>self.ready if self.ready != NULL else self.current
            if block is None:
                return None
            skipped = self.skipped_bytes
            end = self.whole(block, block.filled if self.ready != NULL else self.cut)
            if self.skipped_bytes != skipped:  # which leaves room
                self.tell()
            elif end > block.start:
                view = self.lend(block, end)
                if view is not None:
                    return view
            elif self.ready == NULL:
                return None
            else:  # all that it had was skipped
                self.ready = block.next
                self.move_on(block)
                self.tell()

    cpdef int finish(self) except -1:
        """Close the stream; what comes next starts a block of its own.

        What is left may be taken, cut or not, but for what came of a record whose size stands in front.
        """
        cdef Block block = self.current
        if block is not None:
            if self.skipping or (self.counted and self.unfinished() >= 0):
                block.filled = self.cut
            self.current = None
            self.move_on(block)
        self.window_size = self.cut = 0
        self.starving = self.skipping = False
        self.refusal = CLAIMED
        return 0

    def drop(self):
        """Forget all that was not taken."""
        cdef Block block
        self.finish()
        while self.ready != NULL:
            block = <Block>self.ready
            self.ready = block.next
            block.start = block.filled
            self.move_on(block)
        self.skipped_records = self.skipped_bytes = 0

    @property
    def starved(self):
        """Whether a claim found no block and there is nothing to take: the consumer holds them all."""
        return self.starving and self.ready == NULL

    cdef bint holds(self, Py_ssize_t size) noexcept:
        """Tell whether a full block waits, or at least `size` bytes of one."""
        cdef Block block = self.current
        return self.ready != NULL or (block.filled - block.start if block is not None else 0) >= size

    cdef Claim claim(self, Py_ssize_t at_least) except CLAIM_FAILED:
        """Have a window of at least that many bytes, less only where a record is about to outgrow `max_record`."""
        cdef Block block
        cdef Py_ssize_t rest
        if self.free == NULL and self.made < self.block_count:
            self.make_block()
        if self.refusal != CLAIMED:
            return self.refusal
        block = self.current
        if block is None:
            block = self.fresh(self.block_size)
            if block is None:
                return NO_BLOCK
            block.base = 0
            self.current = block
        elif block.start == block.filled and block.idle():
            if block.capacity > self.block_size:  # or else there is nothing to call another module for
                self.shrink(block, max(block.filled, self.block_size))
            block.base += block.filled
            block.start = block.filled = self.cut = 0
        rest = block.capacity - block.filled
        if self.skipping or rest < (max(at_least, self.room) if block.start == block.filled else at_least):
            if not self.go_on(block, at_least):
                return NO_BLOCK
            block = self.current
        self.window = block.data + block.filled
        self.window_size = block.capacity - block.filled
        return CLAIMED

    cdef bint go_on(self, Block block, Py_ssize_t at_least) except -1:
        """Go on at the front of the current block, or in another one; tell whether there is one to be had.

        What goes with it is the record that has only begun, or of one that is skipped the bytes that may begin its
        delimiter.
        """
        cdef Block next_block
        cdef Py_ssize_t carried = max(self.cut, block.filled - self.cutter.overlap) if self.skipping else self.cut
        cdef Py_ssize_t rest = block.filled - carried
        if self.cut == block.start and block.idle():
            if carried:
                memmove(block.data, block.data + carried, rest)
                block.base += carried
                block.start, block.filled, self.cut = 0, rest, 0
            if self.skipping:
                self.shrink(block, max(rest, self.block_size))
            if not self.fit(block, self.enough(rest + at_least)):
                self.starving = True
                return False
            return True
        next_block = self.fresh(self.enough(rest + at_least))
        if next_block is None:
            return False
        memcpy(next_block.data, block.data + carried, rest)
        next_block.base = block.base + carried
        next_block.filled = rest
        block.filled = self.cut
        self.current = next_block
        self.cut = 0
        self.move_on(block)
        return True

    cdef void commit_bytes(self, Py_ssize_t size) noexcept:
        cdef Block block = self.current
        if size > self.window_size or block is None:
            return  # the stream was ended while this was read
        self.window_size = 0
        block.filled += size
        if self.cutter is not None:
            self.find_cut(block, size)
        else:
            self.cut = block.filled

    cdef void move_on(self, Block block) noexcept:
        """Find the place of a block that is filled no further: ready, free, or out until its views die."""
        if block.start < block.filled:
            if block.idle():
                self.shrink(block, max(block.filled, self.block_size))
            block.next = NULL
            if self.ready == NULL:
                self.ready = <PyObject*>block
            else:
                (<Block>self.last_ready).next = <PyObject*>block
            self.last_ready = <PyObject*>block
        elif block.idle():
            self.recycle(block)
        else:
            block.retired = True

    cdef object lend(self, Block block, Py_ssize_t end):
        """Return a view of what a block has up to `end`; None if something else was done with that meanwhile.

        While the view is made the collector may run and call anything, this ring too. So the block counts as lent
        before, and what is lent is struck off only when the view is there.
        """
        cdef PyObject* made
        cdef Py_buffer* buffer
        cdef Py_ssize_t start = block.start
        block.pool = self
        block.lend_offset = start
        block.lend_size = end - start
        block.lending += 1
        made = make_view(block)
        block.lending -= 1
        if block.exports == 0 and block.lending == 0:
            block.let_go()
        view = own(made)
        buffer = PyMemoryView_GET_BUFFER(view)
        if block.start != start or buffer.buf != block.data + start or buffer.len != end - start:
            return None
        if self.ready == <PyObject*>block:
            if end == block.filled:
                self.ready = block.next
                block.retired = True
        elif self.ready != NULL or self.current is not block:
            return None
        block.start = end
        self.taken = block.base + end
        return view

    cdef Py_ssize_t whole(self, Block block, Py_ssize_t end) noexcept:
        """Return how far a block can be lent on its way to `end`; skip a record that is too long at its start."""
        cdef Py_ssize_t good
        while self.skips and end - block.start >= self.max_record:
            good = self.cutter.reach(block.data, block.start, end, self.max_record)
            if end - good < self.max_record:
                break
            if good > block.start:
                return good
            good = self.cutter.behind(block.data, block.start, end)
            self.long_at = block.base + block.start
            self.skipped_records += 1
            self.skipped_bytes += good - block.start
            block.start = good
        return end

    cdef void find_cut(self, Block block, Py_ssize_t size) noexcept:
        """Find where the last whole record ends, now that `size` bytes more have come."""
        cdef Py_ssize_t end = block.filled
        cdef Py_ssize_t found
        if self.skipping:
            if self.skip_end == 0:
                found = self.cutter.first(block.data, block.start, end)
            else:
                found = self.skip_end - block.base if self.skip_end <= block.base + end else -1
            self.skip_to(block.base + (end if found < 0 else found))
            if found < 0:
                return
            self.skipping = False
            block.start = self.cut = found
        if end - self.cut >= self.max_record and not self.skips:
            self.cut = self.cutter.reach(block.data, self.cut, end, self.max_record)
        else:
            found = self.cutter.last(block.data, self.cut, end - size, end)
            if found >= 0:
                self.cut = found
        if end - self.cut >= self.max_record or (self.counted and end > self.cut):
            self.look_ahead(block, end)

    cdef void look_ahead(self, Block block, Py_ssize_t end) noexcept:
        """Go no further than the cut, or skip the record behind it, if that is too long or none."""
        cdef long long size = self.cutter.size_at(block.data, self.cut, end)
        if size != BAD and size <= self.max_record and end - self.cut < self.max_record:
            return
        self.long_at = block.base + self.cut
        if size == BAD or not self.skips:
            self.refusal = MALFORMED if size == BAD else TOO_LONG
            self.head_size = min(end - self.cut, <Py_ssize_t>sizeof(self.head))
            memcpy(self.head, block.data + self.cut, self.head_size)
            block.filled = self.cut
        else:
            self.skipping = True
            self.skipped = self.long_at
            self.skip_end = self.long_at + min(size, PY_LLONG_MAX - self.long_at) if size > 0 else 0
            self.skipped_records += 1
            self.skip_to(block.base + end)

    cdef long long unfinished(self) noexcept:
        """Return where the record begins that has not come whole though its size stands in front, or -1."""
        cdef Block block = self.current
        if self.skipping:
            return self.long_at if self.skip_end > 0 else -1
        if block is None or block.filled == self.cut or not self.counted:
            return -1
        return block.base + self.cut if self.cutter.size_at(block.data, self.cut, block.filled) != UNTOLD else -1

    cdef void skip_to(self, long long offset) noexcept:
        """Count what is thrown away of a record that is too long."""
        self.skipped_bytes += offset - self.skipped
        self.skipped = offset

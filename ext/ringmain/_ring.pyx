# cython: language_level=3, boundscheck=False, wraparound=False
"""A bounded ring of blocks that a socket fills and a consumer borrows.

Goal: hand what arrives to Python in few, large, read-only views, without a copy and without a Python object per read.
Cost: claim and commit are a few comparisons; take makes one memoryview; no allocation in steady state.
Invariants:
- At most `block_count` blocks exist, each of `block_size` bytes; one that a longer record is in grows, to `max_record`
  bytes at most. All together never have more than `ring_size`, and with a delimiter `max_record`, bytes.
- A block is in exactly one place: `free`, `ready`, `current`, or out with its last bytes lent (retired).
- `start <= filled <= capacity`; a byte below `filled` of the current block is never written again while a view lives.
- A retired block returns to `free` when its last view dies; the block freed last is used first.
- With a delimiter every block taken ends at one, except the last of a stream and nothing is ever split or reordered.
- The bytes of a block follow each other in the stream too: what is skipped is between two blocks.
- Python code runs in three places only, each with nothing half-done: while a block is made, while a view is made (the
  collector, which lets views die and calls whatever they meant to somebody), and in `on_release`. What was read before
  is read again afterwards. A view may die in any thread, also while another reads into the window without the GIL.
No I/O, no event loop, no locks: every entry holds the GIL.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITE, PyBuffer_FillInfo
from cpython.exc cimport PyErr_Fetch, PyErr_Restore
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_GET_BUFFER
from cpython.object cimport PyObject
from libc.string cimport memcmp, memcpy, memmove

cdef extern from *:
    """
    #include <string.h>
    #ifndef __linux__
    static void* memrchr(const void* bytes, int byte, size_t size) {
        for (const char* end = (const char*)bytes + size; size > 0; size--)
            if (*--end == (char)byte) return (void*)end;
        return NULL;
    }
    #endif
    """
    void* memrchr(const void* bytes, int byte, size_t size) noexcept
    void* memchr(const void* bytes, int byte, size_t size) noexcept
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from *:
    """
    #define ringmain_own(view) (view)
    """
    PyObject* make_view "PyMemoryView_FromObject" (object exporter) noexcept  # NULL with an exception, to be owned too
    object own "ringmain_own" (PyObject* view)

cdef Py_ssize_t SPARE = 64  # SIMD parsers (simdjson, msgspec) read whole vectors past the end


cdef class Counters:
    """Count what one stream did. Plain fields, written by whoever moves the bytes, read at leisure."""


@cython.final
@cython.no_gc_clear  # a view that dies while the collector takes a cycle apart still needs the way back
cdef class Block:
    """Own one stretch of memory, which its ring gives it; export what was lent of it, read-only."""

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.ring is None:
            raise BufferError("this block went back to its ring; keep the memoryview, not its .obj")
        PyBuffer_FillInfo(view, self, self.data + self.lend_offset, self.lend_size, 1, flags)
        if self.exports == 0:
            self.ring.lent += 1
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1
        if self.exports == 0:
            self.ring.lent -= 1
            if self.lending == 0:
                self.let_go()

    cdef bint idle(self) noexcept:
        """Tell whether nobody looks at its memory."""
        return self.exports == 0 and self.lending == 0 and self.pinned == 0

    cdef void let_go(self) noexcept:
        """Go back after the last view has died."""
        cdef Ring ring = self.ring
        self.ring = None
        ring.came_back(self)


@cython.final
@cython.no_gc_clear
cdef class Ring:
    """Hold the blocks of one loader.

    ring_size, block_size and max_record are bytes. delimiter: empty, or what every taken block has to end at. A record,
    its delimiter included, of more than max_record bytes ends the stream, or with `skips` is left out.
    What `on_release` raises goes to `sys.unraisablehook`: it is called where a view dies, and nobody is there to catch.
    """

    def __cinit__(
        self, Py_ssize_t ring_size, Py_ssize_t block_size, bytes delimiter=b"", Py_ssize_t max_record=1 << 26,
        bint skips=False
    ):
        if block_size < 1 or ring_size < 4 * block_size:
            raise ValueError("a ring needs at least four blocks: to fill, to carry a partial record, and two to lend")
        if max_record < max(1, len(delimiter)):  # what is kept of a skipped record would fill its block
            raise ValueError("a record has at least its delimiter")
        self.block_size = self.largest = block_size
        self.block_count = ring_size // block_size
        self.max_record = max_record
        self.budget = ring_size
        self.delimiter = delimiter
        self.skips = skips and len(delimiter) > 0
        if delimiter:
            self.budget += min(max_record, PY_SSIZE_T_MAX - ring_size)
            self.largest = max(block_size, max_record)
            self.overlap = len(delimiter) - 1
            # Where a delimiter may begin within another, which of them count is told from the front of a record only.
            self.ambiguous = any([delimiter.startswith(delimiter[size:]) for size in range(1, len(delimiter))])
        self.blocks = []

    def reserve(self, Py_ssize_t at_least=1):
        """Return a writable view of at least that many bytes, or None when no block is free.

        It is shorter only where a record is about to outgrow `max_record`. `at_least` is `block_size` at most.
        The view borrows the ring's memory: fill it, call `commit`, and drop it before the next call of any kind.
        May be repeated; raises OverflowError when a record has outgrown `max_record`.
        """
        if at_least > self.block_size:
            raise ValueError("cannot reserve more than a block")
        cdef Claim claim = self.claim(at_least)
        if claim == NO_BLOCK:
            return None
        if claim == TOO_LONG:
            raise OverflowError(f"a record is longer than {self.max_record} bytes")
        return PyMemoryView_FromMemory(self.window, self.window_size, PyBUF_WRITE)

    def commit(self, Py_ssize_t size):
        """Declare the first `size` bytes of the last reservation filled."""
        if size < 0 or size > self.window_size:
            raise ValueError("cannot commit more than was reserved")
        self.commit_bytes(size)

    cpdef object take(self):
        """Return all that is filled as a read-only view that owns its block, or None when there is nothing to take.

        Blocks come in order, at most one at a time; with a delimiter, up to the last one that came.
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
        """Close the stream: what is left, cut or not, may be taken; what comes next starts a block of its own."""
        cdef Block block = self.current
        if block is not None:
            if self.skipping:
                block.filled = self.cut
            self.current = None
            self.move_on(block)
        self.window_size = self.cut = 0
        self.starving = self.skipping = self.too_long = False
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
    def fullness(self):
        """The part of the ring that is filled or lent, from 0 to 1."""
        return (self.made - self.unused) / self.block_count

    @property
    def starved(self):
        """Whether a claim found no block and there is nothing to take: the consumer holds them all."""
        return self.starving and self.ready == NULL

    cdef bint holds(self, Py_ssize_t size) noexcept:
        """Tell whether a full block waits, or at least `size` bytes of one."""
        cdef Block block = self.current
        return self.ready != NULL or (block.filled - block.start if block is not None else 0) >= size

    cdef Claim claim(self, Py_ssize_t at_least) except CLAIM_FAILED:
        cdef Block block
        cdef Block next_block
        cdef Py_ssize_t carried, rest
        if self.free == NULL and self.made < self.block_count:
            self.make_block()
        if self.too_long:
            return TOO_LONG
        block = self.current
        if block is None:
            block = self.fresh(self.block_size)
            if block is None:
                return NO_BLOCK
            block.base = 0
            self.current = block
        elif block.start == block.filled and block.idle():
            self.shrink(block, max(block.filled, self.block_size))
            block.base += block.filled
            block.start = block.filled = self.cut = 0
        rest = block.capacity - block.filled
        if self.skipping or rest < (max(at_least, self.room) if block.start == block.filled else at_least):
            # What goes on in another block, or at the front of this one: the record that has only begun, or of one that
            # is skipped the bytes that may begin its delimiter.
            carried = max(self.cut, block.filled - self.overlap) if self.skipping else self.cut
            rest = block.filled - carried
            if self.cut == block.start and block.idle():
                if carried:
                    memmove(block.data, block.data + carried, rest)
                    block.base += carried
                    block.start, block.filled, self.cut = 0, rest, 0
                if self.skipping:
                    self.shrink(block, max(rest, self.block_size))
                if not self.fit(block, self.enough(rest + at_least)):
                    self.starving = True
                    return NO_BLOCK
            else:
                next_block = self.fresh(self.enough(rest + at_least))
                if next_block is None:
                    return NO_BLOCK
                memcpy(next_block.data, block.data + carried, rest)
                next_block.base = block.base + carried
                next_block.filled = rest
                block.filled = self.cut
                self.current = next_block
                self.cut = 0
                self.move_on(block)
                block = next_block
        self.window = block.data + block.filled
        self.window_size = block.capacity - block.filled
        return CLAIMED

    cdef void commit_bytes(self, Py_ssize_t size) noexcept:
        cdef Block block = self.current
        if size > self.window_size or block is None:
            return  # the stream was ended while this was read
        self.window_size = 0
        block.filled += size
        if self.delimiter:
            self.find_cut(block, size)
        else:
            self.cut = block.filled

    cdef int make_block(self) except -1:
        """Have a block in `free`, without memory yet. The collector may run: call it before anything is looked at."""
        cdef Block block = Block.__new__(Block)
        if self.free == NULL and self.made < self.block_count:
            self.blocks.append(block)
            self.made += 1
            self.recycle(block)
        return 0

    cdef Block fresh(self, Py_ssize_t capacity):
        """Return an empty block, or None and remember that one is wanted."""
        cdef Block block
        if self.free == NULL or not self.fit(<Block>self.free, capacity):
            self.starving = True
            return None
        block = <Block>self.free
        self.free = block.next
        self.unused -= 1
        return block

    cdef bint fit(self, Block block, Py_ssize_t capacity) except -1:
        """Let a block have that many bytes; tell whether it has, or the others have too many."""
        cdef PyObject* other = self.free
        cdef char* data
        if capacity <= block.capacity:
            return True
        while self.memory - block.capacity + capacity > self.budget and other != NULL:
            if other != <PyObject*>block:
                self.shrink(<Block>other, 0)
            other = (<Block>other).next
        if self.memory - block.capacity + capacity > self.budget:
            return False
        data = <char*>PyMem_RawRealloc(block.data, capacity + SPARE)
        if data == NULL:
            raise MemoryError
        self.memory += capacity - block.capacity
        block.data = data
        block.capacity = capacity
        return True

    cdef void shrink(self, Block block, Py_ssize_t capacity) noexcept:
        """Let a block at which nobody looks have no more bytes than that."""
        cdef char* data = NULL
        if capacity >= block.capacity:
            return
        if capacity == 0:
            PyMem_RawFree(block.data)
        else:
            data = <char*>PyMem_RawRealloc(block.data, capacity + SPARE)
            if data == NULL:
                return
        self.memory -= block.capacity - capacity
        block.data = data
        block.capacity = capacity

    cdef Py_ssize_t enough(self, Py_ssize_t size) noexcept:
        """Return what a block should have so that `size` bytes fit, and a growing record does not move all the time."""
        cdef Py_ssize_t capacity = self.block_size
        while capacity < size and capacity < self.largest:
            capacity = min(2 * capacity, self.largest)
        return capacity

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

    cdef void recycle(self, Block block) noexcept:
        block.start = block.filled = 0
        block.retired = False
        self.shrink(block, self.block_size)
        block.next = self.free
        self.free = <PyObject*>block
        self.unused += 1

    cdef void came_back(self, Block block) noexcept:
        """Go on after the last view of a block has died."""
        if block.retired and block.idle():
            self.recycle(block)
        self.tell()

    cdef void unpin(self, Block block) noexcept:
        """Let a block go that was read into without the GIL, and in which `pinned` was counted for that."""
        block.pinned -= 1
        if block.retired and block.idle():
            self.recycle(block)
            self.tell()

    cdef void tell(self) noexcept:
        """Tell who found no block that there may be one now."""
        cdef PyObject* kind
        cdef PyObject* error
        cdef PyObject* traceback
        if not self.starving:
            return
        self.starving = False
        on_release = self.on_release
        if on_release is None:
            return
        # A view may die while an exception is on its way, and whoever is told of it must neither see nor lose that.
        PyErr_Fetch(&kind, &error, &traceback)
        call_unraisably(on_release)
        PyErr_Restore(kind, error, traceback)

    cdef object lend(self, Block block, Py_ssize_t end):
        """Return a view of what a block has up to `end`; None if something else was done with that meanwhile.

        While the view is made the collector may run and call anything, this ring too. So the block counts as lent
        before, and what is lent is struck off only when the view is there.
        """
        cdef PyObject* made
        cdef Py_buffer* buffer
        cdef Py_ssize_t start = block.start
        block.ring = self
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
            good = self.reach(block, block.start, end)
            if end - good < self.max_record:
                break
            if good > block.start:
                return good
            good = self.first_cut(block, block.start, end)
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
            found = self.first_cut(block, block.start, end)
            self.skip_to(block.base + (end if found < 0 else found))
            if found < 0:
                return
            self.skipping = False
            block.start = self.cut = found
        if end - self.cut >= self.max_record and not self.skips:
            self.cut = self.reach(block, self.cut, end)
            if end - self.cut >= self.max_record:
                self.too_long = True
                self.long_at = block.base + self.cut
                block.filled = self.cut
            return
        found = self.last_cut(block, self.cut if self.ambiguous else max(self.cut, end - size - self.overlap), end)
        if found >= 0:
            self.cut = found
        if end - self.cut >= self.max_record:
            self.skipping = True
            self.long_at = self.skipped = block.base + self.cut
            self.skipped_records += 1
            self.skip_to(block.base + end)

    cdef void skip_to(self, long long offset) noexcept:
        """Count what is thrown away of a record that is too long."""
        self.skipped_bytes += offset - self.skipped
        self.skipped = offset

    cdef Py_ssize_t reach(self, Block block, Py_ssize_t start, Py_ssize_t end) noexcept:
        """Return how far one can get from `start` by whole records, none longer than `max_record`."""
        cdef Py_ssize_t found
        while start < end:
            found = self.last_cut(block, start, start + min(end - start, self.max_record))
            if found < 0:
                break
            start = found
        return start

    cdef Py_ssize_t first_cut(self, Block block, Py_ssize_t start, Py_ssize_t end) noexcept:
        """Return the offset behind the first delimiter between two offsets, or -1."""
        cdef Py_ssize_t size = len(self.delimiter)
        cdef char* delimiter = self.delimiter
        cdef char* found
        cdef Py_ssize_t at = start + size - 1
        while at < end:
            found = <char*>memchr(block.data + at, delimiter[size - 1], end - at)
            if found == NULL:
                break
            at = found + 1 - block.data
            if memcmp(block.data + at - size, delimiter, size) == 0:
                return at
        return -1

    cdef Py_ssize_t last_cut(self, Block block, Py_ssize_t start, Py_ssize_t end) noexcept:
        """Return the offset behind the last delimiter between two offsets, or -1."""
        cdef Py_ssize_t size = len(self.delimiter)
        cdef char* delimiter = self.delimiter
        cdef char* found
        cdef Py_ssize_t stop = start + size - 1
        cdef Py_ssize_t last = -1
        if self.ambiguous:
            while (start := self.first_cut(block, start, end)) >= 0:
                last = start
            return last
        while end > stop:
            found = <char*>memrchr(block.data + stop, delimiter[size - 1], end - stop)
            if found == NULL:
                break
            end = found + 1 - block.data
            if memcmp(block.data + end - size, delimiter, size) == 0:
                return end
            end -= 1
        return -1

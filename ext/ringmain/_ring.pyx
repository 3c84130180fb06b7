# cython: language_level=3, boundscheck=False, wraparound=False
"""A bounded ring of blocks that a socket fills and a consumer borrows.

Goal: hand what arrives to Python in few, large, read-only views, without a copy and without a Python object per read.
Cost: claim and commit are a few comparisons; take makes one memoryview; no allocation in steady state.
Invariants:
- At most `block_count` blocks exist, each of `block_size` bytes (a record longer than that makes one of them grow).
- A block is in exactly one place: `free`, `ready`, `current`, or out with its last bytes lent (retired).
- `start <= filled <= capacity`; a byte below `filled` of the current block is never written again while a view lives.
- A retired block returns to `free` when its last view dies; the block freed last is used first.
- With a delimiter every block taken ends at one, except the last of a stream and nothing is ever split or reordered.
No I/O, no event loop, no locks: every entry holds the GIL.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITE, PyBuffer_FillInfo
from cpython.exc cimport PyErr_Fetch, PyErr_Restore
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_FromObject
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

cdef Py_ssize_t SPARE = 64  # SIMD parsers (simdjson, msgspec) read whole vectors past the end


cdef class Counters:
    """Count what one stream did. Plain fields, written by whoever moves the bytes, read at leisure."""


@cython.no_gc_clear  # a view that dies while the collector takes a cycle apart still needs the way back
cdef class Block:
    """Own one stretch of memory; export what was lent of it, read-only."""

    def __cinit__(self, Py_ssize_t capacity):
        self.data = <char*>PyMem_RawMalloc(capacity + SPARE)
        if self.data == NULL:
            raise MemoryError
        self.capacity = capacity

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.ring is None:
            raise BufferError("this block went back to its ring; keep the memoryview, not its .obj")
        PyBuffer_FillInfo(view, self, self.data + self.lend_offset, self.lend_size, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        cdef Ring ring
        cdef PyObject* kind
        cdef PyObject* error
        cdef PyObject* traceback
        self.exports -= 1
        if self.exports == 0:
            # A view may die while an exception is on its way, and whoever is told of it must neither see nor lose that.
            PyErr_Fetch(&kind, &error, &traceback)
            ring = self.ring
            self.ring = None
            ring.released(self)
            PyErr_Restore(kind, error, traceback)

    cdef int resize(self, Py_ssize_t capacity) except -1:
        cdef char* data = <char*>PyMem_RawRealloc(self.data, capacity + SPARE)
        if data == NULL:
            raise MemoryError
        self.data = data
        self.capacity = capacity
        return 0


@cython.no_gc_clear
cdef class Ring:
    """Hold the blocks of one loader.

    ring_size, block_size and max_record are bytes. delimiter: empty, or what every taken block has to end at.
    """

    def __init__(self, Py_ssize_t ring_size, Py_ssize_t block_size, bytes delimiter=b"", Py_ssize_t max_record=1 << 26):
        if block_size < 1 or ring_size < 4 * block_size:
            raise ValueError("a ring needs at least four blocks: to fill, to carry a partial record, and two to lend")
        self.block_size = block_size
        self.block_count = ring_size // block_size
        self.max_record = max_record
        self.delimiter = delimiter
        self.free = []
        self.ready = []

    def reserve(self, Py_ssize_t at_least=1):
        """Return a writable view of at least that many bytes, or None when no block is free.

        The view borrows the ring's memory: fill it, call `commit`, and drop it before the next call of any kind.
        May be repeated; raises OverflowError when a record has outgrown `max_record`.
        """
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
        if self.ready:
            block = <Block>self.ready.pop(0)
            view = self.lend(block, block.filled)
            block.retired = True
            return view
        block = self.current
        if block is None:
            return None
        end = self.last_cut(block)
        if end == block.start:
            return None
        return self.lend(block, end)

    cpdef int finish(self) except -1:
        """Close the stream: what is left, cut or not, may be taken; what comes next starts a block of its own."""
        cdef Block block = self.current
        if block is not None:
            self.current = None
            self.move_on(block)
        self.window_size = self.scanned = 0
        self.starving = False
        return 0

    def drop(self):
        """Forget all that was not taken."""
        cdef Block block
        self.finish()
        for block in self.ready:
            block.start = block.filled
            self.move_on(block)
        self.ready.clear()

    @property
    def fullness(self):
        """The part of the ring that is filled or lent, from 0 to 1."""
        return (self.made - len(self.free)) / self.block_count

    @property
    def starved(self):
        """Whether a claim found no block and there is nothing to take: the consumer holds them all."""
        return self.starving and not self.ready

    @property
    def uncut(self):
        """How many bytes have come behind the last delimiter."""
        cdef Block block = self.current
        return 0 if block is None else block.filled - self.last_cut(block)

    cdef bint holds(self, Py_ssize_t size) noexcept:
        """Tell whether a full block waits, or at least `size` bytes of one."""
        cdef Block block = self.current
        return len(self.ready) > 0 or (block.filled - block.start if block is not None else 0) >= size

    cdef Claim claim(self, Py_ssize_t at_least) except CLAIM_FAILED:
        cdef Block block = self.current
        cdef Block next_block
        cdef Py_ssize_t end, rest, capacity
        if block is None:
            block = self.current = self.fresh(self.block_size)
            if block is None:
                return NO_BLOCK
        elif block.start == block.filled and block.exports == 0:
            block.start = block.filled = self.scanned = 0
        if block.capacity - block.filled < (max(at_least, self.room) if block.start == block.filled else at_least):
            end = self.last_cut(block)
            rest = block.filled - end
            if rest >= self.max_record:
                return TOO_LONG
            capacity = self.block_size
            while capacity < rest + at_least:
                capacity *= 2
            if rest and end == block.start and block.exports == 0:
                memmove(block.data, block.data + block.start, rest)
                block.start, block.filled, self.scanned = 0, rest, rest
                if capacity > block.capacity:
                    block.resize(capacity)
            else:
                next_block = self.fresh(capacity)
                if next_block is None:
                    return NO_BLOCK
                memcpy(next_block.data, block.data + end, rest)
                next_block.filled = self.scanned = rest
                block.filled = end
                self.current = next_block
                self.move_on(block)
                block = next_block
        self.window = block.data + block.filled
        self.window_size = block.capacity - block.filled
        return CLAIMED

    cdef void commit_bytes(self, Py_ssize_t size) noexcept:
        self.current.filled += size
        self.window_size = 0

    cdef Block fresh(self, Py_ssize_t capacity):
        """Return an empty block, or None and remember that one is wanted."""
        cdef Block block
        if self.free:
            block = <Block>self.free.pop()
            if block.capacity < capacity:
                block.resize(capacity)
            return block
        if self.made == self.block_count:
            self.starving = True
            return None
        block = Block(capacity)
        self.made += 1
        return block

    cdef int move_on(self, Block block) except -1:
        """Find the place of a block that is filled no further: ready, free, or out until its views die."""
        if block.start < block.filled:
            self.ready.append(block)
        elif block.exports:
            block.retired = True
        else:
            block.start = block.filled = 0
            block.retired = False
            if block.capacity > self.block_size:
                block.resize(self.block_size)
            self.free.append(block)
        return 0

    cdef int released(self, Block block) except -1:
        self.lent -= 1
        if block.retired:
            self.move_on(block)
        if self.starving:
            self.starving = False
            if self.on_release is not None:
                self.on_release()
        return 0

    cdef object lend(self, Block block, Py_ssize_t end):
        if block.exports == 0:
            self.lent += 1
            block.ring = self
        block.lend_offset = block.start
        block.lend_size = end - block.start
        block.start = end
        return PyMemoryView_FromObject(block)

    cdef Py_ssize_t last_cut(self, Block block) noexcept:
        """Return the offset behind the last delimiter among the bytes not lent yet, or their start."""
        cdef Py_ssize_t size = len(self.delimiter)
        cdef char* delimiter = self.delimiter
        cdef char* found
        cdef Py_ssize_t end, stop
        if size == 0:
            return block.filled
        stop = self.scanned if self.scanned > block.start + size - 1 else block.start + size - 1
        end = block.filled
        while end > stop:
            found = <char*>memrchr(block.data + stop, delimiter[size - 1], end - stop)
            if found == NULL:
                break
            end = found + 1 - block.data
            if memcmp(block.data + end - size, delimiter, size) == 0:
                return end
            end -= 1
        self.scanned = block.filled
        return block.start

# cython: language_level=3, boundscheck=False, wraparound=False
"""Blocks of memory within a budget, and who looks at them.

Goal: what the kernel copies to should be in a cache. Cost: no allocation in steady state.
Invariants:
- At most `block_count` blocks exist, each of `block_size` bytes; one that a longer record is in grows, to `largest`
  bytes at most. All together never have more than `budget` bytes.
- A block at which nobody looks may be moved and shrunk; the block freed last is used first.
- Python code runs in two places only, each with nothing half-done: while a block is made (the collector, which lets
  views die and calls whatever they meant to somebody), and in `on_release`. A view may die in any thread, also while
  another reads into its block without the GIL.
No I/O, no event loop, no locks: every entry holds the GIL.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_Fetch, PyErr_Restore
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject

from ringmain._unraisable cimport call_unraisably

cdef extern from *:
    Py_ssize_t PY_SSIZE_T_MAX

cdef Py_ssize_t SPARE = 64  # SIMD parsers (simdjson, msgspec) read whole vectors past the end


@cython.no_gc_clear  # a view that dies while the collector takes a cycle apart still needs the way back
cdef class Block:
    """Own one stretch of memory, which its pool gives it; export what was lent of it, read-only."""

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.pool is None:
            raise BufferError("this block went back to its ring; keep the memoryview, not its .obj")
        PyBuffer_FillInfo(view, self, self.data + self.lend_offset, self.lend_size, 1, flags)
        if self.exports == 0:
            self.pool.lent += 1
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1
        if self.exports == 0:
            self.pool.lent -= 1
            if self.lending == 0:
                self.let_go()

    cdef void let_go(self) noexcept:
        """Go back after the last view has died."""
        cdef BlockPool pool = self.pool
        self.pool = None
        pool.came_back(self)


@cython.no_gc_clear
cdef class BlockPool:
    """Own the blocks of a ring: make, grow, shrink and reuse them.

    What `on_release` raises goes to `sys.unraisablehook`: it is called where a view dies, and nobody is there to catch.
    """

    def __cinit__(self):
        self.blocks = []

    @property
    def fullness(self):
        """The part of the ring that is filled or lent, from 0 to 1."""
        return (self.made - self.unused) / self.block_count

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

    cdef void grow_for(self, Py_ssize_t record) noexcept:
        """Let a block grow until a record of so many bytes fits, and all blocks together have as much more."""
        self.budget += min(record, PY_SSIZE_T_MAX - self.budget)
        self.largest = max(self.block_size, record)

    cdef Py_ssize_t enough(self, Py_ssize_t size) noexcept:
        """Return what a block should have so that `size` bytes fit, and a growing record does not move all the time."""
        cdef Py_ssize_t capacity = self.block_size
        while capacity < size and capacity < self.largest:
            capacity = min(2 * capacity, self.largest)
        return capacity

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

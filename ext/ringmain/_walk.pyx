# cython: language_level=3, boundscheck=False, wraparound=False
"""The records of blocks, one after another, as views that keep their block.

Goal: a loop over short records should cost little. Cost: where a record ends is found when it is asked for, and its
view is made in the memory of the one that the loop has just dropped. No I/O, no event loop: whoever inherits brings
the blocks.
"""

from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_GET_BUFFER

from ringmain._cutter cimport Cutter


cdef class Walk:
    """Iterate over the records of blocks: the content of each alone, or with `headers` all that came of it.

    Whoever inherits defines `fetch`, which calls `enter` with the next block or raises StopIteration.
    """
    cdef Cutter cutter
    cdef bint headers
    cdef bint keeps_rest
    cdef object block                       # None once its last record was handed out
    cdef const char* data
    cdef Py_ssize_t at, size

    def __init__(self, Cutter cutter not None, bint headers):
        self.cutter = cutter
        self.headers = headers

    def enter(self, block not None, bint keeps_rest):
        """Begin with a block, where a record begins. `keeps_rest`: what has no end is a record too."""
        if not PyMemoryView_Check(block):
            raise TypeError("a block is a memoryview of bytes")
        self.data = <const char*>PyMemoryView_GET_BUFFER(block).buf
        self.at, self.size = 0, PyMemoryView_GET_BUFFER(block).len
        self.keeps_rest = keeps_rest
        self.block = block

    def fetch(self):
        """Go on with the next block."""
        raise NotImplementedError

    def __iter__(self):
        return self

    def __next__(self):
        while (record := self.take()) is None:
            self.fetch()
        return record

    cpdef object take(self):
        """Return the next record of the present block, or None if it has no more."""
        cdef Py_ssize_t start = self.at
        cdef Py_ssize_t header = 0
        cdef Py_ssize_t end = self.size
        block = self.block
        if block is None:
            return None
        self.at = self.cutter.trim(self.data, start, &header, &end) if start < end else -1
        if self.at < 0:
            self.at = end = self.size
            if start == end or not self.keeps_rest:
                self.block = None
                return None
        elif self.headers:
            end = self.at
        else:
            start += header
        if self.at == self.size:
            self.block = None
        return block[start:end]

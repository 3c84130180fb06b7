# cython: language_level=3, boundscheck=False, wraparound=False
"""Whose bytes follow each other in a ring that many streams share.

Cost: some instructions a read. No I/O, no Python: it is called between reading a state and writing it.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject

cdef size_t FEW = 64


cdef class Runs:
    """A queue of bytes that are one owner's each, who is kept alive by others."""

    def __dealloc__(self):
        PyMem_RawFree(self.items)

    cdef bint append(self, PyObject* owner, Py_ssize_t size, long long end) noexcept:
        """Add bytes, which are of the last run where they go on with it; False without memory."""
        cdef Run* last
        cdef Run* items
        cdef size_t index, capacity
        if self.count:
            last = &self.items[(self.head + self.count - 1) & (self.capacity - 1)]
            if last.owner == owner and last.end + size == end:
                last.size += size
                last.end = end
                return True
        if self.count == self.capacity:
            capacity = 2 * self.capacity if self.capacity else FEW
            items = <Run*>PyMem_RawMalloc(capacity * sizeof(Run))
            if items == NULL:
                return False
            for index in range(self.count):
                items[index] = self.items[(self.head + index) & (self.capacity - 1)]
            PyMem_RawFree(self.items)
            self.items = items
            self.capacity = capacity
            self.head = 0
        last = &self.items[(self.head + self.count) & (self.capacity - 1)]
        last.owner, last.size, last.end = owner, size, end
        self.count += 1
        return True

    cdef Run* first(self) noexcept:
        """Return the first run, good until the next call; there is one."""
        return &self.items[self.head]

    cdef void drop_first(self) noexcept:
        self.head = (self.head + 1) & (self.capacity - 1)
        self.count -= 1

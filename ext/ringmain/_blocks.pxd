# cython: language_level=3
# Fields of a block and of the pool that owns it; _blocks.pyx tells what they promise.

cimport cython
from cpython.object cimport PyObject


@cython.final
cdef class Block:
    cdef char* data                         # capacity bytes, and SPARE more that parsers may read
    cdef Py_ssize_t capacity
    cdef long long base                     # where in its stream the first byte of data is
    cdef Py_ssize_t start                   # bytes before it were lent already
    cdef Py_ssize_t filled                  # bytes before it came from the stream
    cdef Py_ssize_t lend_offset, lend_size  # what the next export shows
    cdef Py_ssize_t exports                 # views alive
    cdef int lending                        # views being made: it keeps its pool meanwhile
    cdef int pinned                         # reads under way, without the GIL: its memory must stay where it is
    cdef bint retired                       # nothing left to lend: goes back when the last view dies
    cdef BlockPool pool                        # set while lent, so that an idle pool and its blocks form no cycle
    cdef PyObject* next                     # the one behind it in `free` or `ready`

    cdef inline bint idle(self) noexcept:
        """Tell whether nobody looks at its memory."""
        return self.exports == 0 and self.lending == 0 and self.pinned == 0

    cdef void let_go(self) noexcept


cdef class BlockPool:
    cdef readonly Py_ssize_t block_size, block_count
    cdef readonly Py_ssize_t memory         # bytes that all blocks have now
    cdef readonly Py_ssize_t lent           # blocks with a view alive
    cdef public object on_release           # called once after `starving`, from whichever thread frees a block
    cdef Py_ssize_t budget                  # bytes that all blocks may have
    cdef Py_ssize_t largest                 # bytes that one may have
    cdef list blocks                        # all in existence; who else points to one has borrowed it
    cdef Py_ssize_t made                    # how many they are, at most block_count
    cdef Py_ssize_t unused                  # how many are in `free`
    cdef PyObject* free                     # last freed, first used: its memory is in the cache
    cdef bint starving                      # a block was wanted that was not there

    cdef int make_block(self) except -1
    cdef Block fresh(self, Py_ssize_t capacity)
    cdef bint fit(self, Block block, Py_ssize_t capacity) except -1
    cdef void shrink(self, Block block, Py_ssize_t capacity) noexcept
    cdef void grow_for(self, Py_ssize_t record) noexcept
    cdef Py_ssize_t enough(self, Py_ssize_t size) noexcept
    cdef void recycle(self, Block block) noexcept
    cdef void came_back(self, Block block) noexcept
    cdef void unpin(self, Block block) noexcept
    cdef void tell(self) noexcept

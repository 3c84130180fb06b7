# cython: language_level=3
# Fields of the ring, its blocks and a stream's counters; _ring.pyx tells what they promise.

from cpython.exc cimport PyErr_WriteUnraisable
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

cdef extern from "Python.h":
    PyObject* call_or_null "PyObject_CallNoArgs" (object callback) noexcept


cdef inline void call_unraisably(object callback) noexcept:
    """Call what is to be told of something; what it raises goes to sys.unraisablehook."""
    cdef PyObject* result = call_or_null(callback)
    if result == NULL:
        PyErr_WriteUnraisable(callback)
    else:
        Py_DECREF(<object>result)


cdef enum Claim:
    CLAIM_FAILED = -1       # an exception is set
    CLAIMED                 # window and window_size are good to fill
    NO_BLOCK                # every block is filled or lent: pause, on_release tells when to try again
    TOO_LONG                # a record has outgrown max_record


cdef class Counters:
    cdef public long long bytes_in, reads, bytes_out, writes, blocks, stalls
    cdef public long long skipped_records, skipped_bytes    # of records that outgrew max_record
    cdef public double stalled_seconds
    cdef public double started, ended       # seconds on the monotonic clock, 0 until it happened


cdef class Block:
    cdef char* data                         # capacity bytes, and SPARE more that parsers may read
    cdef Py_ssize_t capacity
    cdef long long base                     # where in its stream the first byte of data is
    cdef Py_ssize_t start                   # bytes before it were lent already
    cdef Py_ssize_t filled                  # bytes before it came from the stream
    cdef Py_ssize_t lend_offset, lend_size  # what the next export shows
    cdef Py_ssize_t exports                 # views alive
    cdef int lending                        # views being made: it keeps its ring meanwhile
    cdef int pinned                         # reads under way, without the GIL: its memory must stay where it is
    cdef bint retired                       # nothing left to lend: goes back when the last view dies
    cdef Ring ring                          # set while lent, so that an idle ring and its blocks form no cycle
    cdef PyObject* next                     # the one behind it in `free` or `ready`

    cdef bint idle(self) noexcept
    cdef void let_go(self) noexcept


cdef class Ring:
    cdef readonly Py_ssize_t block_size, block_count, max_record
    cdef readonly Py_ssize_t memory         # bytes that all blocks have now
    cdef readonly Py_ssize_t lent           # blocks with a view alive
    cdef public object on_release           # called once after NO_BLOCK, from whichever thread frees a block
    cdef readonly bytes delimiter           # empty: blocks are not cut
    cdef readonly bint skips                # records that outgrow max_record are thrown away
    cdef Py_ssize_t budget                  # bytes that all blocks may have
    cdef Py_ssize_t largest                 # bytes that one may have
    cdef Py_ssize_t overlap                 # bytes at the end of what was searched that may begin a delimiter
    cdef bint ambiguous                     # a delimiter may begin within another, as in b"aba"
    cdef list blocks                        # all in existence; who else points to one has borrowed it
    cdef Py_ssize_t made                    # how many they are, at most block_count
    cdef Py_ssize_t unused                  # how many are in `free`
    cdef Py_ssize_t room                    # a block lent to its last byte is filled on only if it has this left, or 0
    cdef PyObject* free                     # last freed, first used: its memory is in the cache
    cdef PyObject* ready                    # full blocks, in order
    cdef PyObject* last_ready
    cdef Block current                      # being filled
    cdef Py_ssize_t cut                     # where in current the last whole record ends
    cdef bint starving                      # a claim found no block
    cdef bint too_long                      # the record behind the cut has outgrown max_record
    cdef bint skipping                      # the same, and it is being thrown away
    cdef long long taken                    # where in its stream what was lent last ends
    cdef long long long_at                  # where the last record began that was too long
    cdef long long skipped                  # where what was counted as thrown away ends
    cdef readonly long long skipped_records, skipped_bytes    # that the owner has not counted yet
    cdef char* window
    cdef Py_ssize_t window_size

    cdef Claim claim(self, Py_ssize_t at_least) except CLAIM_FAILED
    cdef void commit_bytes(self, Py_ssize_t size) noexcept
    cdef bint holds(self, Py_ssize_t size) noexcept
    cdef int make_block(self) except -1
    cdef Block fresh(self, Py_ssize_t capacity)
    cdef bint fit(self, Block block, Py_ssize_t capacity) except -1
    cdef void shrink(self, Block block, Py_ssize_t capacity) noexcept
    cdef Py_ssize_t enough(self, Py_ssize_t size) noexcept
    cdef void move_on(self, Block block) noexcept
    cdef void recycle(self, Block block) noexcept
    cdef void came_back(self, Block block) noexcept
    cdef void unpin(self, Block block) noexcept
    cdef void tell(self) noexcept
    cdef object lend(self, Block block, Py_ssize_t end)
    cdef Py_ssize_t whole(self, Block block, Py_ssize_t end) noexcept
    cdef void find_cut(self, Block block, Py_ssize_t size) noexcept
    cdef void skip_to(self, long long offset) noexcept
    cdef Py_ssize_t reach(self, Block block, Py_ssize_t start, Py_ssize_t end) noexcept
    cdef Py_ssize_t first_cut(self, Block block, Py_ssize_t start, Py_ssize_t end) noexcept
    cdef Py_ssize_t last_cut(self, Block block, Py_ssize_t start, Py_ssize_t end) noexcept
    cpdef object take(self)
    cpdef int finish(self) except -1

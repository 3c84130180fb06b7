# cython: language_level=3
# Fields of the ring, its blocks and a stream's counters; _ring.pyx tells what they promise.

cdef enum Claim:
    CLAIM_FAILED = -1       # an exception is set
    CLAIMED                 # window and window_size are good to fill
    NO_BLOCK                # every block is filled or lent: pause, on_release tells when to try again
    TOO_LONG                # a record has outgrown max_record


cdef class Counters:
    cdef public long long bytes_in, reads, bytes_out, writes, blocks, stalls
    cdef public double stalled_seconds
    cdef public double started, ended       # seconds on the monotonic clock, 0 until it happened


cdef class Block:
    cdef char* data                         # capacity bytes, and SPARE more that parsers may read
    cdef Py_ssize_t capacity
    cdef Py_ssize_t start                   # bytes before it were lent already
    cdef Py_ssize_t filled                  # bytes before it came from the stream
    cdef Py_ssize_t lend_offset, lend_size  # what the next export shows
    cdef Py_ssize_t exports                 # views alive
    cdef bint retired                       # nothing left to lend: goes back when the last view dies
    cdef Ring ring                          # set while lent, so that an idle ring and its blocks form no cycle

    cdef int resize(self, Py_ssize_t capacity) except -1


cdef class Ring:
    cdef readonly Py_ssize_t block_size, block_count, max_record
    cdef readonly Py_ssize_t lent           # blocks with a view alive
    cdef public object on_release           # called once after NO_BLOCK, from whichever thread frees a block
    cdef readonly bytes delimiter           # empty: blocks are not cut
    cdef Py_ssize_t made                    # blocks in existence, at most block_count
    cdef Py_ssize_t room                    # a block lent to its last byte is filled on only if it has this left, or 0
    cdef list free                          # last freed, first used: its memory is in the cache
    cdef list ready                         # full blocks, in order
    cdef Block current                      # being filled
    cdef Py_ssize_t scanned                 # no delimiter ends in current between its last cut and here
    cdef bint starving                      # a claim found no block
    cdef char* window
    cdef Py_ssize_t window_size

    cdef Claim claim(self, Py_ssize_t at_least) except CLAIM_FAILED
    cdef void commit_bytes(self, Py_ssize_t size) noexcept
    cdef bint holds(self, Py_ssize_t size) noexcept
    cdef Block fresh(self, Py_ssize_t capacity)
    cdef int move_on(self, Block block) except -1
    cdef int released(self, Block block) except -1
    cdef object lend(self, Block block, Py_ssize_t end)
    cdef Py_ssize_t last_cut(self, Block block) noexcept
    cpdef object take(self)
    cpdef int finish(self) except -1

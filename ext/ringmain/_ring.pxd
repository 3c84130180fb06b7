# cython: language_level=3
# Fields of the ring; _ring.pyx tells what they promise.

from cpython.object cimport PyObject

from ringmain._blocks cimport Block, BlockPool
from ringmain._cutter cimport Cutter


cdef enum Claim:
    CLAIM_FAILED = -1       # an exception is set
    CLAIMED                 # window and window_size are good to fill
    NO_BLOCK                # every block is filled or lent: pause, on_release tells when to try again
    TOO_LONG                # a record has outgrown max_record, or says that it will
    MALFORMED               # what comes next is no record


cdef class Ring(BlockPool):
    cdef readonly Py_ssize_t max_record
    cdef readonly bytes delimiter           # empty: blocks are not cut
    cdef readonly Cutter cutter             # tells where records end; None: blocks are not cut
    cdef bint counted                       # sizes may stand in front of records
    cdef readonly bint skips                # records that outgrow max_record are thrown away
    cdef Py_ssize_t room                    # a block lent to its last byte is filled on only if it has this left, or 0
    cdef PyObject* ready                    # full blocks, in order
    cdef PyObject* last_ready
    cdef Block current                      # being filled
    cdef Py_ssize_t cut                     # where in current the last whole record ends
    cdef Claim refusal                      # why there is nothing to read for behind the cut; CLAIMED: there is
    cdef bint skipping                      # the record behind the cut is too long, and is being thrown away
    cdef long long skip_end                 # where in the stream it ends; 0: not known yet
    cdef readonly long long taken           # where in its stream what was lent last ends
    cdef long long long_at                  # where the last record began that was too long or malformed
    cdef char head[16]                      # what a malformed record begins with
    cdef Py_ssize_t head_size
    cdef long long skipped                  # where what was counted as thrown away ends
    cdef readonly long long skipped_records, skipped_bytes    # that the owner has not counted yet
    cdef char* window
    cdef Py_ssize_t window_size

    cdef Claim claim(self, Py_ssize_t at_least) except CLAIM_FAILED
    cdef bint go_on(self, Block block, Py_ssize_t at_least) except -1
    cdef void commit_bytes(self, Py_ssize_t size) noexcept
    cdef bint holds(self, Py_ssize_t size) noexcept
    cdef void move_on(self, Block block) noexcept
    cdef object lend(self, Block block, Py_ssize_t end)
    cdef Py_ssize_t whole(self, Block block, Py_ssize_t end) noexcept
    cdef void find_cut(self, Block block, Py_ssize_t size) noexcept
    cdef void look_ahead(self, Block block, Py_ssize_t end) noexcept
    cdef long long unfinished(self) noexcept
    cdef void skip_to(self, long long offset) noexcept
    cpdef object take(self)
    cpdef int finish(self) except -1

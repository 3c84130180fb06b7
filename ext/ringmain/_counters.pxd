# cython: language_level=3
# Fields of a stream's counters; _counters.pyx tells what they are.

cdef class Counters:
    cdef public long long bytes_in, reads, bytes_out, writes, blocks, stalls
    cdef public long long skipped_records, skipped_bytes    # of records that outgrew max_record
    cdef public long long dropped_bytes     # of a last record without an end, where streams are merged
    cdef public double stalled_seconds
    cdef public double started, ended       # seconds on the monotonic clock, 0 until it happened

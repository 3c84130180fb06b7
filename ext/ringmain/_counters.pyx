# cython: language_level=3
"""What one stream did, in numbers."""


cdef class Counters:
    """Count what one stream did. Plain fields, written by whoever moves the bytes, read at leisure.

    Bytes, reads, writes and blocks; stalls, and how long they took; records that were skipped, and bytes that were
    dropped. `stalled_seconds` are seconds; `started` and `ended` those of the monotonic clock, 0 until it happened.
    """

    def __repr__(self):
        counts = ("bytes_in", "reads", "bytes_out", "writes", "blocks", "stalls", "stalled_seconds", "skipped_records",
                  "skipped_bytes", "dropped_bytes")
        told = [f"{name}={value:g}" if name == "stalled_seconds" else f"{name}={value}"
                for name in counts if (value := getattr(self, name))]
        state = "ended" if self.ended else "running" if self.started else "not begun"
        return f"<Counters {', '.join([state, *told])}>"

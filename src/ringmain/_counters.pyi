from typing_extensions import disjoint_base

@disjoint_base
class Counters:
    bytes_in: int
    reads: int
    bytes_out: int
    writes: int
    blocks: int
    stalls: int
    skipped_records: int
    skipped_bytes: int
    dropped_bytes: int
    stalled_seconds: float
    started: float
    ended: float
    def __init__(self) -> None: ...

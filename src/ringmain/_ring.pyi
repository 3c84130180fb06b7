from typing import Self, final

from typing_extensions import disjoint_base

from ringmain._blocks import BlockPool
from ringmain._cutter import Cutter

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

@final
class Ring(BlockPool):
    @property
    def max_record(self) -> int: ...
    @property
    def delimiter(self) -> bytes: ...
    @property
    def cutter(self) -> Cutter | None: ...
    @property
    def skips(self) -> bool: ...
    @property
    def skipped_records(self) -> int: ...
    @property
    def skipped_bytes(self) -> int: ...
    @property
    def taken(self) -> int: ...
    def __new__(
        cls,
        ring_size: int,
        block_size: int,
        delimiter: bytes = b"",
        max_record: int = 67108864,
        skips: bool = False,
        cutter: Cutter | None = None,
    ) -> Self: ...
    def reserve(self, at_least: int = 1) -> memoryview | None: ...
    def commit(self, size: int) -> None: ...
    def take(self) -> memoryview | None: ...
    def finish(self) -> int: ...
    def drop(self) -> None: ...
    @property
    def starved(self) -> bool: ...

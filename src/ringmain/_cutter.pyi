from typing_extensions import disjoint_base

@disjoint_base
class Cutter:
    @property
    def least(self) -> int: ...
    def last_end(self, data: bytearray, seen: int, end: int) -> int: ...

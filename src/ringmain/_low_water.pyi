from typing import Final

from typing_extensions import disjoint_base

CAP: Final[int]

@disjoint_base
class LowWater:
    @property
    def fd(self) -> int: ...
    @property
    def linger(self) -> float: ...
    @property
    def cap(self) -> int: ...
    @property
    def mark(self) -> int: ...
    def __init__(self, fd: int, linger: float, cap: int) -> None: ...

from typing_extensions import disjoint_base

from ringmain._ring import Ring

@disjoint_base
class Linger:
    @property
    def timer_fd(self) -> int: ...
    def __init__(self, fd: int, ring: Ring, seconds: float, min_block: int) -> None: ...

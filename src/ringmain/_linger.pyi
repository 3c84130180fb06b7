from typing_extensions import disjoint_base

from ringmain._ring import Ring

@disjoint_base
class Timer:
    @property
    def timer_fd(self) -> int: ...

@disjoint_base
class Linger(Timer):
    def __init__(self, fd: int, ring: Ring, seconds: float, min_block: int) -> None: ...

@disjoint_base
class Hold(Timer):
    def __init__(self, ring: Ring, seconds: float, enough: int) -> None: ...

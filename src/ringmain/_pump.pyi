from typing import Final

from typing_extensions import disjoint_base

from ringmain._counters import Counters
from ringmain._low_water import LowWater

HAS_SPLICE: Final[bool]
PIPE_SIZE: Final[int]

@disjoint_base
class Pump:
    @property
    def counters(self) -> Counters: ...
    @property
    def verdict(self) -> str | None: ...
    @property
    def error(self) -> OSError | None: ...
    @property
    def failed(self) -> str | None: ...
    @property
    def refused(self) -> bool: ...
    @property
    def paused(self) -> bool: ...
    @property
    def fullness(self) -> float: ...
    def __init__(
        self,
        source: int,
        destination: int,
        counters: Counters,
        low_water: LowWater | None = None,
        *,
        through: bool = False,
        offset: int = -1,
    ) -> None: ...
    def refuse(self, error: OSError | None = None) -> None: ...
    def stop(self, verdict: str = "stopped", error: Exception | None = None) -> None: ...

def widen_pipe(fd: int, size: int = ...) -> None: ...

from collections.abc import Callable

from typing_extensions import disjoint_base

from ringmain._pump_loop import PumpLoop

@disjoint_base
class PumpCrowd(PumpLoop):
    def __init__(self, start: Callable[[Callable[[], None]], object]) -> None: ...
    def __len__(self) -> int: ...

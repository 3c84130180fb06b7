import asyncio

from typing_extensions import disjoint_base

from ringmain._cutter import Cutter
from ringmain._member import Host
from ringmain._ring import Ring

@disjoint_base
class Sorter(Host):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ring: Ring,
        cutter: Cutter,
        max_record: int,
        terminator: bytes,
        skips: bool,
        linger: float,
    ) -> None: ...
    @property
    def closed(self) -> bool: ...

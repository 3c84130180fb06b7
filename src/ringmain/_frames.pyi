from typing import Self, final

from ringmain._cutter import Cutter

@final
class Frames(Cutter):
    @property
    def width(self) -> int: ...
    @property
    def little(self) -> bool: ...
    def __new__(cls, width: int = 0, little: bool = False) -> Self: ...

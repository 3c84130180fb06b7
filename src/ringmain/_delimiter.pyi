from typing import Self, final

from ringmain._cutter import Cutter

@final
class Delimiter(Cutter):
    def __new__(cls, octets: bytes) -> Self: ...

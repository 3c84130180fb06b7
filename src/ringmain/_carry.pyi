from typing_extensions import disjoint_base

from ringmain._counters import Counters

@disjoint_base
class Carry:
    @property
    def counters(self) -> Counters: ...

from typing import Self, final

@final
class Delimiter:
    def __new__(cls, octets: bytes) -> Self: ...

import asyncio
import ssl

from typing_extensions import disjoint_base

from ringmain._receiver import Receiver
from ringmain._ring import Counters, Ring

@disjoint_base
class TlsReceiver(Receiver):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ring: Ring,
        counters: Counters,
        linger: float,
        sock: ssl.SSLSocket,
        min_block: int = 1,
    ) -> None: ...
    def __len__(self) -> int: ...

def true_error(error: OSError, sock: ssl.SSLSocket) -> OSError: ...

import ssl

from typing_extensions import disjoint_base

from ringmain._receiver import Receiver

@disjoint_base
class TlsReceiver(Receiver):
    def __len__(self) -> int: ...

def true_error(error: OSError, sock: ssl.SSLSocket) -> OSError: ...

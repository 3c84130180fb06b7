from typing_extensions import disjoint_base

from ringmain._receiver import Receiver

@disjoint_base
class TlsReceiver(Receiver): ...

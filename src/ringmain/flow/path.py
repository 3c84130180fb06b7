"""Whether bytes go by the kernel path or through blocks: what `path` asks for, and what stands in the way."""

import errno
from typing import Protocol

from ringmain._pump import HAS_SPLICE, Pump
from ringmain.errors import UsageError, reason

# What a process gets that may have no more descriptors, threads or memory.
_WANTS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


class Spliceable(Protocol):
    """What may stand at the other side of a socket."""

    name: str
    obstacle: str


def may_pump(path: str, descriptor: Spliceable | None = None, *, tls: bool, cut: bool = False) -> bool:
    """Tell whether bytes may go by the kernel path; raise UsageError when `path` insists on it and they may not.

    path: "auto", "kernel" or "block". TLS has to be decrypted here, what is `cut` at records has to be looked at, and
    the descriptor at the other side may have an `obstacle`; what else cannot be spliced is found out by the pump
    itself, before a byte moves.
    """
    if path == "block":
        return False
    if tls:
        return _refuse(path, "TLS is encrypted and decrypted in blocks")
    if cut:
        return _refuse(path, "records are checked and cut in blocks")
    if not HAS_SPLICE:
        return _refuse(path, "this system has no splice")
    if descriptor is not None and descriptor.obstacle:
        return _refuse(path, f"{descriptor.name} {descriptor.obstacle}")
    return True


def refused(path: str, descriptor: Spliceable, pump: Pump) -> OSError | None:
    """Raise UsageError if `path` insists on the kernel path that the pump has just refused.

    Where it was refused for want of descriptors or a thread return that instead: another client may have more luck.
    """
    if path == "kernel" and pump.error is not None and pump.error.errno in _WANTS:
        return pump.error
    _refuse(path, f"{descriptor.name} cannot be spliced" + (f": {reason(pump.error)}" if pump.error else ""))
    return None


def _refuse(path: str, why: str) -> bool:
    if path == "kernel":
        raise UsageError("path=kernel", why, "leave path= out")
    return False

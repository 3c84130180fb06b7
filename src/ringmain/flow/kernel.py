"""The kernel path: pumps that splice between a socket and a descriptor, on a thread that the event loop awaits."""

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import Protocol

from ringmain._pump import HAS_SPLICE, Pump
from ringmain._pump_crowd import PumpCrowd
from ringmain._pump_loop import PumpLoop
from ringmain.errors import UsageError, reason
from ringmain.waiting import let_go

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


class Pumping:
    """Pumps on threads that the event loop awaits: one at a time, or the two ways of a relay."""

    def __init__(self, threads: "PumpThreads | None" = None) -> None:
        """`threads` are those of many, else it has one of its own."""
        self._threads = threads
        self._pumps: PumpLoop | None = None

    async def run(self, pump: Pump) -> None:
        """Let a pump move until it is over; when cancelled, stop it and wait until it has let go."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def over() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(done.set_result, None)

        try:
            if self._pumps is None:
                self._pumps = self._threads.idlest() if self._threads is not None else PumpLoop(_start_thread)
            self._pumps.add(pump, over)
        except (OSError, RuntimeError) as error:  # no more descriptors or threads for this user; blocks need none
            pump.refuse(error if isinstance(error, OSError) else OSError(errno.EAGAIN, str(error)))
            return
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            pump.stop()
            await let_go([done])
            raise


class PumpThreads:
    """The threads that the pumps of many passages share: one a core, started when there is something for it to do."""

    def __init__(self) -> None:
        self._crowds: list[PumpCrowd] = []

    def idlest(self) -> PumpCrowd:
        """Return the one with the fewest pumps; raise OSError where there are no descriptors for the first."""
        if len(self._crowds) < len(os.sched_getaffinity(0)) and all(map(len, self._crowds)):
            try:
                self._crowds.append(PumpCrowd(_start_thread))
            except OSError:
                if not self._crowds:
                    raise
        return min(self._crowds, key=len)

    def close(self) -> None:
        """Let go of the descriptors, those of a thread that still runs once its pumps are over."""
        self._crowds.clear()


def _start_thread(work: Callable[[], None]) -> None:
    # A daemon: a disk or a network file system that hangs must not keep the process from ending.
    threading.Thread(target=work, name="ringmain-pump", daemon=True).start()

"""What the tests of pumps share: pumps between a connection and a descriptor, and a thread that runs one."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import peers
from streams import run_pump

from ringmain._counters import Counters
from ringmain._low_water import LowWater
from ringmain._pump import Pump


@contextlib.contextmanager
def running(pump: Pump) -> Iterator[threading.Thread]:
    """Let a pump run on a thread; stop it at the end."""
    thread = threading.Thread(target=run_pump, args=[pump], daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        pump.stop()
        thread.join(peers.TIMEOUT)
        assert not thread.is_alive()


def loading(ours: socket.socket, sink: Any, *, linger: float = 0.001, through: bool = False) -> Pump:
    """Return a pump from a connection to a descriptor."""
    return Pump(ours.fileno(), sink.fileno(), Counters(), LowWater(ours.fileno(), linger, 1 << 19), through=through)


def saving(source: Any, ours: socket.socket, **options: Any) -> Pump:
    """Return a pump from a descriptor to a connection."""
    return Pump(source.fileno(), ours.fileno(), Counters(), **options)


def moved(pump: Pump) -> tuple[int, int]:
    return pump.counters.bytes_in, pump.counters.bytes_out

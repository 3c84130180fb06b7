"""Move bytes between TCP or TLS sockets, pipes, files and Python at full speed.

async with ringmain.load("tcp://127.0.0.1:8000") as loader:
    async for block in loader:  # a read-only memoryview that owns its memory
        parse(block)
"""

from typing import TYPE_CHECKING, Any

from ringmain.errors import RingmainError

if TYPE_CHECKING:
    from ringmain._ring import Counters
    from ringmain.endpoint import Endpoint
    from ringmain.interfaces import Nic, nics
    from ringmain.loader import Loader, load
    from ringmain.saver import Saver, save
    from ringmain.settings import Options

__version__ = "0.1.0"
__all__ = ["Counters", "Endpoint", "Loader", "Nic", "Options", "RingmainError", "Saver", "load", "nics", "save"]

# Imported when first used: `ringmain --version` needs neither sockets nor an event loop.
_ROOMS = {
    "Counters": "_ring",
    "Endpoint": "endpoint",
    "Loader": "loader",
    "Nic": "interfaces",
    "Options": "settings",
    "Saver": "saver",
    "load": "loader",
    "nics": "interfaces",
    "save": "saver",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'ringmain' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"ringmain.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value

"""Move bytes between TCP or TLS sockets, pipes, files and Python at full speed.

async with ringmain.load("tcp://127.0.0.1:8000") as loader:
    async for block in loader:  # a read-only memoryview that owns its memory
        parse(block)
"""

from ringmain.errors import (
    BindError,
    BlocksHeldError,
    CaFileError,
    CertificateError,
    ConnectError,
    DeniedError,
    InputError,
    NotFoundError,
    OutputError,
    ParseError,
    ReceiveError,
    RecordTooLongError,
    ResolveError,
    RingmainError,
    SendError,
    TimedOutError,
    TlsError,
    TruncatedError,
    UntrustedError,
    UsageError,
)

TYPE_CHECKING = False  # as type checkers know it; to import typing would take longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from ringmain._counters import Counters
    from ringmain.connection import Connection
    from ringmain.destinations import relay, save
    from ringmain.dialled import connect
    from ringmain.endpoint import Endpoint, LogEndpoint
    from ringmain.engines.nats_loader import LogLoader
    from ringmain.engines.nats_relay import LogRelayer
    from ringmain.engines.nats_save import LogSaver
    from ringmain.file import Reader, Writer, open
    from ringmain.interfaces import Nic, nics
    from ringmain.loader import Loader
    from ringmain.plain import BlockingRelayer, BlockingSaver
    from ringmain.relayer import Relayer
    from ringmain.saver import Saver
    from ringmain.server import Server, serve
    from ringmain.settings import ConnectionOptions, LogOptions, Options, TlsSettings
    from ringmain.sources import load
    from ringmain.stream import Stream

__version__ = "0.1.0"

# Imported when first used: `ringmain --version` needs neither sockets nor an event loop.
_ROOMS = {
    "BlockingRelayer": "plain",
    "BlockingSaver": "plain",
    "Connection": "connection",
    "ConnectionOptions": "settings",
    "Counters": "_counters",
    "Endpoint": "endpoint",
    "Loader": "loader",
    "LogEndpoint": "endpoint",
    "LogLoader": "engines.nats_loader",
    "LogOptions": "settings",
    "LogRelayer": "engines.nats_relay",
    "LogSaver": "engines.nats_save",
    "Nic": "interfaces",
    "Options": "settings",
    "Reader": "file",
    "Relayer": "relayer",
    "Saver": "saver",
    "Server": "server",
    "Stream": "stream",
    "TlsSettings": "settings",
    "Writer": "file",
    "connect": "dialled",
    "load": "sources",
    "nics": "interfaces",
    "open": "file",
    "relay": "destinations",
    "save": "destinations",
    "serve": "server",
}
__all__ = [
    "BindError",
    "BlockingRelayer",
    "BlockingSaver",
    "BlocksHeldError",
    "CaFileError",
    "CertificateError",
    "ConnectError",
    "Connection",
    "ConnectionOptions",
    "Counters",
    "DeniedError",
    "Endpoint",
    "InputError",
    "Loader",
    "LogEndpoint",
    "LogLoader",
    "LogOptions",
    "LogRelayer",
    "LogSaver",
    "Nic",
    "NotFoundError",
    "Options",
    "OutputError",
    "ParseError",
    "Reader",
    "ReceiveError",
    "RecordTooLongError",
    "Relayer",
    "ResolveError",
    "RingmainError",
    "Saver",
    "SendError",
    "Server",
    "Stream",
    "TimedOutError",
    "TlsError",
    "TlsSettings",
    "TruncatedError",
    "UntrustedError",
    "UsageError",
    "Writer",
    "connect",
    "load",
    "nics",
    "open",
    "relay",
    "save",
    "serve",
]


def __getattr__(name: str) -> "Any":
    if name not in _ROOMS:
        raise AttributeError(f"module 'ringmain' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"ringmain.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value

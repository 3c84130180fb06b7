"""`ringmain.open`: a connection as a binary file, read through blocks or written through a saver."""

import errno
import io
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Unpack, overload

from ringmain.errors import SendError, UsageError
from ringmain.keywords import documented
from ringmain.loader import Loader
from ringmain.saver import Saver, save
from ringmain.settings import BLOCK_SIZE, BUFFER_SIZE, LINGER, Options, check_kind
from ringmain.sources import load_connections

if TYPE_CHECKING:
    from typing_extensions import Buffer


@overload
def open(
    url: str,
    mode: Literal["rb"] = "rb",
    *,
    listen: bool = False,
    buffer_size: int = ...,
    block_size: int = ...,
    linger: float = ...,
    **options: Unpack[Options],
) -> "Reader": ...
@overload
def open(
    url: str, mode: Literal["wb"], *, listen: bool = False, buffer_size: int = ..., **options: Unpack[Options]
) -> "Writer": ...
@documented(Options)
def open(
    url: str,
    mode: Literal["rb", "wb"] = "rb",
    *,
    listen: bool = False,
    buffer_size: int = BUFFER_SIZE,
    block_size: int = BLOCK_SIZE,
    linger: float = LINGER,
    **options: Unpack[Options],
) -> "Reader | Writer":
    """Connect to the endpoint `url` and return that as a binary file; with `listen` wait there for one client.

    The `mode` "rb" returns a `Reader` (an `io.BufferedReader`) that ends where the peer's stream ends, "wb" a `Writer`
    (an `io.BufferedWriter`) whose `close` returns once the peer's kernel has every byte. An event loop that runs in
    this thread stands still while it waits. Close it, best by `with`: left by an exception that resets the peer, and so
    does `abort`, but never `close` one that is well. There is no seeking, `tell`, or descriptor in it. Raises a
    `RingmainError` as `load` and `save` do, from reads and writes too.

    with ringmain.open("tcp://127.0.0.1:8000", "wb") as file:
        text = io.TextIOWrapper(file, write_through=True)

    What is put on top gets no `with` of its own: left by an exception it would only call `close`, and what was written
    so far would look like the whole.

    The keywords, with their defaults:

    listen (False): wait for one client at the endpoint instead of connecting to it
    buffer_size (64 KiB): bytes of the file's own buffer
    block_size (1 MiB): for reading, bytes of the blocks that are received into; eight of them, or 8 MiB if that is
        more, may wait, then the peer does
    linger (0.001): for reading, seconds that a byte may wait for others while data floods in, which saves much CPU; 0
        is off
    """
    check_kind("listen", listen, bool)
    check_kind("buffer_size", buffer_size, int)
    if buffer_size < 1:
        raise UsageError(f"buffer_size={buffer_size}", "it holds nothing", "give at least 1")
    if mode == "rb":
        flow = {"block_size": block_size, "linger": linger}
        return Reader(
            _RawReader(load_connections(url, connect=not listen, listen_once=listen, **flow, **options)), buffer_size
        )
    if mode == "wb":
        given = {"block_size": block_size != BLOCK_SIZE, "linger": linger != LINGER}
        if names := [f"{name}=" for name in given if given[name]]:
            raise UsageError(f"{', '.join(names)} with mode 'wb'", "for reading only", "leave it out")
        return Writer(_RawWriter(save(url, listen_once=listen, **options)), buffer_size)
    raise UsageError(f"mode {mode!r}", "a connection is a stream of bytes in one direction", 'choose "rb" or "wb"')


def _no_position(*_: object) -> NoReturn:
    """Raise io.UnsupportedOperation: a connection has no position."""
    raise io.UnsupportedOperation("a connection has no position: read or write it from beginning to end")


class _RawReader(io.RawIOBase):
    """Read the blocks of a loader, each copied once, into the caller's buffer."""

    def __init__(self, loader: Loader) -> None:
        try:
            self.loader = loader.__enter__()
        except BaseException:
            super().close()  # or the collector calls ours
            raise
        self._rest = memoryview(b"")
        self._taken = 0
        self.failure: BaseException | None = None  # what the `with` was left by

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer", /) -> int:
        view = memoryview(buffer).cast("B")
        block = self.take(len(view))
        view[: len(block)] = block
        return len(block)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: bytes(self.take(sys.maxsize)), b""))

    def take(self, size: int) -> memoryview:
        """Return the next bytes as a read-only view that owns them: 1 to `size`, none at the end."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not self._rest and size:
            self._rest = next(self.loader, self._rest)
        taken, self._rest = self._rest[:size], self._rest[size:]
        self._taken += len(taken)
        return taken

    def tell(self) -> int:
        """Return how many bytes were taken, by which `Reader` knows how many of them its buffer still has."""
        return self._taken

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._rest = memoryview(b"")
            error = self.failure
            self.loader.__exit__(None if error is None else type(error), error, None)


class Reader(io.BufferedReader):
    """What a peer sends, as a file. `port` tells where it is waited for, with `listen`."""

    raw: _RawReader

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it; if the block was left by an exception, reset the peer."""
        if not self.closed:
            self.raw.failure = error
        self.close()

    def abort(self) -> None:
        """Reset the peer and close: what was not read is lost, and the peer hears that it was."""
        if not self.closed:
            self.raw.loader.abort()
        self.close()

    @property
    def port(self) -> int:
        """The port listened at."""
        return self.raw.loader.port

    def read_buffer(self, size: int | None = -1) -> memoryview:
        """Return the next `size` bytes (all for -1), fewer only at the end; pyarrow reads files by this.

        What lies within one block is not copied: the view owns the block. What spans blocks is joined.
        """
        if size is None or size < 0:
            return memoryview(self.read())
        buffered = self.raw.tell() - super().tell()
        first = memoryview(self.read1(min(size, buffered))) if buffered else self.raw.take(size)
        if len(first) in (0, size):
            return first
        joined = bytearray(first)
        while len(joined) < size and len(part := self.raw.take(size - len(joined))):
            joined += part
        return memoryview(joined).toreadonly()

    def __repr__(self) -> str:
        try:
            return repr(self.raw.loader).replace("Loader", "Reader", 1)
        except (AttributeError, ValueError):
            return "<Reader detached>"

    seek = tell = truncate = _no_position


class _RawWriter(io.RawIOBase):
    """Write to the one connection of a saver."""

    def __init__(self, saver: Saver) -> None:
        self.saver = saver
        try:
            self._blocking = saver.__enter__()
        except BaseException:
            super().close()  # or the collector calls ours
            raise
        self.failure: BaseException | None = None

    def writable(self) -> bool:
        return True

    def write(self, buffer: "Buffer", /) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self.failure is not None:  # BufferedWriter tries its whole buffer again, of which the peer may have a part
            raise SendError("write", "an earlier write was broken off", "open the connection again") from self.failure
        try:
            self._blocking.write(buffer)
        except BaseException as error:
            self.failure = error
            raise
        return memoryview(buffer).nbytes

    def close(self) -> None:
        if not self.closed:
            super().close()
            error = self.failure
            self.saver.__exit__(None if error is None else type(error), error, None)


class Writer(io.BufferedWriter):
    """What a peer is sent, as a file; `close` returns once the peer's kernel has every byte. `port` as for `Reader`."""

    raw: _RawWriter

    def abort(self) -> None:
        """Reset the peer and close: what was not sent is lost, and what was never looks like the whole."""
        if not self.closed:
            self.raw.failure = self.raw.failure or ConnectionAbortedError(errno.ECONNABORTED, "it was aborted")
        self.close()

    @property
    def port(self) -> int:
        """The port listened at."""
        return self.raw.saver.port

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; after an exception break the stream off with a reset, so that a part never looks like the whole."""
        raw: _RawWriter | None = self.raw
        if error is not None and raw is not None and raw.failure is None:
            raw.failure = error
        self.close()

    def close(self) -> None:
        """End the stream once the peer's kernel has every byte; after a write that failed, break it off.

        After `detach` it raises ValueError, as any buffered file does: who has `raw` closes that.
        """
        raw: _RawWriter | None = self.raw  # None after `detach`
        if raw is not None and raw.failure is not None:
            raw.close()  # first, so that what is buffered is not written
        super().close()

    def __repr__(self) -> str:
        try:
            return repr(self.raw.saver).replace("Saver", "Writer", 1)
        except (AttributeError, ValueError):
            return "<Writer detached>"

    seek = tell = truncate = _no_position

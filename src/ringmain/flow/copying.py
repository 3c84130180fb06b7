"""A loader to an output, and an input to a saver: each in the kernel where both ends allow it, else by blocks."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from ringmain._counters import Counters
from ringmain._pump import Pump
from ringmain.endpoint import Endpoint
from ringmain.errors import UsageError
from ringmain.flow.descriptor import READ_SIZE, Input, Output
from ringmain.flow.inflow import Inflow
from ringmain.flow.outflow import Outflow
from ringmain.flow.path import may_pump, refused
from ringmain.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Loaded(Protocol):
    """One connection of a loader."""

    @property
    def inflow(self) -> Inflow:
        """What it brings."""


class Loading(Protocol):
    """A loader, as its output sees it."""

    def connections(self) -> AsyncIterator[Loaded]:
        """Iterate over the connections."""

    def end(self, inflow: Inflow) -> None:
        """Close an inflow whose last byte was taken; raise what became of it, or warn and let the next one in."""


class Saving(Protocol):
    """A saver, as its input sees it."""

    endpoint: Endpoint
    settings: Settings
    listening: bool
    listen_once: bool
    reconnect: bool
    on_lost: Callable[[], object] | None

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two."""

    async def serve(self, give: Callable[[Outflow], Awaitable[bool | None]]) -> bool:
        """Give each client something of its own; False where `give` has returned None."""

    def wait_for_peer(self) -> Coroutine[Any, Any, None]:
        """Return once there is a peer that has what a lost one never got."""

    def write(self, buffer: "Buffer", /) -> Coroutine[Any, Any, None]:
        """Send all of a buffer to whichever clients it takes."""

    def break_off(self) -> Coroutine[Any, Any, None]:
        """Reset the peer once its kernel has all that was written."""


async def to_output(loader: Loading, output: Output, path: str) -> None:
    """Write all that arrives to an output. path: auto, kernel or block."""
    async for connection in loader.connections():
        inflow = connection.inflow
        await inflow.copy_to(output, path)
        await inflow.hear_out()
        loader.end(inflow)


async def merged_to_output(blocks: AsyncIterator[memoryview], output: Output, written: Counters) -> None:
    """Write the whole records of many connections to an output, counting what is written."""
    async for block in blocks:
        with block:
            await output.write(block, written)


async def from_input(saver: Saving, source: Input, path: str, read: Counters | None = None) -> None:
    """Send all of an input. A listener gives a regular file whole to every client, and goes on forever.

    One that connects again goes on where the last connection ended, with a file too.

    path: auto, kernel or block. A stream that is to go on with the next client, or goes to many, goes block by block:
    what a lost client never acknowledged is kept for the next one. A file's own position is left alone. `source.stop`
    and `saver.stop` end it: the peer of a file that is cut short is reset, a stream, which has no end of its own, is
    ended properly when the saver is left. `read` counts what is read for many at once.
    """
    goes_on = saver.reconnect or (saver.listening and not saver.listen_once)
    many = saver.settings.max_connections > 1
    for_each = source.is_file and not saver.reconnect  # all of it
    if goes_on and path == "kernel" and not for_each:
        if many:
            raise UsageError("path=kernel", "input is sent to many clients in blocks", "leave path= out")
        if saver.reconnect:
            raise UsageError("path=kernel", "what may have to be sent again is kept in blocks", "leave path= out")
        raise UsageError(
            "path=kernel", "what a lost client did not get is kept in blocks for the next", "add listen_once=True"
        )
    tls = saver.endpoint.tls or saver.settings.tls
    pumped = (for_each or not goes_on) and may_pump(path, source, tls=tls)

    async def give(outflow: Outflow) -> bool | None:
        if pumped and (whole := await _pump(outflow, source, path)) is not None:
            return whole
        return await _send_file(outflow, source) if for_each else None

    if not ((for_each or pumped) and await saver.serve(give)):
        await _write_stream(saver, source, read if many else None)


async def _pump(outflow: Outflow, source: Input, path: str) -> bool | None:
    """Send by the kernel path; return whether that was the whole, None where the input cannot be spliced."""
    pump = Pump(
        source.fd,
        outflow.link.fd,
        outflow.counters,
        offset=source.position if source.is_file else -1,
        through=not (source.is_file or source.is_pipe),
    )
    if source.stopped:
        pump.stop()
    await outflow.pump(pump)
    if pump.refused:
        if (want := refused(path, source, pump)) is not None:
            raise want
        return None
    if pump.failed == "source" and pump.error is not None:
        raise source.failure(pump.error)
    source.ended = time.monotonic()
    return pump.verdict == "ended" or not source.has_end


async def _send_file(outflow: Outflow, source: Input) -> bool:
    """Send a file; return whether that was the whole."""
    position = source.position
    buffer = memoryview(bytearray(READ_SIZE))  # others may be sent the same file
    while not source.stopped:
        view = source.read_at(position, buffer)
        if not len(view):
            return True
        position += len(view)
        _count(outflow.counters, view)
        await outflow.send(view)
    return False


async def _write_stream(saver: Saving, source: Input, read: Counters | None) -> None:
    """Write what comes; whoever has lost a client wakes the read, so that the next one gets the rest at once.

    It is counted as `read`, or as read for the connection being served.
    """
    saver.on_lost = source.wake
    await saver.wait_for_peer()
    while (view := await source.read()) is None or len(view):
        if view is None:
            await saver.wait_for_peer()
        else:
            if (counters := read or saver.counters) is not None:
                _count(counters, view)
            await saver.write(view)
    source.ended = time.monotonic()
    if source.stopped and source.has_end:
        await saver.break_off()


def _count(counters: Counters, view: memoryview) -> None:
    counters.bytes_in += len(view)
    counters.reads += 1

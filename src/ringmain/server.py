"""Serve: a two-way connection for one client at a time, each given to a handler."""

import asyncio
import functools
import logging
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, Self, Unpack

from ringmain.connection import Connection
from ringmain.endpoint import Endpoint, as_url
from ringmain.errors import RingmainError, UsageError, printable
from ringmain.flow.blocks import Flow, flow_for
from ringmain.keywords import documented
from ringmain.net.dial import context_for
from ringmain.net.gate import Gate, NoMoreClients, listen
from ringmain.net.link import Link
from ringmain.net.listening import Listening
from ringmain.settings import BLOCK_SIZE, LINGER, MAX_RECORD, Options, Settings, settings_for
from ringmain.waiting import let_go

log = logging.getLogger("ringmain")

Handler = Callable[[Connection], Awaitable[object]]


@documented(Options)
def serve(
    url: str,
    handler: Handler,
    *,
    delimiter: bytes = b"",
    ring_size: int | None = None,
    block_size: int = BLOCK_SIZE,
    max_record: int = MAX_RECORD,
    linger: float = LINGER,
    **options: Unpack[Options],
) -> "Server":
    """Listen at the endpoint `url`, and await `handler(connection)` for one client after another.

    async def echo(connection):
        async for block in connection:
            await connection.write(block)

    async with ringmain.serve("tcp://127.0.0.1:0", echo) as server:
        print(server.port)
        await server.serve()

    As with `asyncio.start_server`, clients are served once the `with` is entered, in a task of the server;
    `await ringmain.serve(url, echo)` does both in one. When the handler returns, its connection ends properly; when it
    raises, the peer is reset: see `ringmain.connect`.

    A `RingmainError` of the handler, or a group of nothing else, is logged as warnings, and the next client is served;
    so is a `CancelledError` that is not the server's doing. Any other exception is logged as an error and ends the
    server, which listens no more; it comes out of `serve()`, or of the block, as from a task group. What comes out of
    the block instead tells of it in a note. Raises a `RingmainError` when the endpoint cannot be opened.

    The keywords, with their defaults:

    delimiter (b""): 1 to 16 bytes at which every block that is read ends, except the last of a connection
    ring_size (8 MiB, or 8 blocks): bytes that wait to be read at most; then the peer waits
    block_size (1 MiB): bytes of a block
    max_record (64 MiB): bytes of the longest record, its delimiter included
    linger (0.001): seconds that a byte may wait for others while data floods in, which saves much CPU; 0 is off
    """
    settings = settings_for(serve, Options, options)
    new_flow = functools.partial(
        flow_for, delimiter=delimiter, ring_size=ring_size, block_size=block_size, max_record=max_record, linger=linger
    )
    new_flow()  # refuses sizes that make no sense
    return Server(Endpoint.parse(url), settings, handler, new_flow)


class Server(Listening):
    """What `serve` returns: a listener that serves from when its `async with` is entered; or await it.

    `addresses` and `port` tell where it listens. Leaving the block ends what is under way: the handler is cancelled,
    and its peer reset, so that one that goes on all the same fails at its next read or write. To let it finish, call
    `stop()` and await `serve()` before.
    """

    def __init__(self, endpoint: Endpoint, settings: Settings, handler: Handler, new_flow: Callable[[], Flow]) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self._handler = handler
        self._new_flow = new_flow
        self._stopped = self._entered = False
        self._heard = False  # what a handler raised has come out of `serve`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None
        self._connection: Connection | None = None  # the handler's

    def __await__(self) -> Generator[Any, None, None]:
        return self._serve_all().__await__()

    async def _serve_all(self) -> None:
        async with self:
            await self.serve()

    async def __aenter__(self) -> Self:
        if self._entered:
            raise UsageError("a server", "it is open already", "call ringmain.serve for each")
        self._entered, self._heard = True, False
        try:
            self._loop = asyncio.get_running_loop()
            self._context = context_for(self.endpoint, self.settings, listening=True)
            self._gate = gate = await listen(self.endpoint, self.settings)
        except BaseException:
            self._entered = False
            raise
        if self._stopped:
            gate.stop()
        self._serving = self._loop.create_task(self._serve(gate))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        serving, self._serving = self._serving, None
        if serving is None:
            return
        self._stop()  # first: a handler may lose its cancellation, as by Python 3.11's asyncio.wait_for
        serving.cancel()
        if self._connection is not None:
            self._connection.break_off()
        try:
            await let_go([serving])
        finally:
            self._close()
            self._entered = False
            failure = None if serving.cancelled() else serving.exception()
        if failure is not None and not self._heard:
            if error is None:
                raise failure
            error.add_note("The server had failed before:\n" + "".join(traceback.format_exception(failure)))

    def __repr__(self) -> str:
        tls = self.endpoint.tls or self.settings.tls
        where = as_url((self.addresses or [self.endpoint.address])[0], tls=tls)
        clients = "" if self._gate is None else ", 1 connection" if self._connection else ", no connection"
        return f"<Server {where} {'closed' if self._gate is None else 'listening'}{clients}>"

    async def aclose(self) -> None:
        """Do now what leaving the block does; leaving it does nothing more then. To let a handler finish, see above."""
        await self.__aexit__(None, None, None)

    async def serve(self) -> None:
        """Return once no other client is to be served, after `stop` or a leave; raise what a handler raised.

        Cancelling this ends nothing but the wait.
        """
        serving = self._serving
        if serving is None:
            raise UsageError("a server", "it is not open", "use it inside `async with`")
        await asyncio.wait([serving])
        if not serving.cancelled():
            self._heard = True
            serving.result()

    def stop(self) -> None:
        """Serve no other client; the present one is served to its end. May be called at any time, from any thread."""
        self._stopped = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._gate is not None:
            self._gate.stop()

    def _close(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    async def _serve(self, gate: Gate) -> None:
        try:
            while True:
                await self._serve_one(gate, await gate.next_connection(self._context))
        except NoMoreClients:
            pass
        except BaseException as error:
            self._close()  # now, and not when the block is left: whoever came until then would hear nothing
            if not isinstance(error, asyncio.CancelledError):
                log.error("the server ends: %s", printable(repr(error)))
            raise

    async def _serve_one(self, gate: Gate, link: Link) -> None:
        """Give one client to the handler; warn of what became of it, if that is a matter of this connection alone."""
        try:
            async with Connection(link, self._new_flow(), self.settings) as self._connection:
                gate.watch_over(link, self._connection)
                await self._handler(self._connection)
        except (RingmainError, BaseExceptionGroup) as error:
            if not _warned_of(error):
                raise
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            log.warning("%s: reset, since its handler ended by a CancelledError that is not the server's", link.peer)
        finally:
            self._connection = None
            link.reset()  # unless it is closed: where there was no connection made of it
            gate.done(link)


def _warned_of(error: BaseException) -> bool:
    """Warn of each error of a connection, where there are no others among them."""
    if not all(isinstance(it, RingmainError) for it in _leaves(error)):
        return False
    for leaf in _leaves(error):
        log.warning("%s", str(leaf))  # who keeps records keeps no connection
    return True


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Iterate over what an exception group is made of, or over the one exception."""
    if isinstance(error, BaseExceptionGroup):
        for it in error.exceptions:
            yield from _leaves(it)
    else:
        yield error

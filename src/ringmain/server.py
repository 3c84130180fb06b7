"""Serve: a two-way connection for one client at a time, each given to a handler."""

import asyncio
import functools
import logging
import ssl
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Self, Unpack

from ringmain.connection import Connection
from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, UsageError
from ringmain.flow.blocks import Flow, flow_for
from ringmain.net.dial import context_for
from ringmain.net.gate import Gate, Listening, NoMoreClients, listen
from ringmain.settings import BLOCK_SIZE, LINGER, MAX_RECORD, Options, Settings, settings_for
from ringmain.waiting import let_go

log = logging.getLogger("ringmain")

Handler = Callable[[Connection], Awaitable[object]]


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

    As with `asyncio.start_server` clients are served from when the block is entered, in a task of the server's;
    `await ringmain.serve(url, echo)` is the same in one. When the handler returns its connection ends properly, when
    it raises the peer is reset: see `ringmain.connect`, also for the keywords. A `RingmainError` that it raises is
    logged as a warning, and the next client is served. Any other exception ends the server and comes out of `serve()`,
    or of the block, as from a task group. Raises a `RingmainError` when the endpoint cannot be opened.
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
    and its peer reset. To let it finish, call `stop()` and await `serve()` before.
    """

    def __init__(self, endpoint: Endpoint, settings: Settings, handler: Handler, new_flow: Callable[[], Flow]) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self._handler = handler
        self._new_flow = new_flow
        self._stopped = False
        self._heard = False  # what a handler raised has come out of `serve`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, None, None]:
        return self._serve_all().__await__()

    async def _serve_all(self) -> None:
        async with self:
            await self.serve()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        context = context_for(self.endpoint, self.settings, listening=True)
        self._gate = gate = await listen(self.endpoint, self.settings)
        if self._stopped:
            gate.stop()
        self._serving = self._loop.create_task(self._serve(gate, context))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        serving, gate = self._serving, self._gate
        if serving is None or gate is None:
            return
        self._serving = None
        serving.cancel()
        try:
            await let_go([serving])
        finally:
            gate.close()
            self._gate = None
            failed = not serving.cancelled() and serving.exception() is not None
        if failed and kind is None and not self._heard:
            serving.result()

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

    async def _serve(self, gate: Gate, context: ssl.SSLContext | None) -> None:
        while True:
            try:
                link = await gate.next_connection(context)
            except NoMoreClients:
                return
            try:
                async with Connection(link, self._new_flow(), self.settings) as connection:
                    gate.watch_over(link, connection)
                    await self._handler(connection)
            except RingmainError as error:
                log.warning("%s", str(error))  # who keeps records keeps no connection
            finally:
                gate.done(link)

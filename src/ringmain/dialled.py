"""`ringmain.connect`: a connection that is dialled when its block is entered."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Unpack

from ringmain.connection import Connection
from ringmain.endpoint import Endpoint, as_url
from ringmain.errors import UsageError
from ringmain.flow.blocks import Flow, flow_for
from ringmain.keywords import documented
from ringmain.net.dial import context_for, dial
from ringmain.settings import BLOCK_SIZE, LINGER, MAX_RECORD, Options, Settings, settings_for


@documented(Options)
def connect(
    url: str,
    *,
    delimiter: bytes = b"",
    ring_size: int | None = None,
    block_size: int = BLOCK_SIZE,
    max_record: int = MAX_RECORD,
    linger: float = LINGER,
    **options: Unpack[Options],
) -> AbstractAsyncContextManager[Connection]:
    r"""Connect to the endpoint `url`, to read and to write.

    async with ringmain.connect("tcp://127.0.0.1:9000", delimiter=b"\n") as connection:
        await connection.write(b"question\n")
        await connection.write_eof()
        async for block in connection:
            parse(block)

    In a running event loop only: there is no plain `with`. Leaving the `with`, or `aclose()`, sends FIN (and
    close_notify under TLS), drops what was not read and what still comes, and waits as `ringmain.save` does: until the
    peer's kernel has acknowledged every byte, and a TLS 1.3 server that asks for our certificate has answered. Leaving
    it by an exception, after a write that left a hole, or while another task still writes, resets the peer; so does
    `abort()`. A call that waits while for `idle_timeout` seconds nothing moves either way resets the peer and raises
    TimedOutError. Raises a `RingmainError` on malformed arguments, and when the endpoint cannot be reached.

    The keywords, with their defaults:

    delimiter (b""): 1 to 16 bytes at which every block that is read ends, except the last
    ring_size (8 MiB, or 8 blocks): bytes that wait to be read at most; then the peer waits
    block_size (1 MiB): bytes of a block
    max_record (64 MiB): bytes of the longest record, its delimiter included
    linger (0.001): seconds that a byte may wait for others while data floods in, which saves much CPU; 0 is off
    """
    settings = settings_for(connect, Options, options)
    flow = flow_for(
        delimiter=delimiter, ring_size=ring_size, block_size=block_size, max_record=max_record, linger=linger
    )
    return _Dialled(Endpoint.parse(url), settings, flow)


class _Dialled:
    """What `connect` returns: the connection is dialled when the block is entered, by one task at a time."""

    def __init__(self, endpoint: Endpoint, settings: Settings, flow: Flow) -> None:
        self._endpoint, self._settings, self._flow = endpoint, settings, flow
        self._entered = False

    async def __aenter__(self) -> Connection:
        if self._entered:
            raise UsageError("a connection", "it is open already", "call ringmain.connect for each")
        self._entered = True
        try:
            context = context_for(self._endpoint, self._settings, listening=False)
            link = await dial(self._endpoint, self._settings, context)
            try:
                self._connection = Connection(link, self._flow, self._settings)
            except BaseException:
                link.reset()
                raise
        except BaseException:
            self._entered = False
            raise
        return self._connection

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._connection.__aexit__(*error)
        finally:
            self._entered = False

    def __repr__(self) -> str:
        where = as_url(self._endpoint.address, tls=self._endpoint.tls or self._settings.tls)
        return f"<connect {where} {'open' if self._entered else 'closed'}>"

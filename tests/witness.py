"""The other end of a connection, in the test's own hands: it tells what came, and exactly how that ended.

Plain sockets tell a FIN from a reset, but neither `ssl.SSLSocket` nor the loops' TLS tells all the ends of a TLS stream
apart while it sends too; this keeps TLS in memory and moves its bytes itself. Nothing of ringmain is in it.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator

_PIECE = 16 << 10


class Witness:
    """One end of a connection. `end` is how the other side ended: fin, close_notify, reset, truncated, or broken."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None = None, *, server: bool = False) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.received = bytearray()
        self.end: str | None = None
        self._broken = False
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            name = None if server else "localhost"
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server, server_hostname=name)

    async def exchange(self, data: bytes, expected: int = 0) -> None:
        """Send data while reading; end properly once that is sent and so much was received; read on to the end.

        Whatever breaks the connection is the `end`, and no exception.
        """
        try:
            await self.shake_hands()
            if self.end is None:
                reading = asyncio.ensure_future(self.read_to_end(expected))
                try:
                    await self.send(data)
                    await reading
                    await self.finish()
                    await self.read_to_end()
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        except ssl.SSLError as error:
            self.end = self.end or f"broken: {error}"
        except OSError:
            self.end = self.end or "reset"
        finally:
            self.sock.close()

    async def shake_hands(self) -> None:
        """Do the TLS handshake, if there is to be TLS."""
        if self._tls is None:
            return
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            else:
                await self._flush()
                return

    async def send(self, data: bytes) -> None:
        """Give all data to the kernel."""
        if self._tls is None:
            await self._give(data)
            return
        for offset in range(0, len(data), _PIECE):
            self._tls.write(data[offset : offset + _PIECE])
            await self._flush()

    async def finish(self) -> None:
        """Send close_notify, under TLS, and FIN."""
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            await self._flush()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    async def read_to_end(self, enough: int = 1 << 62) -> None:
        """Read until so much was received, or the other side has ended."""
        while self.end is None and len(self.received) < enough:
            try:
                await self._read()
            except ssl.SSLEOFError:
                self.end = "truncated"
            except ssl.SSLError as error:
                self.end = f"broken: {error}"
            except OSError:
                self.end = "reset"

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def _read(self) -> None:
        if self._tls is None:
            data = await self._loop.sock_recv(self.sock, 1 << 16)
            if not data:
                self.end = "reset" if self._broken else "fin"
        else:
            try:
                data = self._tls.read(1 << 16)
                self.end = None if data else "close_notify"
            except ssl.SSLZeroReturnError:  # close_notify came while ours was sent
                data, self.end = b"", "close_notify"
            except ssl.SSLWantReadError:
                await self._fill()
                return
        self.received += data

    async def _fill(self) -> None:
        data = await self._loop.sock_recv(self.sock, 1 << 16)
        if data:
            self._incoming.write(data)
        elif self._broken:
            raise ConnectionResetError
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._give(data)

    async def _give(self, data: bytes) -> None:
        """Send; a peer that has ended and gone needs nothing more, one that was reset is lost.

        The kernel tells of a reset once, and after that of an end: what a send was told, a read must know.
        """
        try:
            await self._loop.sock_sendall(self.sock, data)
        except BrokenPipeError:
            pass
        except ConnectionResetError:
            self._broken = True
            raise


async def connect(port: int, context: ssl.SSLContext | None = None) -> Witness:
    """Return a witness that has dialled a port of this machine."""
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return Witness(sock, context)


@contextlib.asynccontextmanager
async def serving(
    context: ssl.SSLContext | None, data: bytes, expected: int
) -> AsyncIterator[tuple[int, list[Witness]]]:
    """Exchange the same with every client; yield the port and the witnesses, which grow in number.

    Leaving waits until every exchange is over.
    """
    witnesses: list[Witness] = []
    exchanges: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                witnesses.append(Witness(listener.accept()[0], context, server=True))
                exchanges.append(asyncio.ensure_future(witnesses[-1].exchange(data, expected)))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop.add_reader(listener, accept)
        try:
            yield listener.getsockname()[1], witnesses
            accept()
            await asyncio.gather(*exchanges)
        finally:
            loop.remove_reader(listener)
            for task in exchanges:
                task.cancel()
            await asyncio.gather(*exchanges, return_exceptions=True)

"""A TCP proxy that injects faults: splits of 1 to 3 bytes, delays, stalls, a FIN or a reset at any offset, either way.

What happens at which byte follows from a seed alone, so that a failure can be run again; times are only those for which
nothing moves.
"""

import asyncio
import bisect
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

# A proxy that holds little makes a sender's success mean that nearly all of it went on.
BUFFER = 16 << 10
# What a sender may have been acknowledged that the proxy has not passed on: the kernel's buffer is twice what is asked
# for, and as much may have been read and not sent.
HELD = 4 * BUFFER
# A stall lasts until one side has had enough of it, or this long; then it is a reset.
STALL = 3.0
_ESTABLISHED, _CLOSE = 1, 7  # <netinet/tcp.h>


@dataclass
class Way:
    """What happens to the bytes of one direction, and what has happened.

    From `shreds[0]` to `shreds[1]` they go in pieces of 1 to 3 bytes, else in pieces of `piece` bytes at most. `fault`
    is what befalls them at the offset `at`: reset (of both sides), cut (FIN, and the rest is dropped), or stall.
    """

    piece: int = 1 << 16
    shreds: tuple[int, int] = (0, 0)
    delays: tuple[int, ...] = ()
    fault: str | None = None
    at: int = 0
    seed: int = 0
    passed: int = 0  # bytes that went on
    fired: bool = False
    ended: bool = False  # the end went on

    @classmethod
    def drawn(cls, source: random.Random, size: int, faults: Iterable[str]) -> "Way":
        """Draw what happens to some `size` bytes: a shred anywhere, delays, and one of the faults, if any is given."""
        begin = source.choice([0, source.randrange(size + 1)])
        near = source.random()
        at = source.randrange(size + 1)
        if near < 0.25:
            at = source.randrange(min(size, 800) + 1)  # in the handshake, if there is one
        elif near < 0.4:
            at = size - source.randrange(min(size, 60) + 1)
        return cls(
            piece=source.choice([1 << 16, 5000, 100 + size // 50]),
            shreds=(begin, begin + source.choice([0, 50, 1500])),
            delays=tuple(sorted(source.randrange(size + 1) for _ in range(source.randrange(6)))),
            fault=source.choice([*faults] or [None]),
            at=at,
            seed=source.randrange(1 << 30),
        )

    @property
    def left_out(self) -> bool:
        """Tell whether the receiver did not get all that was sent."""
        return self.fired and not self.ended

    def room(self, source: random.Random) -> int:
        """Return how many bytes go on at once, up to the next thing that happens."""
        room = self.piece
        if self.shreds[0] <= self.passed < self.shreds[1]:
            room = source.randint(1, 3)
        elif self.passed < self.shreds[0]:
            room = min(room, self.shreds[0] - self.passed)
        if self.fault is not None:
            room = min(room, self.at - self.passed)
        later = bisect.bisect_right(self.delays, self.passed)
        return min([room, *(offset - self.passed for offset in self.delays[later : later + 1])])


class Link:
    """One connection through the proxy, with what befalls each of its two ways."""

    def __init__(self, client: socket.socket, server: socket.socket, there: Way, back: Way) -> None:
        self._client, self._server = client, server
        self.there, self.back = there, back
        self._loop = asyncio.get_running_loop()
        self._broken = False

    async def run(self) -> None:
        """Pass on all that comes, and the ends, until both ways are over; an error of one side is a reset for both."""
        ways = [
            asyncio.ensure_future(self._pass_on(self._client, self._server, self.there)),
            asyncio.ensure_future(self._pass_on(self._server, self._client, self.back)),
        ]
        try:
            await asyncio.gather(*ways)
        except OSError:
            for sock in (self._client, self._server):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._client.close()
            self._server.close()

    async def _pass_on(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        pieces = random.Random(way.seed)
        while not (way.fault is not None and way.passed == way.at):
            if way.passed in way.delays:
                await asyncio.sleep(pieces.random() * 0.005)
            data = await self._loop.sock_recv(source, way.room(pieces))
            if not data:
                if self._broken:
                    raise ConnectionResetError
                way.ended = True
                _end(sink)
                return
            try:
                await self._loop.sock_sendall(sink, data)
            except BrokenPipeError:  # it has ended and gone, which is no fault of what it sent before
                pass
            except ConnectionResetError:  # of which the kernel tells once, and after that of an end
                self._broken = True
                raise
            way.passed += len(data)
        way.fired = True
        if way.fault == "cut":
            _end(sink)
            while await self._loop.sock_recv(source, 1 << 16):
                pass
            return
        if way.fault == "stall":
            for _ in range(round(STALL / 0.02)):  # the kernel tells of a reset only those who use the socket
                if _state(sink) != _ESTABLISHED or _state(source) == _CLOSE:
                    break
                await asyncio.sleep(0.02)
        raise ConnectionResetError


@contextlib.asynccontextmanager
async def proxy(port: int, there: Way, back: Way) -> AsyncIterator[int]:
    """Stand before a port of this machine; yield our own. The faults are the first connection's alone.

    Leaving waits until every connection is over.
    """
    loop, ways = asyncio.get_running_loop(), [(there, back)]
    links: list[asyncio.Task[None]] = []

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                links.append(asyncio.ensure_future(link(listener.accept()[0])))

    async def link(client: socket.socket) -> None:
        server = socket.socket()
        try:
            for sock in (client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            await loop.sock_connect(server, ("127.0.0.1", port))
            await Link(client, server, *(ways.pop() if ways else (Way(), Way()))).run()
        except OSError:
            pass  # nobody listens any more: the client finds its connection closed
        finally:
            client.close()
            server.close()

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)  # those whom it accepts have it too
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        loop.add_reader(listener, accept)
        try:
            yield listener.getsockname()[1]
            accept()
            await asyncio.gather(*links)
        finally:
            loop.remove_reader(listener)
            for task in links:
                task.cancel()
            await asyncio.gather(*links, return_exceptions=True)


def _end(sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended and gone already
        sink.shutdown(socket.SHUT_WR)


def _state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]

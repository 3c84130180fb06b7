"""Receive one stream in Python and drop it: `python -m benchmarks.receivers NAME PORT [KEY_AND_CERTIFICATE]`.

Each way of receiving is a function below, as its documentation would have one write it. The bytes are counted, and
reported with the number of reads to the file that BENCH_REPORT names. With BENCH_COPY set they are written to standard
output too, for others to compare.
"""

import asyncio
import json
import os
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
BUFFER = 256 << 10
COPYING = "BENCH_COPY" in os.environ


def count(view: "memoryview | bytes") -> int:
    """Take a block: its size, and where asked for the bytes to standard output."""
    size = len(view)
    while COPYING and len(view):
        view = view[os.write(1, view) :]
    return size


class Streams:
    """asyncio's high-level interface: a reader with its default limit."""

    def __init__(self) -> None:
        self.size = self.reads = 0

    async def serve(self, port: int, tls: ssl.SSLContext | None) -> None:
        """Receive one stream."""
        done = asyncio.Event()

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(BUFFER):
                self.size += count(data)
                self.reads += 1
            writer.close()
            done.set()

        async with await asyncio.start_server(receive, HOST, port, ssl=tls):
            await done.wait()


class Counting(asyncio.Protocol):
    """A protocol that is given bytes."""

    def __init__(self) -> None:
        self.size = self.reads = 0
        self.done = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Take what was read."""
        self.size += count(data)
        self.reads += 1

    def connection_lost(self, error: Exception | None) -> None:
        """End; whether properly shows in the count."""
        del error
        self.done.set()

    async def serve(self, port: int, tls: ssl.SSLContext | None) -> None:
        """Receive one stream."""
        server = await asyncio.get_running_loop().create_server(lambda: self, HOST, port, ssl=tls)
        await self.done.wait()
        server.close()


class Filling(asyncio.BufferedProtocol):
    """A protocol that gives a buffer to read into."""

    def __init__(self) -> None:
        self.size = self.reads = 0
        self.done = asyncio.Event()
        self.buffer = memoryview(bytearray(BUFFER))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Give room, more than is asked for."""
        del sizehint
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.size += count(self.buffer[:nbytes]) if COPYING else nbytes
        self.reads += 1

    def connection_lost(self, error: Exception | None) -> None:
        """End; whether properly shows in the count."""
        del error
        self.done.set()

    async def serve(self, port: int, tls: ssl.SSLContext | None) -> None:
        """Receive one stream."""
        server = await asyncio.get_running_loop().create_server(lambda: self, HOST, port, ssl=tls)
        await self.done.wait()
        server.close()


class AioFastNet(Filling):
    """aiofastnet's TLS on uvloop, as its documentation recommends."""

    async def serve(self, port: int, tls: ssl.SSLContext | None) -> None:
        """Receive one stream."""
        import aiofastnet

        loop = asyncio.get_running_loop()
        server = await aiofastnet.create_server(loop, lambda: self, HOST, port, ssl=tls)
        await self.done.wait()
        server.close()


class Ringmain:
    """ringmain: `async for block in load(...)`."""

    def __init__(self, delimiter: bytes = b"", pause: float = 0) -> None:
        self.size = self.reads = 0
        self.delimiter = delimiter
        self.pause = pause

    async def serve(self, port: int, certificate: str | None) -> None:
        """Receive one stream; with a pause, stand still after the first block."""
        import ringmain

        loader = ringmain.load(
            f"tcp://{HOST}:{port}",
            listen_once=True,
            delimiter=self.delimiter,
            tls=certificate is not None,
            certfile=certificate,
        )
        loader.on_end = lambda outcome: setattr(self, "reads", outcome.counters.reads)
        async with loader:
            async for block in loader:
                self.size += count(block)
                if self.pause:
                    await asyncio.sleep(self.pause)


def blocking(port: int, tls: ssl.SSLContext) -> tuple[int, int]:
    """Receive by a blocking ssl.SSLSocket."""
    size = reads = 0
    buffer = memoryview(bytearray(64 << 10))
    with socket.create_server((HOST, port)) as listener:
        sock = listener.accept()[0]
    with tls.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as secure:
        while got := secure.recv_into(buffer):
            size += count(buffer[:got]) if COPYING else got
            reads += 1
    return size, reads


# Name: what receives, and whether on uvloop.
RECEIVERS: dict[str, tuple[Callable[[], Any], bool]] = {
    "asyncio-streams": (Streams, False),
    "asyncio-protocol": (Counting, False),
    "asyncio-buffered": (Filling, False),
    "uvloop-streams": (Streams, True),
    "uvloop-protocol": (Counting, True),
    "uvloop-buffered": (Filling, True),
    "aiofastnet": (AioFastNet, True),
    "ringmain": (Ringmain, True),
    "ringmain-lines": (lambda: Ringmain(b"\n"), True),
    "ringmain-stalled": (lambda: Ringmain(pause=60), True),
}


def run(coroutine: Coroutine[Any, Any, None], on_uvloop: bool) -> None:
    """Run on the chosen loop."""
    if on_uvloop:
        import uvloop

        uvloop.run(coroutine)
    else:
        asyncio.run(coroutine)


def main(name: str, port: str, certificate: str | None = None) -> None:
    """Receive one stream and report."""
    tls = None
    if certificate is not None and not name.startswith("ringmain"):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        tls.num_tickets = 0
        tls.load_cert_chain(certificate)
    if name == "sslsocket":
        assert tls is not None
        size, reads = blocking(int(port), tls)
    else:
        make, on_uvloop = RECEIVERS[name]
        receiver = make()
        run(receiver.serve(int(port), certificate if name.startswith("ringmain") else tls), on_uvloop)
        size, reads = receiver.size, receiver.reads
    if path := os.environ.get("BENCH_REPORT"):
        Path(path).write_text(json.dumps({"bytes": size, "reads": reads}))


if __name__ == "__main__":
    main(*sys.argv[1:])

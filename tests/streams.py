"""What bytes go through in tests, and threads that send, read, flood, drain and echo."""

import asyncio
import contextlib
import fcntl
import functools
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers

from ringmain._pump import Pump
from ringmain._pump_loop import PumpLoop


@contextlib.contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a TCP connection: a peer's, and ours that does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = peers.connect(listener.getsockname()[1])
        ours, _ = listener.accept()
    ours.setblocking(False)
    with peer, ours:
        yield peer, ours


@contextlib.contextmanager
def pipe(size: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield an unbuffered reader and writer of a pipe that holds `size` bytes, if that is given."""
    reader, writer = os.pipe()
    if size:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
    with open(reader, "rb", buffering=0) as source, open(writer, "wb", buffering=0) as sink:  # noqa: PTH123
        yield source, sink


@contextlib.contextmanager
def sending(sink: Any, data: bytes) -> Iterator[None]:
    """Write data to a socket or pipe on a thread."""
    write = sink.sendall if isinstance(sink, socket.socket) else functools.partial(write_all, sink)
    thread = threading.Thread(target=write, args=[data], daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(peers.TIMEOUT)
        assert not thread.is_alive()


def run_pump(pump: Pump) -> None:
    """Let a pump move in this thread until it is over."""
    PumpLoop(lambda run: run()).add(pump, lambda: None)


def write_all(sink: Any, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(sink.fileno(), view) :]


def read(source: Any, size: int) -> bytes:
    """Read that many bytes from a socket or pipe, or up to its end."""
    got = bytearray()
    while len(got) < size:
        want = min(size - len(got), 1 << 16)
        assert select.select([source], [], [], peers.TIMEOUT)[0], f"{len(got)} of {size} bytes came"
        chunk = source.recv(want) if isinstance(source, socket.socket) else os.read(source.fileno(), want)
        if not chunk:
            break
        got += chunk
    return bytes(got)


def fill(peer: socket.socket, is_full: Callable[[], bool]) -> None:
    """Send until `is_full`: a sender that has to wait once may have found a reader that is merely late."""

    def send() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.send(bytes(1 << 20))
        return is_full()

    timeout = peer.gettimeout()
    peer.setblocking(False)
    peers.eventually(send, "a full connection")
    peer.settimeout(timeout)


def flood(peer: socket.socket) -> Callable[[], None]:
    """Send without end, or until the connection breaks; return how to end that."""
    over = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                if select.select([], [peer], [], 0.05)[1]:
                    peer.send(bytes(1 << 20), socket.MSG_DONTWAIT)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join(peers.TIMEOUT)

    return end


def drain(source: Any) -> Callable[[], None]:
    """Read and drop to the end, or a reset; return how to wait for that."""

    def take() -> None:
        with contextlib.suppress(ConnectionResetError):
            while source.recv(1 << 20) if isinstance(source, socket.socket) else source.read(1 << 20):
                pass

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return lambda: thread.join(peers.TIMEOUT)


def quietly(work: Callable[..., object], *arguments: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        work(*arguments)


@contextlib.contextmanager
def server_at(port: int = 0) -> Iterator[socket.socket]:
    """Yield a socket that listens."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(peers.TIMEOUT)
        yield listener


@contextlib.contextmanager
def echo(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answer every client with what it sends, as it comes, and then its end with ours; yield the port."""

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), sock:
                sock.settimeout(peers.TIMEOUT)
                if context is not None:
                    sock = context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
                while piece := sock.recv(1 << 16):
                    sock.sendall(piece)
                if isinstance(sock, ssl.SSLSocket):
                    sock.unwrap()
                sock.close()

    with server_at() as listener:
        listener.settimeout(None)
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(peers.TIMEOUT)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send data and an end while everything that comes back is read."""
    with sending(sock, data):
        got = read(sock, len(data))
    if isinstance(sock, ssl.SSLSocket):
        sock.unwrap()
    else:
        sock.shutdown(socket.SHUT_WR)
        got += peers.read_all(sock)
    return got


def small_listener() -> socket.socket:
    """Return a listener whose connections hold little that was not read."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def slow_client(port: int) -> socket.socket:
    """Return a connection that holds little that was not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.connect(("127.0.0.1", port))
    return sock


async def settled(sock: socket.socket) -> int:
    """Wait until no more comes to a socket that nobody reads; return how much is there."""
    before = -1
    while (now := peers.unread(sock)) != before or now == 0:
        before = now
        await asyncio.sleep(0.2)
    return now

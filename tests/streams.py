"""What bytes go through in tests, and threads that send, read, flood and drain it."""

import contextlib
import fcntl
import functools
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers


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
    """Read and drop to the end; return how to wait for that."""

    def take() -> None:
        while source.recv(1 << 20) if isinstance(source, socket.socket) else source.read(1 << 20):
            pass

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return lambda: thread.join(peers.TIMEOUT)


def quietly(work: Callable[..., object], *arguments: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        work(*arguments)

"""A plain relay between a client and a server, for the tests of it."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import peers
from streams import server_at

DATA, ANSWER = peers.payload(3_000_000, 1), peers.payload(2_000_000, 2)
PATHS = ["kernel", "block"]


class Pair:
    """A relay, and the socket of a client at the one side of it and of a server at the other."""

    def __init__(self, relay: peers.Program, port: int, client: socket.socket, server: socket.socket) -> None:
        self.relay, self.port, self.client, self.server = relay, port, client, server


@contextlib.contextmanager
def pair(bench: peers.Bench, *arguments: Any) -> Iterator[Pair]:
    """Start a plain relay between a client and a server."""
    with server_at() as listener:
        relay, port = bench.relaying(f"tcp://127.0.0.1:{listener.getsockname()[1]}", *arguments)
        with peers.connect(port) as client:
            server, _ = listener.accept()
            server.settimeout(peers.TIMEOUT)
            with server:
                yield Pair(relay, port, client, server)


def small_client(port: int) -> socket.socket:
    """Return a connection that holds little that was not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.settimeout(peers.TIMEOUT)
    sock.connect(("127.0.0.1", port))
    return sock

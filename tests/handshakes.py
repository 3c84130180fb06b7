"""Ends of TLS that a test has in its own hands."""

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from conftest import Certificates


def server_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    return context


def accept(listener: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw, _ = listener.accept()
    raw.settimeout(peers.TIMEOUT)
    return context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False)


class ByHand:
    """A TLS client whose bytes the test itself carries, in pieces of a size of its choice."""

    def __init__(self, sock: socket.socket, ca: Path) -> None:
        self._sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(ca))
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def flush(self, piece: int = 1 << 16) -> None:
        while self.outgoing.pending:
            self._sock.sendall(self.outgoing.read(piece))

    def do(self, step: Callable[[], Any], piece: int = 1 << 16) -> Any:
        """Repeat a step until it needs no more of the peer's bytes; return what it returns."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self.flush(piece)
                self.incoming.write(self._sock.recv(1 << 16))
            else:
                self.flush(piece)
                return result

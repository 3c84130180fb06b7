"""Peers that flood us with what is no data of TLS: tickets, requests for a handshake, key updates."""

import _ssl
import contextlib
import ctypes
import socket
import ssl
import subprocess
import threading
from typing import Any

import peers
import pytest
from conftest import Certificates
from handshakes import ByHand, accept, server_context

from ringmain._counters import Counters
from ringmain._ring import Ring
from ringmain._tls import Session
from ringmain._tls_receiver import TlsReceiver


def floods(verb: str, port: int) -> list[Any]:
    """Return the arguments of a verb that dials, and has a peer that need not be trusted."""
    return [verb, *(["--connect"] if verb == "load" else []), "--insecure", f"tcps://localhost:{port}", "-4"]


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_server_that_floods_us_with_session_tickets_is_refused(
    bench: peers.Bench, certificates: Certificates, listener: socket.socket, verb: str
) -> None:
    context = server_context(certificates)
    context.num_tickets = 3000
    program = bench.ringmain(*floods(verb, listener.getsockname()[1]), stdin=subprocess.PIPE)
    with contextlib.suppress(OSError), accept(listener, context) as sock:
        sock.sendall(b"after the tickets")
        program.wait()
    assert program.wait() == (18 if verb == "load" else 35), program.stderr
    assert "too many TLS messages without data" in program.stderr.replace("tls", "TLS")
    assert "Traceback" not in program.stderr


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_server_may_send_some_hundred_session_tickets(
    bench: peers.Bench, certificates: Certificates, listener: socket.socket, verb: str
) -> None:
    context = server_context(certificates)
    context.num_tickets = 300
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program = bench.ringmain(*floods(verb, listener.getsockname()[1]), **pipes)
    with accept(listener, context) as sock:
        if verb == "load":
            sock.sendall(b"after the tickets")
            sock.unwrap()
            assert program.process.stdout.read() == b"after the tickets"
        else:
            program.process.stdin.close()  # not before: who has nothing to send leaves in the midst of the tickets
            program.process.stdin = None
            assert sock.recv(1) == b""
            sock.unwrap()
        assert program.wait() == 0, program.stderr


def test_requests_for_a_handshake_in_the_handshake_do_not_outlast_its_time(
    bench: peers.Bench, listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    saver = bench.ringmain("save", "--insecure", "--handshake-timeout", "60s", f"tcps://127.0.0.1:{port}")
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(peers.TIMEOUT)
        assert sock.recv(1 << 16)[0] == 22
        requests = b"\x16\x03\x03\x00\x04" + bytes(4)  # TLS 1.2, a HelloRequest each
        with contextlib.suppress(OSError):
            while saver.process.poll() is None:
                sock.sendall(requests * 5000)
    assert saver.wait() == 35, saver.stderr
    assert "too many TLS messages without data" in saver.stderr.replace("tls", "TLS")


def key_updates(sock: ssl.SSLSocket, count: int) -> None:
    """Send that many key updates, which Python has no word for."""
    library = ctypes.CDLL(_ssl.__file__)
    # PySSLSocket: the head of an object, the socket, the connection.
    inside = id(sock._sslobj) + 16 + ctypes.sizeof(ctypes.c_void_p)  # type: ignore[attr-defined]
    connection = ctypes.c_void_p.from_address(inside)
    for _ in range(count):
        assert library.SSL_key_update(connection, 0) == 1
        if library.SSL_do_handshake(connection) != 1:
            raise BrokenPipeError  # the peer has left


def test_a_client_that_floods_us_with_key_updates_is_refused(bench: peers.Bench, certificates: Certificates) -> None:
    loader, port = bench.listening("load", "-o", "--tls", "--certfile", certificates.server, stdout=subprocess.PIPE)
    with peers.connect_tls(port, certificates.ca) as sock:
        sock.sendall(b"before")
        with contextlib.suppress(OSError):
            key_updates(sock, 20_000)
            sock.unwrap()
        assert loader.wait() == 18, loader.stderr
    assert "too many TLS messages without data" in loader.stderr.replace("tls", "TLS")
    assert loader.process.stdout.read() == b"before"


def test_one_turn_takes_no_more_than_a_window_and_what_is_read_ahead(certificates: Certificates) -> None:
    """Records of a byte each are the least data that a peer can send with much to decrypt."""

    class Unwatched:
        """A link whose loop never turns, and counts what it is asked to call."""

        called = 0

        def __init__(self, sock: ssl.SSLSocket) -> None:
            self.loop: Any = self
            self.fd = sock.fileno()
            self.session = Session(sock)

        def ignore(self, *_: object) -> None: ...

        watch_readable = when_writable = ignore_readable = ignore

        def call_soon(self, *_: object) -> None:
            self.called += 1

    sock, ours = socket.socketpair()
    with sock, ours:
        context = server_context(certificates)
        context.num_tickets = 0
        client = ByHand(sock, certificates.ca)
        thread = threading.Thread(target=client.do, args=[client.tls.do_handshake])
        thread.start()
        tls = context.wrap_socket(ours, server_side=True, suppress_ragged_eofs=False)
        thread.join()
        with tls:
            tls.setblocking(False)
            for _ in range(40_000):
                client.tls.write(b"x")
            window, ahead = 32 << 10, 512 << 10
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sock.setblocking(False)
            left = client.outgoing.read()
            with contextlib.suppress(BlockingIOError):
                while left:
                    left = left[sock.send(left[: 32 << 10]) :]
            sent = peers.unread(tls)
            assert sent > window + ahead
            link, counters = Unwatched(tls), Counters()
            receiver = TlsReceiver(link, Ring(4 * window, window), counters, 0.0)
            receiver.start()
            link.called = 0
            receiver.on_readable()
            assert 0 < sent - peers.unread(tls) <= window + ahead
            assert counters.bytes_in
            assert link.called  # for the rest, when the others have had their turn
            receiver.stop()

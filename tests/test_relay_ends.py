"""How a relay's ends come about: what an end costs nobody, and what must not look like one."""

import asyncio
import contextlib
import resource
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import peers
import pytest
from conftest import Certificates
from streams import connection, echo, read, server_at

from ringmain.connection import Connection
from ringmain.errors import ReceiveError
from ringmain.proxy import send_header
from ringmain.sender import Sender

Run = Callable[[Any], Any]
ANSWER = peers.payload(400_000, 2)


def small_client(port: int) -> socket.socket:
    """Return a connection that holds little that was not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.settimeout(peers.TIMEOUT)
    sock.connect(("127.0.0.1", port))
    return sock


def answer_and_close(listener: socket.socket, certificates: Certificates, version: str) -> None:
    """Read a question, then send the answer and close_notify, and be gone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    plain, _ = listener.accept()
    with context.wrap_socket(plain, server_side=True) as sock:
        sock.settimeout(peers.TIMEOUT)
        sock.recv(100)
        sock.sendall(ANSWER)
        sock.settimeout(0)
        with contextlib.suppress(ssl.SSLWantReadError):
            sock.unwrap()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_tls_server_may_be_gone_when_the_client_ends(
    bench: peers.Bench, certificates: Certificates, version: str
) -> None:
    with server_at() as listener:
        serving = threading.Thread(target=answer_and_close, args=[listener, certificates, version])
        serving.start()
        ends = ["--destination-cafile", certificates.ca, "--destination-server-name", "localhost"]
        relay, port = bench.relaying(f"tcps://127.0.0.1:{listener.getsockname()[1]}", "-o", *ends)
        with small_client(port) as client:
            client.sendall(b"question")
            serving.join(peers.TIMEOUT)
            peers.eventually(lambda: "FIN_WAIT1" in peers.states(port), "the end, on its way to the client")
            client.shutdown(socket.SHUT_WR)
            peers.eventually(lambda: "FIN_WAIT1" not in peers.states(port), "the client's end at the relay")
            assert peers.sha256(peers.read_all(client)) == peers.sha256(ANSWER)
        assert relay.wait() == 0
        assert relay.stderr.count("\n") == 1  # where it listens


@pytest.mark.parametrize("path", ["kernel", "block"])
def test_an_answer_that_has_ended_arrives_though_its_server_is_lost(bench: peers.Bench, path: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        relay, port = bench.relaying(f"tcp://127.0.0.1:{listener.getsockname()[1]}", "-o", "--path", path)
        with small_client(port) as client:
            server, _ = listener.accept()
            with server:
                there = server.getpeername()[1]
                server.sendall(ANSWER)
                server.shutdown(socket.SHUT_WR)
                client.sendall(bytes(300_000))
                client.shutdown(socket.SHUT_WR)
                closing = {"LAST_ACK", "0B"}  # or CLOSING, where our end was first
                for end in (there, port):
                    peers.eventually(lambda end=end: closing & peers.states(end), "both ends passed on")
            peers.eventually(lambda: not closing & peers.states(there), "the reset")
            assert peers.sha256(peers.read_all(client)) == peers.sha256(ANSWER)
        assert relay.wait() == 55


def test_an_acknowledgement_between_two_looks_at_a_socket_is_no_reset(run: Run) -> None:
    async def main() -> None:
        with connection() as (peer, ours):
            sender = Sender(Connection.of(ours, "the peer"), duplex=True)
            size = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    size += ours.send(bytes(1 << 16))
            peer.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(read, ours, 1)
            sender.read_to_end()
            await sender.end()
            look, looks = sender.unacknowledged, 0

            def look_too_early() -> int | None:
                nonlocal looks
                looks += 1
                left = look()
                if looks == 1:
                    assert len(peers.read_all(peer)) == size
                    peers.eventually(lambda: look() == 0)
                return left

            sender.unacknowledged = look_too_early  # type: ignore[method-assign]
            await sender.drain()
            assert looks > 1
            sender.close()

    run(main())


def test_a_relay_that_runs_out_of_descriptors_serves_the_next_client(bench: peers.Bench) -> None:
    with echo() as there:
        relay, port = bench.relaying(f"tcp://127.0.0.1:{there}", "--gate", "queue")
        limits = resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, (relay.fd_count() + 1, limits[1]))
        with peers.connect(port) as client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        relay.says("too many open files")
        resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, limits)
        with peers.connect(port) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_a_client_that_left_is_not_laid_at_the_destination(run: Run) -> None:
    with connection() as (peer, client), connection() as (_, destination):
        peers.close_with_reset(peer)
        peers.eventually(lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        with pytest.raises(ReceiveError, match="the client that it tells of has left"):
            run(send_header(destination, "the destination", "v2", client, None))


def test_a_client_without_a_proper_header_is_reset(bench: peers.Bench) -> None:
    relay, port = bench.relaying("tcp://127.0.0.1:1", "--accept-proxy")
    with peers.connect(port) as client:
        client.sendall(b"PROXY TCP4 nobody\r\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    relay.says("not understood")

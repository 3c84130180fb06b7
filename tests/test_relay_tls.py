"""TLS at either end of a relay."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers
import pytest
from conftest import Certificates
from relays import ANSWER, DATA, small_client
from streams import echo, exchange, read, sending, server_at

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.mark.parametrize("ends", [("tcps", "tcp"), ("tcp", "tcps"), ("tcps", "tcps")])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_is_ended_and_added(
    bench: peers.Bench, certificates: Certificates, ends: tuple[str, str], version: str
) -> None:
    context = None
    options = []
    if ends[0] == "tcps":
        options += ["--source-certfile", certificates.server]
    if ends[1] == "tcps":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server)
        context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
        options += ["--destination-cafile", certificates.ca, "--destination-server-name", "localhost"]
    stats = bench.folder / "stats"
    with echo(context) as there:
        relay, port = bench.relaying(
            f"{ends[1]}://127.0.0.1:{there}", "-o", "--stats-file", stats, *options, scheme=ends[0]
        )
        plain = ends[0] == "tcp"
        connected = peers.connect(port) if plain else peers.connect_tls(port, certificates.ca, version=version)
        with connected as sock:
            assert peers.sha256(exchange(sock, DATA)) == peers.sha256(DATA)
        assert relay.wait() == 0, relay.stderr
    row = json.loads(stats.read_text())
    for side, scheme in zip(("source", "destination"), ends, strict=True):
        assert row[side]["tls"] == (f"TLSv{version}" if scheme == "tcps" else None)
        assert row[side]["bytes"] == len(DATA)


@pytest.mark.parametrize("ends", [("tcps", "tcp"), ("tcp", "tcps"), ("tcps", "tcps")])
def test_one_way_drops_answers_under_tls_too(
    bench: peers.Bench, certificates: Certificates, ends: tuple[str, str]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    options = ["--source-certfile", certificates.server] if ends[0] == "tcps" else []
    if ends[1] == "tcps":
        options += ["--destination-cafile", certificates.ca, "--destination-server-name", "localhost"]
    with server_at() as listener, ThreadPoolExecutor() as pool:
        url = f"{ends[1]}://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(url, "-o", "--one-way", *options, scheme=ends[0])

        def serve() -> socket.socket:
            sock, _ = listener.accept()
            sock.settimeout(peers.TIMEOUT)
            if ends[1] == "tcps":
                sock = context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
            sock.sendall(ANSWER)
            return sock

        serving = pool.submit(serve)
        client = peers.connect(port) if ends[0] == "tcp" else peers.connect_tls(port, certificates.ca)
        with client, serving.result() as server, sending(client, DATA):
            assert peers.sha256(read(server, len(DATA))) == peers.sha256(DATA)
            if isinstance(client, ssl.SSLSocket):
                client.unwrap()
            else:
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            assert server.recv(1) == b""
        assert relay.wait() == 0, relay.stderr


@pytest.mark.parametrize("has_libssl", [True, False])
def test_a_tls_side_that_was_told_the_end_still_gets_its_answer_through(
    certificates: Certificates, run: Run, monkeypatch: pytest.MonkeyPatch, has_libssl: bool
) -> None:
    if not has_libssl:  # then close_notify waits until the other direction has ended too
        monkeypatch.setattr("ringmain._libssl.HAS_LIBSSL", False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    tls = ringmain.TlsSettings(cafile=str(certificates.ca), server_name="localhost")

    def serve(listener: socket.socket) -> bool:
        raw, _ = listener.accept()
        raw.settimeout(peers.TIMEOUT)
        with context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False) as sock:
            assert peers.sha256(read(sock, len(DATA))) == peers.sha256(DATA)
            told = has_libssl and sock.recv(1) == b""
            sock.sendall(ANSWER)
            sock.unwrap()
            return told

    def ask(port: int) -> bytes:
        with peers.connect(port) as sock:
            sock.sendall(DATA)
            sock.shutdown(socket.SHUT_WR)
            return peers.read_all(sock)

    async def main(listener: socket.socket) -> None:
        there = f"tcps://127.0.0.1:{listener.getsockname()[1]}"
        async with ringmain.relay("tcp://127.0.0.1:0", there, listen_once=True, destination_tls=tls) as relayer:
            serving = asyncio.to_thread(serve, listener)
            asking = asyncio.to_thread(ask, relayer.port)
            _, told, answer = await asyncio.gather(relayer.serve(), serving, asking)
        assert told == has_libssl
        assert peers.sha256(answer) == peers.sha256(ANSWER)

    with server_at() as listener:
        run(main(listener))


def test_a_tls_stream_that_is_truncated_is_a_reset_for_the_other(
    bench: peers.Bench, certificates: Certificates
) -> None:
    with server_at() as listener:
        destination = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(destination, "-o", "--source-certfile", certificates.server, scheme="tcps")
        with peers.connect_tls(port, certificates.ca) as client:
            server, _ = listener.accept()
            with server:
                client.sendall(b"half a")
                assert read(server, 6) == b"half a"
                socket.socket.shutdown(client, socket.SHUT_WR)
                assert peers.ends_in_reset(server)
        assert relay.wait() == 18


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


def stunnel(bench: peers.Bench, role: str, there: int, *lines: Any) -> int:
    """Start stunnel between a free port of its own and another; return its port."""
    port = peers.free_port()
    config = bench.folder / f"stunnel-{role}.conf"
    config.write_text(
        f"foreground = yes\npid =\ndebug = 4\n[relay]\nclient = {'yes' if role == 'client' else 'no'}\n"
        f"accept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{there}\n" + "\n".join(lines) + "\n"
    )
    bench.start([peers.need("stunnel"), str(config)])
    peers.wait_for_port(port)
    return port


def test_stunnel_at_both_ends(bench: peers.Bench, certificates: Certificates) -> None:
    with echo() as there:
        server = stunnel(bench, "server", there, f"cert = {certificates.server}")
        relay, port = bench.relaying(
            f"tcps://127.0.0.1:{server}",
            *("-o", "--source-certfile", certificates.server),
            *("--destination-cafile", certificates.ca, "--destination-server-name", "localhost"),
            scheme="tcps",
        )
        trust = (f"CAfile = {certificates.ca}", "verifyChain = yes", "checkHost = localhost")
        with peers.connect(stunnel(bench, "client", port, *trust)) as sock:
            assert peers.sha256(exchange(sock, DATA)) == peers.sha256(DATA)
        assert relay.wait() == 0, relay.stderr


def test_socat_at_both_ends(bench: peers.Bench, certificates: Certificates) -> None:
    socat = peers.need("socat")
    there = peers.free_port()
    bench.start([socat, f"OPENSSL-LISTEN:{there},bind=127.0.0.1,reuseaddr,cert={certificates.server},verify=0", "PIPE"])
    peers.wait_for_port(there)
    relay, port = bench.relaying(
        f"tcps://127.0.0.1:{there}",
        *("-o", "--source-certfile", certificates.server),
        *("--destination-cafile", certificates.ca, "--destination-server-name", "localhost"),
        scheme="tcps",
    )
    client = peers.free_port()
    tls = f"OPENSSL:127.0.0.1:{port},cafile={certificates.ca},commonname=localhost"
    bench.start([socat, f"TCP-LISTEN:{client},bind=127.0.0.1,reuseaddr", tls])
    peers.wait_for_port(client)
    with peers.connect(client) as sock:
        sock.sendall(DATA[:100_000])
        assert peers.sha256(read(sock, 100_000)) == peers.sha256(DATA[:100_000])
    assert relay.wait() == 0, relay.stderr

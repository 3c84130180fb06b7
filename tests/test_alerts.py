"""The alert that tells a TLS peer why it is turned away arrives: closing with unread bytes would reset it away."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from conftest import Certificates
from streams import echo, read, server_at

import ringmain

Run = Callable[[Any], Any]

PEERS = 62
# A record that says it is encrypted, and more that is unread when it is found bad.
BAD = b"\x17\x03\x03\x00\x20" + bytes(32)
MORE = b"\x17\x03\x03\x40\x00" + bytes(16384)
ALERT = "SSLV3_ALERT_BAD_RECORD_MAC"


def answer_to(sock: ssl.SSLSocket, *pieces: bytes) -> str:
    """Send pieces beneath TLS, then read; return what is heard first.

    In one call: who is told that a record was bad is heard out for a second only, and is reset if it still sends then.
    """
    try:
        socket.socket.sendall(sock, b"".join(pieces))
        while sock.recv(1 << 16):
            pass
    except ssl.SSLError as error:
        return str(error.reason)
    except OSError as error:
        return str(error)
    return "closed"


def server_side(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.num_tickets = 0
    return context


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("verb", ["relay", "load", "save"])
def test_every_client_that_sends_a_bad_record_is_told_so(
    bench: peers.Bench, certificates: Certificates, verb: str, version: str
) -> None:
    options = ["--certfile", certificates.server]
    with echo() as there:
        if verb == "relay":
            options = ["--source-certfile", certificates.server]
            program, port = bench.relaying(f"tcp://127.0.0.1:{there}", *options, scheme="tcps")
        else:
            listen = ["--listen"] if verb == "save" else []
            program, port = bench.listening(verb, "--tls", *listen, *options, stdin=subprocess.PIPE)
        answers = []
        for _ in range(PEERS):
            with peers.connect_tls(port, certificates.ca, version=version) as sock:
                answers.append(answer_to(sock, BAD, *[MORE] * 20))
    assert answers == [ALERT] * PEERS
    assert "Traceback" not in program.stderr


@pytest.mark.parametrize("verb", ["relay", "load", "save"])
def test_a_server_that_sends_a_bad_record_is_told_so(bench: peers.Bench, certificates: Certificates, verb: str) -> None:
    context, answers = server_side(certificates), []
    with server_at() as listener:
        url = f"tcps://127.0.0.1:{listener.getsockname()[1]}"
        trust = ["--cafile", certificates.ca, "--server-name", "localhost"]
        for _ in range(5):
            if verb == "relay":
                trusted = [f"--destination-{option[2:]}" if str(option)[:2] == "--" else option for option in trust]
                program, port = bench.relaying(url, "-o", *trusted)
                client = peers.connect(port)
            else:
                connect = ["--connect"] if verb == "load" else []
                program = bench.ringmain(verb, *connect, *trust, url, stdin=subprocess.PIPE)
            with context.wrap_socket(listener.accept()[0], server_side=True, suppress_ragged_eofs=False) as sock:
                sock.settimeout(peers.TIMEOUT)
                sock.sendall(b"x")
                answers.append(answer_to(sock, BAD, *[MORE] * 20))
            assert program.wait() in (18, 35, 55), program.stderr
            if verb == "relay":
                client.close()
    assert answers == [ALERT] * 5


@contextlib.contextmanager
def spoiling(port: int) -> Iterator[int]:
    """Forward one client to a port, with one byte wrong in its first large record; yield a port."""
    with server_at() as listener:

        def up(client: socket.socket, server: socket.socket) -> None:
            done = False
            with contextlib.suppress(OSError):
                while len(head := read(client, 5)) == 5:
                    body = bytearray(read(client, int.from_bytes(head[3:])))
                    if not done and head[0] == 23 and len(body) > 4000:
                        body[-1] ^= 1
                        done = True
                    server.sendall(head + body)

        def down(client: socket.socket, server: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while piece := server.recv(1 << 16):
                    client.sendall(piece)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)

        def serve() -> None:
            client, _ = listener.accept()
            with client, peers.connect(port) as server:
                client.settimeout(peers.TIMEOUT)
                ways = [threading.Thread(target=way, args=[client, server]) for way in (up, down)]
                for way in ways:
                    way.start()
                for way in reversed(ways):  # until the client has left: a close before that would reset it
                    way.join(peers.TIMEOUT)
                for sock in (client, server):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(peers.TIMEOUT)


@pytest.mark.parametrize("verb", ["relay", "load"])
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_s_client_hears_that_its_record_was_bad(
    bench: peers.Bench, certificates: Certificates, verb: str, version: str
) -> None:
    data = bench.file(peers.payload(1 << 20))
    with echo() as there:
        if verb == "relay":
            options = ["--source-certfile", certificates.server]
            _, port = bench.relaying(f"tcp://127.0.0.1:{there}", *options, scheme="tcps")
        else:
            _, port = bench.listening("load", "--tls", "--certfile", certificates.server)
        for _ in range(5):
            with spoiling(port) as between, data.open("rb") as stdin:
                client = bench.start(
                    [peers.need("openssl"), "s_client", "-connect", f"127.0.0.1:{between}", f"-{version}", "-quiet"],
                    stdin=stdin,
                )
                client.wait()
            assert "alert bad record mac" in client.stderr


@pytest.mark.parametrize("verb", ["relay", "load", "save"])
def test_every_client_with_an_endless_hello_is_told_so(
    bench: peers.Bench, certificates: Certificates, verb: str
) -> None:
    record = b"\x16\x03\x01\x40\x00"
    hello = record + b"\x01\xff\xff\xff" + bytes(16380) + (record + bytes(16384)) * 250
    with echo() as there:
        if verb == "relay":
            options = ["--source-certfile", certificates.server]
            program, port = bench.relaying(f"tcp://127.0.0.1:{there}", *options, scheme="tcps")
        else:
            listen = ["--listen"] if verb == "save" else []
            options = ["--tls", *listen, "--certfile", certificates.server]
            program, port = bench.listening(verb, *options, stdin=subprocess.PIPE)
        for _ in range(PEERS):
            with peers.connect(port) as sock:
                sock.sendall(hello)
                assert read(sock, 8).hex() == "1503030002022f"  # fatal, illegal parameter; and the end
    assert "Traceback" not in program.stderr


def test_a_peer_that_sends_on_and_on_is_reset(bench: peers.Bench, certificates: Certificates) -> None:
    with echo() as there:
        options = ["--source-certfile", certificates.server]
        _, port = bench.relaying(f"tcp://127.0.0.1:{there}", *options, scheme="tcps")
        with peers.connect_tls(port, certificates.ca) as sock:
            socket.socket.sendall(sock, BAD)
            with pytest.raises(OSError, match=r"reset|pipe"):
                while True:
                    socket.socket.sendall(sock, MORE)
        with peers.connect_tls(port, certificates.ca) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"


@contextlib.contextmanager
def pair_with(number: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two connected sockets, the first of which has a descriptor of that number, which is free."""
    with contextlib.ExitStack() as stack:
        while True:
            pair = [stack.enter_context(sock) for sock in socket.socketpair()]
            for ours, other in (pair, pair[::-1]):
                if ours.fileno() == number:
                    yield ours, other
                    return


@pytest.mark.parametrize("verb", ["load", "save"])
def test_who_leaves_while_an_alert_is_being_read_leaves_the_next_owner_of_the_descriptor_alone(
    run: Run, certificates: Certificates, verb: str
) -> None:
    async def main() -> None:
        loop, heard = asyncio.get_running_loop(), bytearray()
        options: dict[str, Any] = {"certfile": str(certificates.server)}
        it = ringmain.load("tcps://127.0.0.1:0", **options)
        if verb == "save":
            it = ringmain.save("tcps://127.0.0.1:0", listen=True, **options)  # type: ignore[assignment]
        client: ssl.SSLSocket | None = None
        with contextlib.suppress(KeyError):
            async with it:
                work: Any = it.wait_for_peer() if isinstance(it, ringmain.Saver) else anext(it)
                waiting = asyncio.ensure_future(work)
                client = await asyncio.to_thread(peers.connect_tls, it.port, certificates.ca)
                if isinstance(it, ringmain.Saver):
                    await waiting
                    outflow: Any = it._clients.outflows[0]
                    number = outflow.link.fd
                    socket.socket.sendall(client, BAD)
                    await asyncio.to_thread(peers.eventually, lambda: outflow.failure is not None, "a failure")
                    waiting = asyncio.ensure_future(it.write(b"y"))
                else:
                    client.sendall(b"x")
                    await waiting
                    number = it._inflow.link.fd  # type: ignore[union-attr]
                    waiting = asyncio.ensure_future(anext(it))
                    socket.socket.sendall(client, BAD)
                while await asyncio.to_thread(socket.socket.recv, client, 1 << 16):
                    pass
                raise KeyError
        assert client is not None
        with client, pair_with(number) as (ours, other):
            loop.add_reader(ours, lambda: heard.extend(ours.recv(100)))
            other.sendall(b"before")
            await asyncio.wait([waiting])
            waiting.exception()
            other.sendall(b" and after")
            await asyncio.to_thread(peers.eventually, lambda: heard == b"before and after", "hearing all")
            loop.remove_reader(ours)

    run(main())


def test_a_relay_that_is_stopped_while_an_alert_is_being_read_leaves_no_timer(
    run: Run, certificates: Certificates
) -> None:
    async def main(there: int) -> None:
        tls = ringmain.TlsSettings(certfile=str(certificates.server))
        async with ringmain.relay("tcps://127.0.0.1:0", f"tcp://127.0.0.1:{there}", source_tls=tls) as relayer:
            serving = asyncio.ensure_future(relayer.serve())
            with await asyncio.to_thread(peers.connect_tls, relayer.port, certificates.ca) as client:
                client.sendall(b"x")
                assert await asyncio.to_thread(client.recv, 1) == b"x"
                (passage,) = relayer._passages
                socket.socket.sendall(client, BAD)
                while await asyncio.to_thread(socket.socket.recv, client, 1 << 16):
                    pass
                assert relayer.stop()
                await serving
            assert [direction._cut._looking for direction in passage.directions] == [None, None]

    with echo() as there:
        run(main(there))

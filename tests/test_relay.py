"""Relay: both ways, each direction with an end of its own, whatever the ends are."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import peers
import pytest
from conftest import Certificates, lent_blocks, open_descriptors
from streams import drain, echo, exchange, flood, read, sending, server_at

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]
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


def is_reset(sock: socket.socket) -> bool:
    """Wait for the end of a connection; tell whether it was a reset."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize("path", PATHS)
def test_bytes_go_both_ways_and_each_end_is_passed_on_alone(bench: peers.Bench, path: str) -> None:
    stats = bench.folder / "stats"
    with pair(bench, "-o", "--path", path, "--stats-file", stats) as it:
        with sending(it.client, DATA):
            assert peers.sha256(read(it.server, len(DATA))) == peers.sha256(DATA)
        it.client.shutdown(socket.SHUT_WR)
        assert it.server.recv(1) == b""
        with sending(it.server, ANSWER):  # the other direction goes on
            assert peers.sha256(read(it.client, len(ANSWER))) == peers.sha256(ANSWER)
        it.server.shutdown(socket.SHUT_WR)
        assert it.client.recv(1) == b""
        assert it.relay.wait() == 0
        assert it.relay.stderr == f"listening on tcp://127.0.0.1:{it.port}\n"
    row = json.loads(stats.read_text())
    assert (row["source"]["bytes"], row["destination"]["bytes"]) == (len(DATA), len(ANSWER))
    assert (row["source"]["state"], row["destination"]["state"], row["verdict"]) == ("ended", "ended", "ended")


@pytest.mark.parametrize("path", PATHS)
def test_the_server_may_end_first(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--path", path) as it:
        it.server.sendall(ANSWER[:100_000])
        it.server.shutdown(socket.SHUT_WR)
        assert peers.read_all(it.client) == ANSWER[:100_000]
        with sending(it.client, DATA):
            assert peers.sha256(read(it.server, len(DATA))) == peers.sha256(DATA)
        it.client.close()
        assert it.server.recv(1) == b""
        assert it.relay.wait() == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("half_closed", [False, True])
def test_a_reset_is_passed_on_as_a_reset(bench: peers.Bench, path: str, who: str, half_closed: bool) -> None:
    with pair(bench, "-o", "--path", path) as it:
        one, other = (it.client, it.server) if who == "client" else (it.server, it.client)
        one.sendall(b"last words")
        assert read(other, 10) == b"last words"
        if half_closed:
            one.shutdown(socket.SHUT_WR)
            assert other.recv(1) == b""
        peers.close_with_reset(one)
        assert is_reset(other) or half_closed  # which shows at the next write then
        if half_closed:
            with pytest.raises(OSError, match=r"reset|pipe"):
                peers.eventually(lambda: other.send(b"x") and False)
        assert it.relay.wait() == (55 if half_closed else 56)
        # The kernel's word for a reset after a FIN is EPIPE.
        assert ("broken pipe" if half_closed else "reset by peer") in it.relay.stderr


@pytest.mark.parametrize("path", PATHS)
def test_what_came_before_a_reset_arrives(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--path", path) as it:
        it.server.sendall(ANSWER[:50_000])
        peers.eventually(lambda: peers.unread(it.client) == 50_000)
        with contextlib.suppress(OSError):
            it.client.sendall(DATA[:1000])
        peers.close_with_reset(it.server)
        got = bytearray()
        with pytest.raises(ConnectionResetError):
            while piece := it.client.recv(1 << 16):
                got += piece
        assert peers.sha256(bytes(got)) == peers.sha256(ANSWER[:50_000])


@pytest.mark.parametrize("path", PATHS)
def test_a_slow_side_stalls_only_its_own_direction_in_bounded_memory(bench: peers.Bench, path: str) -> None:
    with pair(bench, "--path", path) as it:
        end = flood(it.client)
        try:
            peers.eventually(lambda: peers.unread(it.server) > 0)
            with sending(it.server, ANSWER):
                assert peers.sha256(read(it.client, len(ANSWER))) == peers.sha256(ANSWER)
            peers.eventually(lambda: _stands_still(it), "a standstill")
            assert it.relay.memory() < 96 << 20
        finally:
            end()


def _stands_still(it: Pair) -> bool:
    before = peers.unread(it.server)
    return not any(peers.unread(it.server) != before for _ in range(50))


def test_one_client_after_another_is_served_and_none_is_mixed(bench: peers.Bench) -> None:
    with echo() as there:
        relay, port = bench.relaying(f"tcp://127.0.0.1:{there}", "--gate", "queue")
        for seed in range(5):
            data = peers.payload(100_000, seed)
            with peers.connect(port) as sock:
                assert exchange(sock, data) == data
        assert relay.stderr.count("\n") == 1  # where it listens


def test_bad_clients_stop_nothing(bench: peers.Bench, certificates: Certificates) -> None:
    with echo() as there:
        relay, port = bench.relaying(
            f"tcp://127.0.0.1:{there}",
            *("--source-certfile", certificates.server, "--handshake-timeout", "300ms"),
            scheme="tcps",
        )
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""):
            with peers.connect(port) as sock:
                sock.sendall(garbage)
                is_reset(sock)
        with peers.connect(port) as sock:
            peers.close_with_reset(sock)
        with peers.connect_tls(port, certificates.ca) as sock:
            assert exchange(sock, DATA) == DATA
        assert relay.stderr.count("\n") == 1 + 4
        assert "Traceback" not in relay.stderr


def test_a_client_is_closed_at_once_when_the_destination_is_down_and_the_next_is_served(bench: peers.Bench) -> None:
    there = peers.free_port()
    relay, port = bench.relaying(f"tcp://127.0.0.1:{there}")
    with peers.connect(port) as sock:
        assert is_reset(sock)
    relay.says(f"connect to 127.0.0.1:{there}: connection refused")
    with server_at(there) as listener, peers.connect(port) as sock:
        server, _ = listener.accept()
        with server:
            sock.sendall(b"x")
            assert server.recv(1) == b"x"


def test_retry_holds_a_client_until_the_destination_is_up(bench: peers.Bench) -> None:
    there = peers.free_port()
    relay, port = bench.relaying(f"tcp://127.0.0.1:{there}", "--retry", "forever", "-v")
    with peers.connect(port) as sock:
        sock.sendall(b"patience")
        relay.says("trying again")
        with server_at(there) as listener:
            server, _ = listener.accept()
            with server:
                assert read(server, 8) == b"patience"


def test_a_client_that_is_reset_while_it_waits_makes_room_for_the_next(bench: peers.Bench) -> None:
    there = peers.free_port()
    relay, port = bench.relaying(f"tcp://127.0.0.1:{there}", "--retry", "forever", "-v")
    with peers.connect(port) as sock:
        relay.says("trying again")
        peers.close_with_reset(sock)
    relay.says("was reset before the other side answered")
    with server_at(there) as listener, peers.connect(port) as sock:
        server, _ = listener.accept()
        with server:
            sock.sendall(b"next")
            assert read(server, 4) == b"next"


def test_listen_once_ends_with_the_code_of_a_destination_that_is_down(bench: peers.Bench) -> None:
    relay, port = bench.relaying(f"tcp://127.0.0.1:{peers.free_port()}", "-o")
    with peers.connect(port):
        assert relay.wait() == 7
    assert relay.stderr.count("\n") == 2  # where it listens, and this


def test_both_ends_may_listen_or_connect(bench: peers.Bench) -> None:
    first = bench.folder / "ports"
    listening = bench.ringmain("relay", "-l", "-o", "--port-file", first, "tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    ports = peers.eventually(lambda: first.exists() and [int(line) for line in first.read_text().split()])
    assert listening.stderr.splitlines() == [f"listening on tcp://127.0.0.1:{port}" for port in ports]
    with server_at() as listener:
        ends = [f"tcp://127.0.0.1:{port}" for port in (ports[0], listener.getsockname()[1])]
        connecting = bench.ringmain("relay", "-c", *ends)
        server, _ = listener.accept()
        with server, peers.connect(ports[1]) as client:
            with sending(client, DATA):
                assert peers.sha256(read(server, len(DATA))) == peers.sha256(DATA)
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
    assert (connecting.wait(), listening.wait()) == (0, 0)


def test_where_only_the_destination_listens_each_of_its_clients_gets_a_source(bench: peers.Bench) -> None:
    with echo() as there:
        port_file = bench.folder / "port"
        ends = [f"tcp://127.0.0.1:{there}", "tcp://127.0.0.1:0"]
        bench.ringmain("relay", "-c", "-l", "--port-file", port_file, *ends)
        port = peers.eventually(lambda: port_file.exists() and int(port_file.read_text()))
        for seed in range(3):
            data = peers.payload(50_000, seed)
            with peers.connect(port) as sock:
                assert exchange(sock, data) == data


@pytest.mark.parametrize("path", PATHS)
def test_one_way_drops_what_the_destination_answers(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--one-way", "--path", path) as it:
        it.server.sendall(ANSWER)
        with sending(it.client, DATA):
            assert peers.sha256(read(it.server, len(DATA))) == peers.sha256(DATA)
        it.server.shutdown(socket.SHUT_WR)
        it.client.sendall(b"more")
        assert read(it.server, 4) == b"more"
        it.client.shutdown(socket.SHUT_WR)
        assert it.server.recv(1) == b""
        assert it.client.recv(1) == b""
        assert it.relay.wait() == 0


@pytest.mark.parametrize("path", PATHS)
def test_one_way_hears_of_a_destination_that_resets_while_nothing_is_sent(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--one-way", "--path", path) as it:
        it.client.sendall(b"x")
        assert read(it.server, 1) == b"x"
        peers.close_with_reset(it.server)
        assert is_reset(it.client)
        assert it.relay.wait() == 55


@pytest.mark.parametrize("path", PATHS)
def test_nothing_moving_for_the_idle_timeout_resets_both(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--idle-timeout", "300ms", "--path", path) as it:
        it.server.sendall(b"x")
        assert read(it.client, 1) == b"x"
        assert is_reset(it.client)
        assert is_reset(it.server)
        assert it.relay.wait() == 28
        assert "nothing moved for 0.3 s" in it.relay.stderr


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("state", ["idle", "flooded", "blocked", "waiting"])
def test_a_signal_ends_a_relay(bench: peers.Bench, path: str, state: str) -> None:
    if state == "waiting":
        relay, _ = bench.relaying("tcp://127.0.0.1:1", "--path", path)
        relay.signal(signal.SIGTERM)
        assert relay.wait() == 143
        return
    with pair(bench, "--path", path) as it:
        it.client.sendall(b"x")
        assert read(it.server, 1) == b"x"
        end = flood(it.client) if state != "idle" else lambda: None
        if state == "flooded":
            wait = drain(it.server)
        elif state == "blocked":
            peers.eventually(lambda: peers.unread(it.server) > 0)
        it.relay.signal(signal.SIGTERM)
        assert it.relay.wait() == 143
        end()
        if state == "flooded":
            with contextlib.suppress(OSError):
                wait()
            return
        assert is_reset(it.server)
        assert state == "blocked" or is_reset(it.client)  # else the flood has heard of it


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


@pytest.mark.parametrize("has_libssl", [True, False])
def test_a_tls_side_that_was_told_the_end_still_gets_its_answer_through(
    certificates: Certificates, run: Run, monkeypatch: pytest.MonkeyPatch, has_libssl: bool
) -> None:
    if not has_libssl:  # then close_notify waits until the other direction has ended too
        monkeypatch.setattr("ringmain.sender.send_close_notify", lambda _: False)
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
                assert is_reset(server)
        assert relay.wait() == 18


@pytest.mark.parametrize("kind", ["file", "fifo", "-"])
def test_an_end_may_be_a_file_as_for_load_and_save(bench: peers.Bench, kind: str) -> None:
    source, sink = bench.folder / "source", bench.folder / "sink"
    if kind == "fifo":
        os.mkfifo(source)
        os.mkfifo(sink)
    elif kind == "file":
        source.write_bytes(DATA)
    port_file = bench.folder / "port"
    names = ["-", "-"] if kind == "-" else [str(source), str(sink)]
    pipes = {"stdout": subprocess.PIPE} if kind == "-" else {}
    loader = bench.ringmain("relay", "-o", "--port-file", port_file, "tcp://127.0.0.1:0", names[1], **pipes)
    reader = loader.process.stdout if kind == "-" else open(sink, "rb") if kind == "fifo" else None  # noqa: SIM115, PTH123
    port = peers.eventually(lambda: port_file.exists() and int(port_file.read_text()))
    stdin = {"stdin": subprocess.PIPE} if kind == "-" else {}
    saver = bench.ringmain("relay", names[0], f"tcp://127.0.0.1:{port}", **stdin)
    writer = saver.process.stdin if kind == "-" else open(source, "wb") if kind == "fifo" else None  # noqa: SIM115, PTH123
    if writer is not None:
        assert reader is not None
        with sending(writer, DATA):
            got = read(reader, len(DATA))
        writer.close()
        got += reader.read()
        reader.close()
    assert (saver.wait(), loader.wait()) == (0, 0), saver.stderr + loader.stderr
    assert peers.sha256(sink if kind == "file" else got) == peers.sha256(DATA)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "-"], "there is no connection in that"),
        (["-", "tcp://127.0.0.1:1", "-c"], "SOURCE is a file"),
        (["tcp://127.0.0.1:1", "./x", "-l"], "DESTINATION is a file"),
        (["tcp://127.0.0.1:1", "./x", "--send-proxy", "v1"], "it takes two connections"),
        (["-", "tcp://127.0.0.1:1", "-o"], "there is nothing to listen at"),
        (["tcp://127.0.0.1:1", "nonsense"], "not understood"),
        (["tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "-c", "-o"], "it needs a listener"),
        (["tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "-c", "--accept-proxy"], "only clients send PROXY headers"),
        (["tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "-l", "--send-proxy", "v2"], "only servers expect PROXY headers"),
        (["tcps://127.0.0.1:1", "tcp://127.0.0.1:2"], "it needs a certificate"),
        (["tcps://127.0.0.1:1", "tcp://127.0.0.1:2"], "give --source-certfile PEM"),
        (["-c", "tcps://127.0.0.1:1", "tcp://127.0.0.1:2", "--path", "kernel"], "TLS is encrypted"),
    ],
)
def test_arguments_that_make_no_sense_get_one_line(bench: peers.Bench, arguments: list[str], words: str) -> None:
    relay = bench.ringmain("relay", *arguments)
    assert relay.wait() == 2
    assert words in relay.stderr
    assert relay.stderr.count("\n") == 1


def test_tls_options_of_a_plain_end_are_named(bench: peers.Bench) -> None:
    relay, _ = bench.relaying("tcp://127.0.0.1:1", "--source-certfile", "x", "--destination-insecure")
    relay.says("--source-certfile: ignored without a tcps:// endpoint")
    relay.says("--destination-insecure: ignored without a tcps:// endpoint")


def test_progress_shows_both_directions(bench: peers.Bench) -> None:
    with pair(bench, "--progress") as it:
        it.client.sendall(DATA[:3000])
        it.server.sendall(DATA[:2000])
        assert len(read(it.server, 3000) + read(it.client, 2000)) == 5000
        it.relay.says("there 2.93 KiB at")
        it.relay.says("back 1.95 KiB at")


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


def test_a_relay_in_a_program_can_be_awaited_and_cancelled(run: Run) -> None:
    async def main() -> None:
        with echo() as there:
            async with ringmain.relay("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{there}") as relayer:
                assert relayer.addresses == [f"127.0.0.1:{relayer.port}"]
                serving = asyncio.ensure_future(relayer.serve())
                for seed in range(3):
                    data = peers.payload(200_000, seed)
                    reader, writer = await asyncio.open_connection("127.0.0.1", relayer.port)
                    writer.write(data)
                    writer.write_eof()
                    assert peers.sha256(await reader.read()) == peers.sha256(data)
                    writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", relayer.port)
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                assert [counters.bytes_in for counters in relayer.counters] == [1, 1]
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)
                writer.close()
        with pytest.raises(ringmain.ConnectError):
            await ringmain.relay("tcp://127.0.0.1:1", "tcp://127.0.0.1:1", connect=True)

    run(main())


def test_a_relay_works_without_an_event_loop() -> None:
    got = []

    def ask(port: int) -> None:
        with peers.connect(port) as sock:
            got.append(exchange(sock, DATA))

    with echo() as there, ringmain.relay("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{there}", listen_once=True) as relayer:
        thread = threading.Thread(target=ask, args=[relayer.port])
        thread.start()
        relayer.serve()
        thread.join(peers.TIMEOUT)
    assert peers.sha256(got[0]) == peers.sha256(DATA)


def test_clients_that_fail_leave_nothing_behind(run: Run) -> None:
    async def main() -> None:
        with echo() as there:
            async with ringmain.relay("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{there}") as relayer:
                serving = asyncio.ensure_future(relayer.serve("block"))
                for count in range(3):
                    sock = await asyncio.to_thread(peers.connect, relayer.port)
                    sock.setblocking(False)
                    while not relayer.counters or relayer.counters[1].stalls == 0:  # until its answer is stuck
                        with contextlib.suppress(BlockingIOError):
                            sock.send(bytes(1 << 20))
                        await asyncio.sleep(0)
                    peers.close_with_reset(sock)
                    await asyncio.to_thread(peers.eventually, lambda: not relayer.counters, "the end of the passage")
                    assert lent_blocks() == 0
                    if count == 0:
                        descriptors = len(open_descriptors())
                assert len(open_descriptors()) == descriptors
                reader, writer = await asyncio.open_connection("127.0.0.1", relayer.port)
                writer.write(DATA[:50_000])
                writer.write_eof()
                assert await reader.read() == DATA[:50_000]
                writer.close()
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_a_forgotten_relay_is_closed(run: Run) -> None:
    async def main() -> int:
        relayer = await ringmain.relay("tcp://127.0.0.1:0", "tcp://127.0.0.1:1").__aenter__()
        return relayer.port

    port = run(main())
    gc.collect()
    with pytest.raises(ConnectionRefusedError):
        peers.connect(port)

"""A relay that connects again: a source that is dialled again too, what ends it, and what is refused."""

import asyncio
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from losing import drained, listen_at
from streams import server_at

import ringmain
from ringmain import errors
from ringmain.flow import clients
from ringmain.net import redial

Run = Callable[[Any], Any]
ROUNDS = 12
FLAGS = ("--one-way", "--reconnect")


def url_of(listener: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def take(sock: socket.socket, data: bytearray | None = None) -> tuple[bytes, bool]:
    """Return what comes until the end, which is added to data meanwhile, and whether that is a reset."""
    data = bytearray() if data is None else data
    with sock:
        try:
            while chunk := sock.recv(1 << 16):
                data += chunk
        except ConnectionResetError:
            return bytes(data), True
        return bytes(data), False


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_dialled_source_is_dialled_again_and_each_of_its_connections_gets_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, certificates: Certificates, tls: bool
) -> None:
    """Where it ends properly the destination is ended so, and else reset, once it has all."""
    monkeypatch.setattr(redial, "_LONGEST_PAUSE", 0.05)
    parts = [peers.payload(100_000 + number, number) for number in range(ROUNDS)]
    broken = [number % 3 == 1 for number in range(ROUNDS)]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server)
    got: list[tuple[bytes, bool]] = []
    coming: list[bytearray] = []

    def give(listener: socket.socket) -> None:
        for part, breaks in zip(parts, broken, strict=True):
            sock, _ = listener.accept()
            sock.settimeout(peers.TIMEOUT)
            if tls:
                sock = context.wrap_socket(sock, server_side=True)
            sock.sendall(part)
            if isinstance(sock, ssl.SSLSocket) and not breaks:
                sock.unwrap().close()
            elif breaks and not tls:  # not before all has gone on: a reset takes what is under way
                peers.eventually(lambda part=part: coming and coming[-1] == part)
                peers.close_with_reset(sock)
            sock.close()  # of TLS without close_notify, which is a loss

    def keep(listener: socket.socket) -> None:
        for _ in parts:
            sock, _ = listener.accept()
            sock.settimeout(peers.TIMEOUT)
            coming.append(bytearray())
            got.append(take(sock, coming[-1]))

    async def main() -> None:
        with server_at() as source, server_at() as destination, ThreadPoolExecutor(2) as executor:
            loop = asyncio.get_running_loop()
            work = [loop.run_in_executor(executor, give, source), loop.run_in_executor(executor, keep, destination)]
            async with ringmain.relay(
                url_of(source).replace("tcp:", "tcps:" if tls else "tcp:"),
                url_of(destination),
                connect=True,
                one_way=True,
                reconnect=True,
                source_tls=ringmain.TlsSettings(cafile=str(certificates.ca) if tls else None),
            ) as relayer:
                serving = asyncio.ensure_future(relayer.serve())
                await asyncio.gather(*work)
                relayer.stop()
                await serving

    run(main())
    assert [peers.sha256(data) for data, _ in got] == [peers.sha256(part) for part in parts]
    assert [is_reset for _, is_reset in got] == broken


def test_what_a_lost_source_has_sent_reaches_a_destination_that_is_away_meanwhile(bench: peers.Bench) -> None:
    data = peers.payload(3_000_000)
    port = peers.free_port()
    listener = listen_at(port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # else our kernel may take all of it
    relay, source = bench.relaying(f"tcp://127.0.0.1:{port}", *FLAGS)
    with peers.connect(source) as client:
        client.sendall(data)
        sock, _ = listener.accept()
        sock.settimeout(peers.TIMEOUT)
        listener.close()
        got = sock.recv(100_000, socket.MSG_WAITALL) + drained(sock)
        peers.close_with_reset(sock)
        relay.says("connecting again")
        peers.eventually(lambda: peers.unacknowledged(client) == 0)
        peers.close_with_reset(client)
    with listen_at(port) as listener:
        rest, is_reset = take(listener.accept()[0])
    assert is_reset, "a part must not look like the whole"
    assert data.endswith(rest)
    assert data.startswith(got)
    assert len(got) + len(rest) >= len(data)
    relay.says("reset by peer after 3000000 bytes")


def test_the_proxy_header_goes_before_each_connection(bench: peers.Bench) -> None:
    port = peers.free_port()
    listener = listen_at(port)
    _, source = bench.relaying(f"tcp://127.0.0.1:{port}", *FLAGS, "--send-proxy", "v1")
    heads = []
    with peers.connect(source) as client:
        own = client.getsockname()[1]
        for number in range(3):
            client.sendall(b"record %d\n" % number)
            sock, _ = listener.accept()
            listener.close()
            with sock:
                sock.settimeout(peers.TIMEOUT)
                with sock.makefile("rb") as file:
                    heads.append(file.readline())
                peers.close_with_reset(sock)
            listener = listen_at(port)
        if number == 2:
            client.close()
    listener.close()
    assert heads == [b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (own, source)] * 3


def lose_one(relay: peers.Program, port: int, listener: socket.socket, client: socket.socket) -> None:
    """Let a relay have a destination, and lose it to nobody."""
    client.sendall(b"hello")
    sock, _ = listener.accept()
    listener.close()
    with sock:
        sock.settimeout(peers.TIMEOUT)
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
        peers.close_with_reset(sock)
    relay.says("connecting again")


def test_a_signal_while_it_waits_resets_the_source_and_tells_what_may_be_lost(bench: peers.Bench) -> None:
    port = peers.free_port()
    listener = listen_at(port)
    relay, source = bench.relaying(f"tcp://127.0.0.1:{port}", *FLAGS, "--progress")
    with peers.connect(source) as client:
        lose_one(relay, port, listener, client)
        client.sendall(b"for nobody")
        relay.says(f"waiting for 127.0.0.1:{port} (")
        peers.eventually(lambda: peers.unacknowledged(client) == 0)
        relay.signal(signal.SIGTERM)
        assert peers.ends_in_reset(client)
    assert relay.wait() == 143
    assert f"127.0.0.1:{port}: the last " in relay.stderr or "it was stopped" in relay.stderr


def test_retry_bounds_the_tries_after_a_loss_and_the_next_client_is_served(bench: peers.Bench) -> None:
    port = peers.free_port()
    listener = listen_at(port)
    relay, source = bench.relaying(f"tcp://127.0.0.1:{port}", *FLAGS, "--retry", "1")
    with peers.connect(source) as client:
        lose_one(relay, port, listener, client)
        assert peers.ends_in_reset(client)
    relay.says("connection refused")
    with listen_at(port) as listener, peers.connect(source) as client:
        client.sendall(b"next")
        with listener.accept()[0] as sock:
            sock.settimeout(peers.TIMEOUT)
            assert sock.recv(4, socket.MSG_WAITALL) == b"next"


def test_retry_bounds_the_tries_at_a_dialled_source_and_ends_the_relay(bench: peers.Bench) -> None:
    with server_at() as destination:
        source = listen_at(0)
        relay = bench.ringmain("relay", *FLAGS, "--connect", "--retry", "2", url_of(source), url_of(destination), "-v")
        with source.accept()[0] as sock:
            sock.sendall(b"all")
            source.close()
        assert take(destination.accept()[0]) == (b"all", False)
        assert relay.wait() == 7
    assert relay.stderr.count("trying again") == 2
    assert relay.stderr.count("connecting again") == 1
    assert "connection refused" in relay.stderr.splitlines()[-1]


def test_a_destination_that_comes_back_and_is_not_trusted_ends_the_passage_only(
    run: Run, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    monkeypatch.setattr(redial, "_LONGEST_PAUSE", 0.05)

    def accept_both(listener: socket.socket) -> bytes:
        for chain in (certificates.server, certificates.stranger, certificates.server):
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(chain)
            raw, _ = listener.accept()
            with raw:
                raw.settimeout(peers.TIMEOUT)
                try:
                    with context.wrap_socket(raw, server_side=True) as sock:
                        got = sock.recv(5)
                        peers.close_with_reset(sock)
                except ssl.SSLError:
                    continue
        return got

    def connect(port: int) -> bool:
        with peers.connect(port) as client:
            client.sendall(b"hello")
            return peers.ends_in_reset(client)

    async def main() -> None:
        with server_at() as listener, ThreadPoolExecutor(2) as executor:
            loop = asyncio.get_running_loop()
            accepting = loop.run_in_executor(executor, accept_both, listener)
            async with ringmain.relay(
                "tcp://127.0.0.1:0",
                url_of(listener).replace("tcp:", "tcps:"),
                one_way=True,
                reconnect=True,
                destination_tls=ringmain.TlsSettings(cafile=str(certificates.ca)),
            ) as relayer:
                serving = asyncio.ensure_future(relayer.serve())
                assert await loop.run_in_executor(executor, connect, relayer.port)
                client = await asyncio.to_thread(peers.connect, relayer.port)
                with client:
                    client.sendall(b"again")
                    assert await accepting == b"again"
                    relayer.stop()
                    await serving

    run(main())


def test_a_destination_that_takes_nothing_for_the_idle_time_out_is_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redial, "_LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(clients, "_GRACE", 0.2)
    data = peers.payload(20_000_000)

    def stall_and_take(listener: socket.socket) -> bytes:
        with listener.accept()[0]:
            second, _ = listener.accept()
            second.settimeout(peers.TIMEOUT)
            return take(second)[0]

    def give(port: int) -> None:
        with peers.connect(port) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert not peers.ends_in_reset(client)

    async def main() -> bytes:
        with server_at() as listener, ThreadPoolExecutor(2) as executor:
            loop = asyncio.get_running_loop()
            taking = loop.run_in_executor(executor, stall_and_take, listener)
            async with ringmain.relay(
                "tcp://127.0.0.1:0", url_of(listener), one_way=True, reconnect=True, idle_timeout=3
            ) as relayer:
                serving = asyncio.ensure_future(relayer.serve())
                await loop.run_in_executor(executor, give, relayer.port)
                got: bytes = await taking
                relayer.stop()
                await serving
                return got

    got = run(main())
    assert got
    assert data.endswith(got)


def test_a_unix_source_and_destination_go_on_too(bench: peers.Bench, tmp_path: Path) -> None:
    there = f"{tmp_path}/there"
    records = [b"record %d\n" % number for number in range(1000)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(there)
        listener.listen()
        listener.settimeout(peers.TIMEOUT)
        relay = bench.ringmain(
            "relay", *FLAGS, "--listen-once", "--delimiter", r"\n", f"unix:{tmp_path}/here", f"unix:{there}"
        )
        with peers.dial_unix(tmp_path / "here") as client:
            client.sendall(b"".join(records[:500]))
            with listener.accept()[0] as sock:
                sock.settimeout(peers.TIMEOUT)
                peers.eventually(lambda: peers.unacknowledged(client) == 0)
                sock.recv(5)
            client.sendall(b"".join(records[500:]))
            client.shutdown(socket.SHUT_WR)
            with listener.accept()[0] as sock:
                sock.settimeout(peers.TIMEOUT)
                assert take(sock) == (b"".join(records), False)
        assert relay.wait() == 0
    assert relay.stderr.count("connecting again") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reconnect"], "--reconnect: a new connection does not know what was asked on the lost one; add --one-way"),
        (
            ["--reconnect", "--one-way", "--listen"],
            "--reconnect with --listen: ringmain cannot reconnect to a destination",
        ),
        (["--one-way", "--delimiter", r"\n"], "add --reconnect"),
        (["--one-way", "--reconnect", "--delimiter", "x" * 17], "give 1 to 16 bytes"),
        (["--one-way", "--reconnect", "--path", "kernel"], "what may have to be sent again is kept in blocks"),
    ],
)
def test_options_that_contradict_each_other_are_refused(bench: peers.Bench, options: list[str], words: str) -> None:
    relay = bench.ringmain("relay", *options, "tcp://127.0.0.1:0", "tcp://127.0.0.1:1")
    assert relay.wait() == 2
    assert words in relay.stderr
    assert len([line for line in relay.stderr.splitlines() if not line.startswith("listening")]) == 1


@pytest.mark.parametrize("option", ["--reconnect", "--delimiter=x"])
def test_a_file_as_a_destination_is_never_lost(bench: peers.Bench, option: str) -> None:
    relay = bench.ringmain("relay", option, "tcp://127.0.0.1:0", bench.folder / "out")
    assert relay.wait() == 2
    assert "leave it out" in relay.stderr
    assert relay.stderr.count("\n") == 1


def test_a_file_as_a_source_goes_on_as_save_does(bench: peers.Bench) -> None:
    data = peers.payload(3_000_000)
    port = peers.free_port()
    listener = listen_at(port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    relay = bench.ringmain("relay", "--reconnect", bench.file(data), f"tcp://127.0.0.1:{port}")
    sock, _ = listener.accept()
    sock.settimeout(peers.TIMEOUT)
    listener.close()
    got = sock.recv(100_000, socket.MSG_WAITALL) + drained(sock)
    peers.close_with_reset(sock)
    with listen_at(port) as listener:
        rest, is_reset = take(listener.accept()[0])
    assert (relay.wait(), is_reset) == (0, False)
    assert rest == data[-len(rest) :]
    assert data.startswith(got)
    assert len(got) + len(rest) >= len(data)


def test_a_stop_ends_it_while_the_first_connection_is_dialled(run: Run) -> None:
    async def main() -> None:
        async with ringmain.relay(
            "tcp://127.0.0.1:0", f"tcp://127.0.0.1:{peers.free_port()}", one_way=True, reconnect=True, retry=-1
        ) as relayer:
            serving = asyncio.ensure_future(relayer.serve())
            with await asyncio.to_thread(peers.connect, relayer.port) as client:
                await asyncio.to_thread(peers.eventually, lambda: relayer.waiting_for, "a try")
                threading.Thread(target=relayer.stop).start()
                await serving
                assert await asyncio.to_thread(peers.ends_in_reset, client)

    run(main())


def test_the_kernel_path_is_an_error_of_the_library_too(run: Run) -> None:
    async def main() -> None:
        async with ringmain.relay("tcp://127.0.0.1:0", "tcp://127.0.0.1:1", one_way=True, reconnect=True) as relayer:
            with pytest.raises(errors.UsageError, match="kept in blocks"):
                await relayer.serve("kernel")

    run(main())

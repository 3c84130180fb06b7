"""How a relay's connections end, well or badly, and what that costs the others."""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
from conftest import Certificates, lent_blocks, open_descriptors
from relays import ANSWER, DATA, PATHS, pair, small_client
from streams import drain, echo, exchange, flood, read, server_at

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


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
        assert peers.ends_in_reset(other) or half_closed  # which shows at the next write then
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
            peers.eventually(lambda: not closing & peers.states(there), lambda: f"the reset of {peers.rows_of(there)}")
            assert peers.sha256(peers.read_all(client)) == peers.sha256(ANSWER)
        assert relay.wait() == 55


def test_bad_clients_stop_nothing(bench: peers.Bench, certificates: Certificates) -> None:
    with echo() as there:
        relay, port = bench.relaying(
            f"tcp://127.0.0.1:{there}",
            *("--source-certfile", certificates.server, "--handshake-timeout", "5s"),
            scheme="tcps",
        )
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""):
            with peers.connect(port) as sock:
                sock.sendall(garbage)
                peers.ends_in_reset(sock)
        with peers.connect(port) as sock:
            peers.close_with_reset(sock)
        with peers.connect_tls(port, certificates.ca) as sock:
            assert exchange(sock, DATA) == DATA
        assert relay.stderr.count("\n") == 1 + 3  # one that ends before its first byte is a health check
        assert "Traceback" not in relay.stderr


def test_a_client_is_closed_at_once_when_the_destination_is_down_and_the_next_is_served(bench: peers.Bench) -> None:
    there = peers.free_port()
    relay, port = bench.relaying(f"tcp://127.0.0.1:{there}")
    with contextlib.suppress(ConnectionResetError), peers.connect(port) as sock:  # or before it has connected
        assert peers.ends_in_reset(sock)
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
    relay.says("the client reset the connection before the other side answered")
    with server_at(there) as listener, peers.connect(port) as sock:
        server, _ = listener.accept()
        with server:
            sock.sendall(b"next")
            assert read(server, 4) == b"next"


def test_listen_once_ends_with_the_code_of_a_destination_that_is_down(bench: peers.Bench) -> None:
    relay, port = bench.relaying(f"tcp://127.0.0.1:{peers.free_port()}", "-o")
    with contextlib.suppress(ConnectionResetError), peers.connect(port):  # a client may hear of it while it connects
        relay.wait()
    assert relay.wait() == 7
    assert relay.stderr.count("\n") == 2  # where it listens, and this


@pytest.mark.parametrize("path", PATHS)
def test_one_way_hears_of_a_destination_that_resets_while_nothing_is_sent(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--one-way", "--path", path) as it:
        it.client.sendall(b"x")
        assert read(it.server, 1) == b"x"
        peers.close_with_reset(it.server)
        assert peers.ends_in_reset(it.client)
        assert it.relay.wait() == 55


@pytest.mark.parametrize("path", PATHS)
def test_nothing_moving_for_the_idle_timeout_resets_both(bench: peers.Bench, path: str) -> None:
    with pair(bench, "-o", "--idle-timeout", "3s", "--path", path) as it:
        it.server.sendall(b"x")
        assert read(it.client, 1) == b"x"
        assert peers.ends_in_reset(it.client)
        assert peers.ends_in_reset(it.server)
        assert it.relay.wait() == 28
        assert "nothing moved for 3 s" in it.relay.stderr


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
        assert peers.ends_in_reset(it.server)
        assert state == "blocked" or peers.ends_in_reset(it.client)  # else the flood has heard of it


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
                # The server that echoes closes its own in this process too, in a thread, sooner or later.
                await asyncio.to_thread(
                    peers.eventually,
                    lambda: len(open_descriptors()) <= descriptors,
                    "no more descriptors than after one",
                )
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


def test_a_relay_that_runs_out_of_descriptors_serves_the_next_client(bench: peers.Bench) -> None:
    with echo() as there:
        relay, port = bench.relaying(f"tcp://127.0.0.1:{there}", "--gate", "queue")
        limits = resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, (relay.fd_count() + 1, limits[1]))
        # The reset may be faster than our connect.
        with contextlib.suppress(ConnectionResetError), peers.connect(port) as client:
            assert client.recv(1) == b""
        relay.says("too many open files")
        resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, limits)
        with peers.connect(port) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"

"""A relay that is stopped, cancelled, left or sent a signal: when, how often, and what still arrives."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers
import pytest
from conftest import Certificates
from relays import PATHS
from streams import echo, fill, flood, server_at

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def others() -> set[asyncio.Task[Any]]:
    """Return the tasks of this loop but for those that ran before the test."""
    return {task for task in asyncio.all_tasks() if "main" not in repr(task.get_coro()) and "watched" not in repr(task)}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("times", [1, 2, 3, 10])
def test_a_relay_that_is_cancelled_however_often_ends_when_nothing_uses_its_sockets(
    run: Run, path: str, times: int
) -> None:
    async def main(listener: socket.socket, there: int) -> None:
        async with ringmain.relay("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{there}") as relayer:
            serving = asyncio.ensure_future(relayer.serve(path))
            client = await asyncio.to_thread(peers.connect, relayer.port)
            server, _ = await asyncio.to_thread(listener.accept)
            with client, server:
                await asyncio.to_thread(fill, client, lambda: peers.unread(server) > 0)
                for _ in range(times):
                    serving.cancel()
                    await asyncio.sleep(0)
                with pytest.raises(asyncio.CancelledError):
                    await serving
                assert not others()
                assert await asyncio.to_thread(peers.ends_in_reset, server)

    with server_at() as listener:
        run(main(listener, listener.getsockname()[1]))


STATES = ["before it opens", "idle", "while a client is silent", "while it dials", "while it relays"]


@pytest.mark.parametrize("state", STATES)
def test_a_relay_can_be_stopped_at_any_time(certificates: Certificates, run: Run, state: str) -> None:
    silent = state == "while a client is silent"
    options: dict[str, Any] = {"connect_timeout": None}
    if silent:
        options |= {"source_tls": ringmain.TlsSettings(certfile=str(certificates.server)), "handshake_timeout": None}

    async def main(there: int) -> None:
        relayer = ringmain.relay(f"{'tcps' if silent else 'tcp'}://127.0.0.1:0", f"tcp://127.0.0.1:{there}", **options)
        if state == "before it opens":
            assert not relayer.stop()
        async with relayer:
            serving = asyncio.ensure_future(relayer.serve())
            await asyncio.sleep(0)
            if state not in ("before it opens", "idle"):
                client = await asyncio.to_thread(peers.connect, relayer.port)
                if state == "while it relays":
                    client.sendall(b"x")
                    assert await asyncio.to_thread(client.recv, 1) == b"x"
                elif state == "while it dials":
                    await asyncio.to_thread(peers.eventually, lambda: peers.is_connecting(there), "a connect")
                else:
                    client.sendall(peers.hello())
                    assert await asyncio.to_thread(client.recv, 1)  # and has the rest to read
            if state != "before it opens":
                assert relayer.stop() == (state == "while it relays")
            await serving
            if state not in ("before it opens", "idle"):
                assert await asyncio.to_thread(peers.ends_in_reset, client) or silent  # whose handshake has failed
                client.close()
            with await asyncio.to_thread(peers.connect, relayer.port) as late:
                await relayer.serve()
                assert peers.unread(late) == 0
        assert not others()

    with peers.full_backlog() if state == "while it dials" else echo() as there:
        run(main(there))


@pytest.mark.parametrize("state", ["idle", "while it relays"])
def test_a_relay_that_is_left_while_another_task_serves_is_over(run: Run, state: str) -> None:
    async def main(there: int) -> None:
        async with ringmain.relay("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{there}") as relayer:
            serving = asyncio.ensure_future(relayer.serve())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await relayer.serve()
            if state == "while it relays":
                client = await asyncio.to_thread(peers.connect, relayer.port)
                client.sendall(b"x")
                assert await asyncio.to_thread(client.recv, 1) == b"x"
        await serving
        assert not others()
        if state == "while it relays":
            assert await asyncio.to_thread(peers.ends_in_reset, client)
            client.close()
        with pytest.raises(ringmain.UsageError, match="not open"):
            await relayer.serve()

    with echo() as there:
        run(main(there))


def test_a_relay_can_be_cancelled_at_each_turn_of_the_loop(run: Run) -> None:
    async def attempt(there: int, turns: int) -> bool:
        """Cancel after so many turns; tell whether the client had got through by then."""
        async with ringmain.relay("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{there}") as relayer:
            with socket.socket() as client:
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(("127.0.0.1", relayer.port))
                serving = asyncio.ensure_future(relayer.serve())
                for _ in range(turns):
                    await asyncio.sleep(0)
                relaying = bool(relayer.counters)
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving
                assert not others()
                return relaying

    async def main(there: int) -> None:
        turns = 0
        while not await attempt(there, turns):
            turns += 1
        for more in range(1, 6):
            await attempt(there, turns + more)

    with echo() as there:
        run(main(there))


@pytest.mark.parametrize("path", [*PATHS, "tls"])
@pytest.mark.parametrize("goes_on", [False, True], ids=["", "and the client goes on"])
def test_what_was_acknowledged_when_a_signal_came_arrives_and_then_a_reset(
    bench: peers.Bench, certificates: Certificates, path: str, goes_on: bool
) -> None:
    options = ["--source-certfile", certificates.server] if path == "tls" else ["--path", path]
    data = peers.payload(1 << 20)  # over and over: what the buffers on the way hold is for the kernel to say
    with socket.socket() as listener, ThreadPoolExecutor() as pool:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        destination = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(destination, *options, scheme="tcps" if path == "tls" else "tcp")
        client = peers.connect_tls(port, certificates.ca) if path == "tls" else peers.connect(port)
        server, _ = listener.accept()
        server.settimeout(peers.TIMEOUT)
        with client, server:
            client.settimeout(1.0)  # for as long as it takes bytes
            sent = 0
            with contextlib.suppress(TimeoutError):
                while True:
                    begin = sent % len(data)
                    sent += client.send(data[begin : begin + 65536])
            acknowledged = sent - peers.unacknowledged(client)  # of a TLS stream a little more than that
            relay.signal(signal.SIGTERM)
            end = flood(client) if goes_on and path != "tls" else lambda: None
            got = bytearray()

            def take() -> None:
                with pytest.raises(ConnectionResetError):
                    while True:
                        got.extend(server.recv(1 << 16))

            pool.submit(take).result(peers.TIMEOUT)
            end()
        assert relay.wait() == 143
        assert len(got) >= acknowledged - (sent // 16384 + 1) * 64 * (path == "tls")
        assert goes_on or peers.sha256(bytes(got)) == peers.sha256((data * (sent // len(data) + 1))[: len(got)])


def test_what_goes_to_a_tls_client_when_a_signal_comes_arrives_and_then_a_reset(
    bench: peers.Bench, certificates: Certificates
) -> None:
    data = peers.payload(1 << 20)  # over and over: what the buffers on the way hold is for the kernel to say
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        options = ["--source-certfile", certificates.server]
        relay, port = bench.relaying(f"tcp://127.0.0.1:{listener.getsockname()[1]}", *options, scheme="tcps")
        client = peers.connect_tls(port, certificates.ca)
        server, _ = listener.accept()
        with client, server:
            server.settimeout(1.0)  # for as long as it takes bytes
            sent = 0
            with contextlib.suppress(TimeoutError):
                while True:
                    begin = sent % len(data)
                    sent += server.send(data[begin : begin + 65536])
            acknowledged = sent - peers.unacknowledged(server)
            relay.signal(signal.SIGTERM)
            got = bytearray()
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                while True:
                    got.extend(client.recv(1 << 16))
        assert relay.wait() == 143
        assert len(got) >= acknowledged
        assert peers.sha256(bytes(got)) == peers.sha256((data * (sent // len(data) + 1))[: len(got)])

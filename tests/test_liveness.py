"""A peer that vanishes: the kernel's own keepalive is silent while bytes are under way, and we are not."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Any

import peers
import pytest
from conftest import Certificates
from streams import connection

import ringmain
from ringmain import errors
from ringmain.flow.outflow import Outflow
from ringmain.net.dial import prepare
from ringmain.net.gate import hold_back
from ringmain.net.link import Link
from ringmain.net.readiness import finish
from ringmain.settings import Settings

Run = Callable[[Any], Any]


def probe_often(sock: socket.socket) -> None:
    """Let a peer be lost after two seconds, the least that the kernel counts in."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
        sock.setsockopt(socket.IPPROTO_TCP, option, 1)


def vanish(sock: socket.socket) -> None:
    """Drop whatever comes to a socket, so that it answers nothing, as one whose machine is gone."""
    # What it sent and has not seen acknowledged it would send again and again.
    peers.eventually(lambda: peers.unacknowledged(sock) == 0)
    assert hold_back(sock)


def in_flight(sock: socket.socket) -> int:
    """Return how many segments are not acknowledged."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)[24:28], sys.byteorder)


def fill(sock: socket.socket) -> int:
    """Send, past any TLS, what the kernel takes; return how much that was."""
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += socket.socket.send(sock, bytes(1 << 16))
    return size


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", [6, 8_000_000], ids=["a-few-bytes", "a-full-buffer"])
def test_a_peer_that_vanishes_with_bytes_under_way_is_noticed(
    run: Run, certificates: Certificates, tls: bool, size: int
) -> None:
    options: Any = {"certfile": str(certificates.server)} if tls else {}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(errors.SendError, match="connection timed out"):
            async with ringmain.save(
                f"{'tcps' if tls else 'tcp'}://127.0.0.1:0", listen_once=True, keepalive=1, **options
            ) as saver:
                connect = (lambda: peers.connect_tls(saver.port, certificates.ca)) if tls else None
                visiting = loop.run_in_executor(None, connect or (lambda: peers.connect(saver.port)))
                await saver.wait_for_peer()
                with await visiting as client:
                    vanish(client)
                    async with asyncio.timeout(25):
                        await saver.write(b"x" * size)
                        await saver.end_connection()

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_peer_that_vanishes_while_idle_is_told_of_as_what_it_is(
    run: Run, certificates: Certificates, tls: bool
) -> None:
    options: Any = {"certfile": str(certificates.server)} if tls else {}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(errors.SendError, match="connection timed out"):
            async with ringmain.save(
                f"{'tcps' if tls else 'tcp'}://127.0.0.1:0", listen_once=True, keepalive=1, **options
            ) as saver:
                connect = (lambda: peers.connect_tls(saver.port, certificates.ca)) if tls else None
                visiting = loop.run_in_executor(None, connect or (lambda: peers.connect(saver.port)))
                await saver.wait_for_peer()
                with await visiting as client:
                    await saver.write(b"all of it")
                    assert await asyncio.to_thread(client.recv, 100) == b"all of it"
                    await asyncio.to_thread(peers.eventually, lambda: saver.unacknowledged_bytes == 0)
                    vanish(client)
                    while True:
                        await saver.wait_for_peer()
                        await asyncio.sleep(0.05)

    run(main())


@pytest.mark.parametrize("path", ["auto", "block"])
def test_the_command_line_notices_a_peer_that_vanished_by_every_path(bench: peers.Bench, path: str) -> None:
    saver, port = bench.listening("save", "-o", "--keepalive", "1s", "--path", path, "-I", "/dev/zero")
    with peers.connect(port) as client:
        assert client.recv(1)
        vanish(client)
        assert saver.wait() == 55, saver.stderr
        assert "connection timed out" in saver.stderr


def test_a_reader_that_stalls_and_then_vanishes_is_noticed(run: Run) -> None:
    async def main() -> None:
        with connection() as (peer, ours):
            prepare(ours, Settings(keepalive=1))
            probe_often(ours)
            sender = Outflow(Link(ours, "the peer"))
            sending = asyncio.ensure_future(sender.send(memoryview(bytes(12_000_000))))
            await asyncio.to_thread(peers.eventually, lambda: sender.counters.stalls and not in_flight(ours))
            vanish(peer)
            with pytest.raises(TimeoutError):
                await sending
            sender.close()

    run(main())


def test_a_reader_that_stalls_but_answers_lives_on(run: Run) -> None:
    """For longer than a vanished one is waited for: probes of a closed window are answered."""

    async def main() -> None:
        with connection() as (peer, ours):
            probe_often(ours)
            sender = Outflow(Link(ours, "the peer"))
            data = peers.payload(12_000_000)
            sending = asyncio.ensure_future(sender.send(memoryview(data)))
            done, _ = await asyncio.wait([sending], timeout=5)
            assert not done
            reading = asyncio.ensure_future(asyncio.to_thread(peers.read_all, peer))
            await sending
            await sender.finish()
            sender.close()
            assert peers.sha256(await reading) == peers.sha256(data)

    run(main())


def test_an_idle_connection_may_be_older_than_the_time_for_an_answer(run: Run) -> None:
    async def main() -> None:
        with connection() as (peer, ours):
            probe_often(ours)
            sender = Outflow(Link(ours, "the peer"))
            await asyncio.sleep(2.5)
            await sender.send(memoryview(b"after a while"))
            await sender.finish()
            assert sender.failure is None
            sender.close()
            assert peers.read_all(peer) == b"after a while"

    run(main())


def test_a_peer_that_answers_each_record_lives_on_though_the_newest_is_always_under_way(run: Run) -> None:
    """With records in step with our looks, as those sent on each full second are: each look sees one unanswered."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with connection() as (peer, ours):
            probe_often(ours)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)  # it answers 40 ms later
            done, in_a_row = loop.create_future(), 0

            def send() -> None:
                nonlocal in_a_row
                if sender.failure is not None or in_a_row == 40:  # of twenty looks in the two seconds
                    finish(done)
                    return
                ours.send(b"x")
                in_a_row = in_a_row + 1 if in_flight(ours) else 0
                loop.call_later(0.1, send)

            loop.call_later(0.1, send)
            sender = Outflow(Link(ours, "the peer"))
            await done
            assert sender.failure is None
            sender.close()

    run(main())


def test_a_tls_peer_that_vanishes_is_noticed_while_close_notify_waits(run: Run, certificates: Certificates) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        # The kernel itself gives up after some 45 s.
        url, pem = "tcps://127.0.0.1:0", str(certificates.server)
        with pytest.raises(errors.SendError, match="connection timed out"):
            async with asyncio.timeout(25), ringmain.save(url, listen_once=True, keepalive=3, certfile=pem) as saver:
                visiting = loop.run_in_executor(None, peers.connect_tls, saver.port, certificates.ca)
                await saver.wait_for_peer()
                with await visiting as client:
                    sock = saver._clients.outflows[0].link.sock
                    peers.eventually(lambda: not fill(sock) and not in_flight(sock))  # no room for close_notify
                    vanish(client)
                    await saver.end_connection()

    run(main())

"""A relay that connects again goes on where the lost destination was: the source waits, and nothing is left out."""

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from losing import Losing, check_parts, check_records, drained, numbered
from streams import server_at

import ringmain
from ringmain import settings

Run = Callable[[Any], Any]
LOSSES = 12
pytestmark = pytest.mark.usefixtures("short_pauses")


def relay_to(port: int, tls: ssl.SSLContext | None, certificates: Certificates, **options: Any) -> ringmain.Relayer:
    """Return a relay that listens, and goes on after losses."""
    scheme, cafile = ("tcp", None) if tls is None else ("tcps", str(certificates.ca))
    return ringmain.relay(
        "tcp://127.0.0.1:0",
        f"{scheme}://127.0.0.1:{port}",
        destination_tls=ringmain.TlsSettings(cafile=cafile),
        one_way=True,
        reconnect=True,
        **options,
    )


@contextlib.asynccontextmanager
async def serving(relayer: ringmain.Relayer) -> AsyncIterator[list[Any]]:
    """Serve meanwhile; yield a list of what has become of each passage."""
    outcomes: list[Any] = []
    relayer.on_end = outcomes.append
    async with relayer:
        task = asyncio.ensure_future(relayer.serve())
        yield outcomes
        relayer.stop()
        await task


async def until(condition: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(peers.eventually, condition, what)


def send(port: int, data: bytes, seed: int = 1) -> bool:
    """Send all, in parts of many sizes; tell whether that was ended properly, and not reset."""
    rng, begin = random.Random(seed), 0
    with peers.connect(port) as sock:
        while begin < len(data):
            size = rng.choice([10, 1000, 15_000, 100_000, 400_000])
            sock.sendall(data[begin : begin + size])
            begin += size
        sock.shutdown(socket.SHUT_WR)
        return not peers.ends_in_reset(sock)


def through_losses(
    run: Run, data: bytes, tls: ssl.SSLContext | None, certificates: Certificates, seed: int, **options: Any
) -> list[bytes]:
    """Return what each connection of a destination that is lost again and again got of what one client sends."""
    receiver = Losing(LOSSES, seed, tls)
    relayer = relay_to(receiver.port, tls, certificates, **options)
    ends: list[Any] = []

    async def main() -> None:
        async with serving(relayer) as outcomes:
            assert await asyncio.to_thread(send, relayer.port, data, seed)
            await until(lambda: outcomes, "the end of it")
            assert relayer.waiting_for == []
            ends.extend(outcomes)

    try:
        run(main())
    finally:
        receiver.wait()
    assert receiver.ended_properly
    assert [(it.verdict, it.source.size) for it in ends] == [("ended", len(data))]
    assert ends[0].reconnects >= len(receiver.streams) - 1 > 0
    return receiver.streams


def test_each_connection_begins_at_or_before_where_the_last_one_ended(
    run: Run, context: ssl.SSLContext | None, certificates: Certificates
) -> None:
    data = peers.payload(8_000_000)
    check_parts(through_losses(run, data, context, certificates, 1), data)


def test_with_a_delimiter_each_connection_begins_with_a_whole_record_and_all_come(
    run: Run, context: ssl.SSLContext | None, certificates: Certificates
) -> None:
    records = numbered(10_000, 3)
    data = b"".join(it + b"\r\n" for it in records)
    streams = through_losses(run, data, context, certificates, 3, delimiter=b"\r\n")
    check_records(streams, records, b"\r\n")


def test_many_clients_outlive_the_losses_of_their_destinations(run: Run, certificates: Certificates) -> None:
    """Each client's records come whole and in order over as many connections as are lost."""
    count, each = 8, 2000
    streams: list[list[bytes]] = [[] for _ in range(count)]  # of each client

    def take(sock: socket.socket, rng: random.Random) -> None:
        whose = sock.recv(1, socket.MSG_PEEK)
        if not whose:  # lost again before it had a byte, or nothing was left to say
            sock.close()
            return
        got = streams[whose[0] - ord("a")]
        got.append(b"")
        if len(got) > 10:
            got[-1] = peers.read_all(sock)
        else:
            got[-1] = sock.recv(rng.randrange(1, 40_000), socket.MSG_WAITALL)
            got[-1] += drained(sock)
            peers.close_with_reset(sock)
        sock.close()

    def accept(listener: socket.socket) -> None:
        rng = random.Random(5)
        with ThreadPoolExecutor(2 * count) as executor:
            taking = []
            with contextlib.suppress(OSError):  # until it is closed
                while True:
                    sock, _ = listener.accept()
                    sock.settimeout(peers.TIMEOUT)
                    taking.append(executor.submit(take, sock, random.Random(rng.random())))
        for it in taking:
            it.result()

    def record(client: int, number: int) -> bytes:
        return b"%c%d:%s\n" % (ord("a") + client, number, b"x" * (number % 700))

    def feed(port: int, client: int) -> bool:
        return send(port, b"".join(record(client, number) for number in range(each)), client)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        # Not the loop's own threads, which look up names.
        with server_at() as listener, ThreadPoolExecutor(count + 1) as executor:
            listener.settimeout(None)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # or one connection might have all
            accepting = loop.run_in_executor(executor, accept, listener)
            try:
                relayer = relay_to(
                    listener.getsockname()[1], None, certificates, max_connections=count, delimiter=b"\n"
                )
                async with serving(relayer) as outcomes:
                    feeding = [loop.run_in_executor(executor, feed, relayer.port, it) for it in range(count)]
                    assert all(await asyncio.gather(*feeding))
                    await until(lambda: len(outcomes) == count, "the end of all")
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                await accepting

    run(main())
    for client, got in enumerate(streams):
        following = 0
        for stream in got:
            *whole, rest = stream.split(b"\n")
            first = int(whole[0].partition(b":")[0][1:]) if whole else following
            assert first <= following
            assert [it + b"\n" for it in whole] == [record(client, first + it) for it in range(len(whole))]
            following = max(following, first + len(whole))
            assert not rest or record(client, first + len(whole)).startswith(rest)
        assert following == each
        assert len(got) > 2


def test_a_silent_source_keeps_nothing_from_a_new_connection(run: Run, certificates: Certificates) -> None:
    data = peers.payload(20_000)

    async def main() -> None:
        with server_at() as listener:
            relayer = relay_to(listener.getsockname()[1], None, certificates, idle_timeout=3)
            async with serving(relayer):
                with await asyncio.to_thread(peers.connect, relayer.port) as client:
                    client.sendall(data)
                    sock, _ = await asyncio.to_thread(listener.accept)
                    await until(lambda: relayer.taken == [len(data)], "that all was acknowledged")
                    peers.close_with_reset(sock)  # with all of it unread: the kernel had it
                    client.sendall(b"more")
                    sock, _ = await asyncio.to_thread(listener.accept)
                    await asyncio.to_thread(sock.recv, 4, socket.MSG_PEEK | socket.MSG_WAITALL)
                    sock.close()  # with four bytes unread, which resets it
                    sock, _ = await asyncio.to_thread(listener.accept)  # although the client says nothing
                    with sock:
                        client.shutdown(socket.SHUT_WR)
                        assert await asyncio.to_thread(peers.read_all, sock) in (b"", b"more")

    run(main())


def test_a_destination_that_stands_still_is_lost_also_while_the_source_is_silent(
    run: Run, certificates: Certificates
) -> None:
    data = peers.payload(300_000)

    async def main() -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.settimeout(peers.TIMEOUT)
            relayer = relay_to(listener.getsockname()[1], None, certificates, idle_timeout=1)
            async with serving(relayer) as outcomes:
                with await asyncio.to_thread(peers.connect, relayer.port) as client:
                    client.sendall(data)
                    standing, _ = await asyncio.to_thread(listener.accept)  # and reads nothing
                    sock, _ = await asyncio.to_thread(listener.accept)
                    with standing, sock:
                        sock.settimeout(peers.TIMEOUT)
                        client.shutdown(socket.SHUT_WR)
                        rest = await asyncio.to_thread(peers.read_all, sock)
                        check_parts([await asyncio.to_thread(drained, standing), rest], data)
                        await until(lambda: outcomes, "the end of it")
                        assert (outcomes[0].verdict, outcomes[0].reconnects) == ("ended", 1)

    run(main())


def test_the_source_waits_while_nobody_is_there_and_little_is_kept(run: Run, certificates: Certificates) -> None:
    """What is kept is a ring and what our kernel may hold for one connection; the source is not blamed for it."""
    most_of_kernel = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
    data = peers.payload(60_000_000)
    port = peers.free_port()

    def listen() -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        listener.settimeout(peers.TIMEOUT)
        return listener

    async def main() -> None:
        listener = listen()
        relayer = relay_to(port, None, certificates, idle_timeout=3)
        async with serving(relayer) as outcomes:
            sending = asyncio.ensure_future(asyncio.to_thread(send, relayer.port, data))
            sock, _ = await asyncio.to_thread(listener.accept)
            listener.close()
            head = await asyncio.to_thread(sock.recv, 1_000_000, socket.MSG_WAITALL)
            head += await asyncio.to_thread(drained, sock)
            peers.close_with_reset(sock)
            await until(lambda: relayer.waiting_for, "a loss")
            await until(lambda: relayer.fullness == 1, "a full ring")
            await asyncio.sleep(3.5)  # longer than anybody may stand still
            (counters,) = relayer.counters
            assert counters.bytes_in - relayer.taken[0] <= settings.RING_SIZE + most_of_kernel + (1 << 20)
            assert not outcomes
            assert relayer.waiting_for[0][0] == f"127.0.0.1:{port}"
            with listen() as listener, (await asyncio.to_thread(listener.accept))[0] as sock:
                rest = await asyncio.to_thread(peers.read_all, sock)
            assert await sending
            check_parts([head, rest], data)

    run(main())

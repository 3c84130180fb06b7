"""Many clients at once, one of them quiet, or very many one after another: nobody is forgotten, and nothing is left.

With `RINGMAIN_STORM` set, as for the storm, there are 10,000 of the latter.
"""

import asyncio
import contextlib
import gc
import os
import select
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import peers
import pytest
from merging import Sockets, merger, until

import ringmain
from ringmain._counters import Counters
from ringmain._ring import Ring
from ringmain.flow.inflow import Inflow
from ringmain.net.link import Link

Run = Callable[[Coroutine[Any, Any, Any]], Any]
FLOODS = 255


@contextlib.contextmanager
def flooding(socks: list[socket.socket]) -> Iterator[None]:
    """Send without end on all of them, from one thread."""
    over, data = threading.Event(), (b"x" * 999 + b"\n") * 100
    places = {sock.fileno(): 0 for sock in socks}
    by_fd = {sock.fileno(): sock for sock in socks}

    def send() -> None:
        with select.epoll() as poll:
            for fd in by_fd:
                poll.register(fd, select.EPOLLOUT)
            while not over.is_set():
                for fd, _ in poll.poll(0.05):
                    with contextlib.suppress(BlockingIOError):
                        places[fd] = (places[fd] + by_fd[fd].send(data[places[fd] :])) % len(data)

    for sock in socks:
        sock.setblocking(False)
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(peers.TIMEOUT)


def test_a_quiet_peer_beside_255_floods_waits_for_two_rounds_at_most(run: Run) -> None:
    async def main() -> None:
        merging = merger(Ring(1 << 20, 1 << 18))
        with Sockets() as sockets:
            floods = [sockets.connect() for _ in range(FLOODS)]
            quiet_peer, link = sockets.connect()
            members = [merging.add(it, Counters()) for _, it in floods]
            quiet = merging.add(link, Counters())
            with flooding([peer for peer, _ in floods]):
                for number in range(5):
                    await until(lambda: merging.paused)
                    quiet_peer.sendall(b"quiet\n")
                    await until(lambda: link.unread() > 0 or quiet.counters.bytes_in > 6 * number)  # noqa: B023
                    before, blocks = [it.counters.reads for it in members], 0
                    while True:
                        if (block := merging.take()) is None:
                            await merging.wait()
                            continue
                        blocks += 1
                        with block:
                            if b"quiet\n" in bytes(block):
                                break
                        await asyncio.sleep(0)
                    # What was left of a round, and the next one; the last read of each round may be the first of ours.
                    assert max(it.counters.reads - past for it, past in zip(members, before, strict=True)) <= 3
                    assert blocks <= 4 + 3 * FLOODS
            for member in [*members, quiet]:
                member.stop()
        merging.close()

    run(main())


@pytest.mark.parametrize("merged", [True, False])
def test_thousands_of_short_connections_are_all_served_and_leave_nothing(run: Run, merged: bool) -> None:
    at_once, each = 200, 50 if "RINGMAIN_STORM" in os.environ else 8

    async def main() -> None:
        got, ends = bytearray(), []

        async def client(number: int) -> None:
            loop = asyncio.get_running_loop()
            for turn in range(each):
                with socket.socket() as sock:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, ("127.0.0.1", loader.port))
                    await loop.sock_sendall(sock, b"%d %d\n" % (number, turn))
                    sock.shutdown(socket.SHUT_WR)
                    assert await loop.sock_recv(sock, 1) == b""

        async def read(stream: ringmain.Stream) -> None:
            async for block in stream:
                got.extend(block)

        async def take() -> None:
            if merged:
                async for block in loader:
                    got.extend(block)
                return
            async with asyncio.TaskGroup() as group:
                async for stream in loader.connections():
                    group.create_task(read(stream))

        def things() -> int:
            gc.collect()
            return sum(isinstance(it, Link | Inflow | Ring | Counters | ringmain.Stream) for it in gc.get_objects())

        options: dict[str, Any] = {"gate": "queue", "ring_size": 1 << 16, "block_size": 1 << 14, "max_record": 100}
        async with ringmain.load("127.0.0.1:0", max_connections=at_once // 2, **options) as loader:
            loader.on_end = lambda outcome: ends.append((outcome.verdict, outcome.size))
            taking = asyncio.ensure_future(take())
            before = things()
            for number in range(each):  # one after another
                await client(number)
            await asyncio.gather(*(client(each + number) for number in range(at_once - each)))
            while len(ends) < at_once * each:  # noqa: ASYNC110 - the peer hears of an end before we tell of it
                await asyncio.sleep(0.001)
            after, tasks = things(), len(asyncio.all_tasks())
            loader.stop()
            await taking
        assert after <= before + 5
        assert tasks <= 5
        wanted = {b"%d %d" % (number, turn) for number in range(at_once) for turn in range(each)}
        assert set(bytes(got).split(b"\n")) == wanted | {b""}
        assert len(ends) == at_once * each
        assert {verdict for verdict, _ in ends} == {"ended"}

    run(main())

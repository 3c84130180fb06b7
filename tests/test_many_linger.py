"""Records of many clients wait for others until a block is half full, for `linger` at most: what a consumer sees.

A linger of an hour lasts as long as any test: what comes in spite of it did not wait for that.
"""

import asyncio
import signal
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
from framed import KINDS, cut, framed

import ringmain
from ringmain.outcome import Outcome

Run = Callable[[Coroutine[Any, Any, Any]], Any]
HOUR: Any = {"max_connections": 3, "linger": 3600.0}


async def arrived(loader: ringmain.Loader, size: int) -> None:
    """Return once so many bytes of those who are there have been received."""
    while loader.counters is None or loader.counters.bytes_in < size:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.001)


async def held_back(loader: ringmain.Loader) -> None:
    """Be sure that there is nothing to take, though something has come."""
    waiting = asyncio.ensure_future(anext(loader))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])


def test_a_block_is_half_full_however_small_the_writes_are(run: Run) -> None:
    block_size, lines, clients = 1 << 16, 2000, 3
    line = b"x" * 99 + b"\n"

    async def send(port: int) -> None:
        async with ringmain.save(f"127.0.0.1:{port}") as saver:
            for _ in range(lines):
                await saver.write(line)
                await asyncio.sleep(0)

    async def main() -> list[int]:
        sizes: list[int] = []
        async with ringmain.load("127.0.0.1:0", block_size=block_size, **HOUR) as loader, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(send(loader.port))
            async for block in loader:
                sizes.append(len(block))
                if sum(sizes) == clients * lines * len(line):
                    break
        return sizes

    sizes = run(main())
    # But for the first one, those that an end lets go, and the rest of the same block.
    assert sum(size < block_size // 2 for size in sizes) <= 2 * (1 + clients)


def test_stop_hands_out_what_waits_and_ends(run: Run) -> None:
    async def main() -> bytes:
        async with ringmain.load("127.0.0.1:0", **HOUR) as loader:
            with peers.connect(loader.port) as one, peers.connect(loader.port) as other:
                one.sendall(b"lone\n")
                assert bytes(await anext(loader)) == b"lone\n"
                other.sendall(b"waits\nrest")
                await arrived(loader, 15)
                await held_back(loader)
                assert loader.stop()
                return b"".join([bytes(block) async for block in loader])

    assert run(main()) == b"waits\n"


@pytest.mark.parametrize("leave", ["normally", "by an exception"])
def test_what_waits_when_a_loader_is_left_is_forgotten(run: Run, leave: str) -> None:
    async def main() -> None:
        with pytest.raises(LookupError):
            async with ringmain.load("127.0.0.1:0", **HOUR) as loader:
                with peers.connect(loader.port) as sock:
                    sock.sendall(b"lone\n")
                    assert bytes(await anext(loader)) == b"lone\n"
                    sock.sendall(b"waits\n")
                    await arrived(loader, 11)
                    await held_back(loader)
                    if leave != "normally":
                        raise LookupError
            raise LookupError

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_whole_frames_of_each_client_come_once_and_in_order(run: Run, kind: str) -> None:
    contents = [[b"%d of %d" % (index, number) for index in range(3000)] for number in range(3)]
    sent = [b"".join(framed(kind, it) for it in of_one) for of_one in contents]

    async def main() -> dict[str, bytes]:
        got: dict[str, bytes] = {}
        ended = 0

        def count(_: Outcome) -> None:
            nonlocal ended
            ended += 1
            if ended == len(sent):
                loader.stop()

        async with ringmain.load("127.0.0.1:0", framing=kind, block_size=1 << 14, **HOUR) as loader:
            loader.on_end = count
            threads = [peers.send_in_thread(loader.port, data) for data in sent]
            async for peer, block in loader.tagged():
                data = bytes(block)
                assert b"".join(map(bytes, cut(kind, data).frames)) == data
                got[peer] = got.get(peer, b"") + data
            for thread in threads:
                thread.join()
        return got

    assert sorted(run(main()).values()) == sorted(sent)


def test_single_records_come_of_blocks_that_were_waited_for(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
            records = loader.records()
            with peers.connect(loader.port) as sock:
                for number in range(100):
                    sock.sendall(b"%d\nagain\n" % number)
                    assert bytes(await anext(records)) == b"%d" % number
                    assert bytes(await anext(records)) == b"again"

    run(main())


@pytest.mark.parametrize("linger", ["1ms", "0"])
def test_an_interactive_client_of_the_command_is_heard_line_by_line(bench: peers.Bench, linger: str) -> None:
    options = ("--max-connections", 2, "--linger", linger)
    loader, port = bench.listening("load", *options, stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    with peers.connect(port) as one, peers.connect(port) as other:
        for number in range(50):
            for sock in (one, other):
                sock.sendall(b"%d\n" % number)
                assert loader.process.stdout.readline() == b"%d\n" % number
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143

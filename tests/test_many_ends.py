"""What is told of the ends of many clients, and who hears what goes wrong with that."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers
import pytest
import witness

import ringmain
from ringmain.flow.inflow import Inflow
from ringmain.net import reception

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Failing:
    """Fails whenever it is told of a connection."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def __call__(self, outcome: Any) -> None:
        self.heard.append(outcome.size)
        raise LookupError(f"no room for {outcome.size} bytes")


def a_client(port: int, data: bytes) -> None:
    with peers.connect(port) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        peers.read_all(sock)


@pytest.mark.parametrize("tagged", [False, True])
def test_what_on_end_raises_comes_from_the_iteration_which_goes_on_and_loses_nothing(run: Run, tagged: bool) -> None:
    async def main() -> None:
        failing, got = Failing(), b""
        async with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
            loader.on_end = failing
            items: Any = loader.tagged() if tagged else loader
            for number in range(3):
                waiting = asyncio.ensure_future(anext(items))
                leaving = asyncio.create_task(asyncio.to_thread(a_client, loader.port, b"x" * number + b"\n"))
                with pytest.raises(LookupError, match=f"no room for {number + 1} bytes"):
                    while True:
                        item = await waiting
                        got += item[1] if tagged else item
                        waiting = asyncio.ensure_future(anext(items))
                await leaving
            loader.stop()
            assert await anext(items, None) is None
        assert (failing.heard, got) == ([1, 2, 3], b"\nx\nxx\n")

    run(main())


def test_what_on_end_has_raised_while_nobody_took_anything_comes_from_leaving_at_the_latest(run: Run) -> None:
    async def main() -> None:
        failing = Failing()
        with pytest.raises(LookupError, match="no room for 3 bytes"):
            async with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
                loader.on_end = failing
                waiting = asyncio.ensure_future(anext(loader))
                leaving = asyncio.create_task(asyncio.to_thread(a_client, loader.port, b"ab\n"))
                assert bytes(await waiting) == b"ab\n"
                await leaving
                while not failing.heard:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        assert loader.addresses == []

    run(main())


def test_on_end_that_fails_for_a_client_that_cannot_be_watched_keeps_nobody_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_into, calls = Inflow.merge_into, []

    def fail_once(self: Inflow, *arguments: Any) -> None:
        calls.append(None)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        merge_into(self, *arguments)

    monkeypatch.setattr(Inflow, "merge_into", fail_once)

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
            loader.on_end = Failing()
            waiting = asyncio.ensure_future(anext(loader))
            with peers.connect(loader.port), pytest.raises(LookupError):
                await waiting
            waiting = asyncio.ensure_future(anext(loader))
            with peers.connect(loader.port) as lucky:
                lucky.sendall(b"served\n")
                assert bytes(await waiting) == b"served\n"
                loader.on_end = None

    run(main())


def test_what_fails_at_the_door_and_is_nobodys_fault_is_told_once_and_the_next_client_is_served(
    run: Run, monkeypatch: pytest.MonkeyPatch, tls_net: Any
) -> None:
    shake_hands, calls = reception.shake_hands, []

    async def fail_once(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise LookupError("no memory, say")
        return await shake_hands(*arguments, **options)

    monkeypatch.setattr(reception, "shake_hands", fail_once)

    async def main() -> None:
        async with ringmain.load(tls_net.url(), max_connections=2, **tls_net.listening) as loader:
            waiting = asyncio.ensure_future(anext(loader))
            with peers.connect(loader.port) as unlucky, pytest.raises(LookupError):
                unlucky.sendall(b"\x16\x03")  # what a handshake begins with: before that there is none
                await waiting
            waiting = asyncio.ensure_future(anext(loader))
            lucky = await witness.connect(loader.port, tls_net.client())
            await lucky.shake_hands()
            await lucky.send(b"served\n")
            assert bytes(await waiting) == b"served\n"
            lucky.sock.close()

    run(main())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_once_all_have_left_still_writes_what_they_brought(bench: peers.Bench, processes: int) -> None:
    """They were told of a proper end, so that their records are ours to keep; the reader of our output is slow."""
    outputs = [bench.folder / f"output-{number + 1}" for number in range(processes)]
    for path in outputs:
        os.mkfifo(path)
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in outputs]  # or it waits until there is a writer
    several = ["--processes", processes] if processes > 1 else []
    output = bench.folder / "output-{process}" if several else outputs[0]
    loader, port = bench.listening("load", "--max-connections", 8, *several, "--output", output)
    records = b"".join(b"%07d\n" % number for number in range(100_000))

    def send() -> None:
        with peers.connect(port) as sock:
            sock.sendall(records)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""

    with ThreadPoolExecutor(4) as pool:
        for sent in [pool.submit(send) for _ in range(4)]:
            sent.result(peers.TIMEOUT)
    loader.signal(signal.SIGTERM)
    got = b""
    for fd in readers:
        os.set_blocking(fd, True)
        with os.fdopen(fd, "rb") as pipe:
            got += pipe.read()
    assert loader.wait() == 143, loader.stderr
    assert sorted(got.splitlines(keepends=True)) == sorted(4 * records.splitlines(keepends=True))

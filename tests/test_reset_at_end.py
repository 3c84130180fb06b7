"""A peer that resets around our end: before it, the end has reached nobody; once it is acknowledged, all has.

What a kernel has acknowledged, and its program never read, no TCP sender can know of.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import peers
import pytest
from streams import server_at

import ringmain
from ringmain.net import queues
from ringmain.net.link import Link
from ringmain.outcome import Outcome

Run = Callable[[Any], Any]
LINE = b"a line\n"


@asynccontextmanager
async def saving(listener: socket.socket, **options: Any) -> AsyncIterator[tuple[ringmain.Saver, list[Outcome]]]:
    outcomes: list[Outcome] = []
    saver = ringmain.save(f"tcp://127.0.0.1:{listener.getsockname()[1]}", **options)
    saver.on_end = outcomes.append
    async with saver:
        yield saver, outcomes


async def take_all(saver: ringmain.Saver, sock: socket.socket) -> None:
    """Return once the peer has read a line, and we know it."""
    await saver.write(LINE)
    assert await asyncio.to_thread(sock.recv, len(LINE), socket.MSG_WAITALL) == LINE
    while saver.unacknowledged_bytes:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def reset(sock: socket.socket, link: Link) -> None:
    """Reset it, and return once our kernel knows."""
    peers.close_with_reset(sock)
    while not queues.is_gone(link.sock):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def link_of(saver: ringmain.Saver) -> Link:
    (outflow,) = saver._clients.outflows
    return outflow.link


def test_a_reset_before_the_end_is_an_error(run: Run) -> None:
    async def main() -> None:
        with server_at() as listener:
            with pytest.raises(ringmain.SendError, match="reset"):
                async with saving(listener) as (saver, outcomes):
                    sock, _ = listener.accept()
                    await take_all(saver, sock)
                    await reset(sock, link_of(saver))
            assert [it.verdict for it in outcomes] == ["reset"]

    run(main())


def test_a_reset_before_the_end_has_the_end_go_to_another_connection(run: Run) -> None:
    async def main() -> None:
        with server_at() as listener:
            async with saving(listener, reconnect=True) as (saver, outcomes):
                sock, _ = listener.accept()
                await take_all(saver, sock)
                await reset(sock, link_of(saver))
                closing = asyncio.ensure_future(saver.aclose())
                second, _ = await asyncio.to_thread(listener.accept)
                with second:
                    assert await asyncio.to_thread(peers.read_all, second) == b""
                await closing
            assert [it.verdict for it in outcomes] == ["reset", "ended"]

    run(main())


@pytest.mark.parametrize("reconnect", [False, True])
def test_a_reset_after_the_end_was_acknowledged_takes_nothing_back(
    run: Run, monkeypatch: pytest.MonkeyPatch, reconnect: bool
) -> None:
    drain = Link.drain
    accepted: list[socket.socket] = []

    async def reset_and_drain(link: Link) -> None:
        while link.unacknowledged():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await reset(accepted.pop(), link)
        await drain(link)

    async def main() -> None:
        with server_at() as listener:
            async with saving(listener, reconnect=reconnect) as (saver, outcomes):
                accepted.append(listener.accept()[0])
                await saver.write(LINE)  # which nobody reads
                monkeypatch.setattr(Link, "drain", reset_and_drain)
            assert [it.verdict for it in outcomes] == ["ended"]
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()

    run(main())

"""The end of a connection that others read from."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
from streams import connection, read

from ringmain.flow.outflow import Outflow
from ringmain.net.link import Link

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_an_acknowledgement_between_two_looks_at_a_socket_is_no_reset(run: Run) -> None:
    async def main() -> None:
        with connection() as (peer, ours):
            link = Link(ours, "the peer")
            sender = Outflow(link, duplex=True)
            size = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    size += ours.send(bytes(1 << 16))
            peer.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(read, ours, 1)
            link.read_to_end()
            await sender.end()
            look, looks = link.unacknowledged, 0

            def look_too_early() -> int | None:
                nonlocal looks
                looks += 1
                left = look()
                if looks == 1:
                    assert len(peers.read_all(peer)) == size
                    peers.eventually(lambda: look() == 0)
                return left

            link.unacknowledged = look_too_early  # type: ignore[method-assign]
            await link.drain()
            assert looks > 1
            sender.close()

    run(main())


def test_a_reset_while_others_read_is_heard_of_by_a_drain(run: Run) -> None:
    async def main() -> None:
        with connection() as (peer, ours):
            link = Link(ours, "the peer")
            sender = Outflow(link, duplex=True)
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 16))
            peers.close_with_reset(peer)
            with pytest.raises(ConnectionResetError):
                await link.drain()
            sender.close()

    run(main())

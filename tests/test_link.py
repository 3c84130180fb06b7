"""A link: who waits for its socket, and what is inside an `ssl.SSLSocket`."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import peers
from streams import connection

from ringmain._tls import bound
from ringmain.net.link import Link

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_any_number_may_wait_until_a_socket_takes_bytes_and_a_closed_one_calls_nobody(run: Run) -> None:
    async def main() -> None:
        with connection() as (peer, ours):
            link, called = Link(ours, "the peer"), asyncio.Event()
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 16))
            link.when_writable(called.set)
            gave_up = asyncio.ensure_future(link.until_writable())
            await asyncio.sleep(0)
            gave_up.cancel()  # which takes nothing from the other
            await asyncio.wait([gave_up])
            waiting = asyncio.ensure_future(link.until_writable())
            await asyncio.sleep(0.01)
            assert not called.is_set()
            assert not waiting.done()
            peer.settimeout(peers.TIMEOUT)
            reading = asyncio.ensure_future(asyncio.to_thread(lambda: peers.read_all(peer)))
            await called.wait()
            await waiting
            link.when_writable(called.clear)
            link.close()
            await reading
            assert called.is_set()

    run(main())


def test_nothing_is_read_inside_what_is_not_exactly_an_ssl_socket_of_python() -> None:
    class Foreign:
        """Something of another type, whose memory is anything."""

        @property
        def context(self) -> Any:
            raise AssertionError("it was taken for one of Python's")

    bound(cast(Any, SimpleNamespace(_sslobj=Foreign(), fileno=lambda: -1)))

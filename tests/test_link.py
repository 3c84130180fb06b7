"""A link: who waits for its socket, and what is inside an `ssl.SSLSocket`."""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import peers
import pytest
from conftest import Certificates
from streams import connection, server_at

from ringmain._ring import Ring
from ringmain._tls import bound
from ringmain.endpoint import Endpoint
from ringmain.errors import ReceiveError
from ringmain.flow.inflow import Flow, Inflow
from ringmain.flow.outflow import Outflow
from ringmain.net.dial import dial
from ringmain.net.link import Link
from ringmain.net.readiness import until_gone
from ringmain.outcome import Verdict
from ringmain.settings import Settings

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


@pytest.mark.parametrize("told", ["by close_notify", "by a write", "to who reads"])
def test_a_reset_that_who_sends_was_told_of_is_no_truncation_to_who_reads(
    run: Run, certificates: Certificates, told: str
) -> None:
    async def main() -> tuple[Verdict | None, type[BaseException] | None]:
        with server_at() as listener:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificates.server)
            dialling = dial(
                Endpoint("localhost", str(listener.getsockname()[1])),
                Settings(cafile=str(certificates.ca), family=4),
                ssl.create_default_context(cafile=str(certificates.ca)),
            )
            serving = asyncio.ensure_future(
                asyncio.to_thread(lambda: context.wrap_socket(listener.accept()[0], server_side=True))
            )
            link = await dialling
            peers.close_with_reset(await serving)
            await asyncio.to_thread(peers.eventually, link.was_reset, "the reset")
            outflow = Outflow(link, duplex=True)
            if told == "by close_notify":
                await link.half_close()
            elif told == "by a write":
                with pytest.raises(OSError, match="reset"):
                    await outflow.send(memoryview(b"x"))
            inflow = Inflow(link, Flow(Ring(1 << 16, 1 << 14), 0.0, 1, copy=False), None)
            assert await inflow.next_block() is None
            error = inflow.failure()
            inflow.close()
            return inflow.verdict, error and type(error)

    assert run(main()) == (Verdict.RESET, ReceiveError)


def test_nothing_is_read_inside_what_is_not_exactly_an_ssl_socket_of_python() -> None:
    class Foreign:
        """Something of another type, whose memory is anything."""

        @property
        def context(self) -> Any:
            raise AssertionError("it was taken for one of Python's")

    bound(cast(Any, SimpleNamespace(_sslobj=Foreign(), fileno=lambda: -1)))


@pytest.mark.parametrize("fails", ["epoll", "register", "add_reader"])
def test_a_hang_up_that_cannot_be_watched_is_left_to_the_next_write(
    run: Run, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """As beyond epoll(7)'s max_user_watches."""

    class Epoll:
        def __init__(self) -> None:
            if fails == "epoll":
                raise OSError(errno.EMFILE, "")
            self._file = socket.socket()

        def register(self, *_: object) -> None:
            if fails == "register":
                raise OSError(errno.ENOSPC, "")

        def fileno(self) -> int:
            return self._file.fileno()

        def close(self) -> None:
            self._file.close()

    async def main() -> None:
        with connection() as (peer, ours):
            link = Link(ours, "the peer")
            with monkeypatch.context() as patch:
                patch.setattr("ringmain.net.watched.select", SimpleNamespace(epoll=Epoll))
                if fails == "add_reader":
                    patch.setattr(link, "loop", Forgetful(link.loop))
                link.read_to_end()
            peers.close_with_reset(peer)
            with pytest.raises(OSError, match="reset"):
                await Outflow(link, duplex=True).send(memoryview(b"x"))
            link.close()

    class Forgetful:
        def __init__(self, loop: Any) -> None:
            self.remove_reader = loop.remove_reader

        def add_reader(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "")

    run(main())


@pytest.mark.parametrize("fails", ["epoll", "register"])
def test_until_gone_never_returns_where_it_cannot_watch(run: Run, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    class Epoll(contextlib.nullcontext[Any]):
        def __init__(self) -> None:
            if fails == "epoll":
                raise OSError(errno.EMFILE, "")
            super().__init__(self)

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "")

    async def main() -> None:
        monkeypatch.setattr("ringmain.net.readiness.select", SimpleNamespace(epoll=Epoll))
        waiting = asyncio.ensure_future(until_gone(0))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])

    run(main())

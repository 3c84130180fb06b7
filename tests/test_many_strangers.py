"""Many clients at once, some of them strangers: nobody waits for one, and none reaches what is another's."""

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
import witness
from conforming import Net
from conftest import Certificates

import ringmain
from ringmain.flow.inflow import Inflow
from ringmain.net import reception
from ringmain.net.arrivals import MOST_AT_ONCE

Run = Callable[..., Any]


@pytest.mark.parametrize("delimiter", [b"\n\n", b"xx", b"aba"])
def test_a_part_of_a_delimiter_at_the_end_of_one_client_is_no_part_of_the_next(run: Run, delimiter: bytes) -> None:
    async def main() -> bytes:
        got = b""
        async with ringmain.load("127.0.0.1:0", max_connections=2, delimiter=delimiter) as loader:
            waiting = asyncio.ensure_future(anext(loader))
            with peers.connect(loader.port) as first:
                first.sendall(b"first" + delimiter[:1])
            got += await waiting
            with peers.connect(loader.port) as second:
                second.sendall(b"second" + delimiter)
                return got + bytes(await anext(loader))

    got = run(main())
    assert got.split(delimiter) in ([b"first", b"second", b""], [b"first" + delimiter[:1], b"second", b""])


def test_a_client_that_cannot_be_watched_stops_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    merge_into, calls = Inflow.merge_into, []

    def fail_once(self: Inflow, *arguments: Any) -> None:
        calls.append(self)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        merge_into(self, *arguments)

    monkeypatch.setattr(Inflow, "merge_into", fail_once)

    async def main() -> bytes:
        async with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
            waiting = asyncio.ensure_future(anext(loader))
            with peers.connect(loader.port) as unlucky:
                await asyncio.to_thread(peers.until_reset, unlucky)
                with peers.connect(loader.port) as lucky:
                    lucky.sendall(b"served\n")
                    got = bytes(await waiting)
            loader.stop()
            assert await anext(loader, None) is None
        return got

    assert run(main()) == b"served\n"
    assert "cannot be served: no space left on device" in caplog.text
    calls.clear()


def test_who_is_reset_before_its_turn_does_not_count_as_a_proper_end(run: Run) -> None:
    ended: list[str] = []
    came: list[str] = []

    def connect(port: int) -> socket.socket:
        sock = peers.connect(port)
        came.append("{}:{}".format(*sock.getsockname()))
        return sock

    async def main() -> list[bytes]:
        loader = ringmain.load("127.0.0.1:0", listen_once=True, gate="queue")
        loader.on_end = lambda outcome: ended.append(outcome.peer)
        loader.on_failed = lambda peer, *_: ended.append(peer)
        async with loader:

            async def take() -> list[bytes]:
                return [bytes(block) async for block in loader]

            taking = asyncio.ensure_future(take())
            silent = connect(loader.port)
            await asyncio.sleep(1.3)  # others are looked for after a second
            peers.close_with_reset(connect(loader.port))
            await asyncio.sleep(0.2)
            peers.close_with_reset(silent)
            with connect(loader.port) as good:
                good.sendall(b"the one that counts")
            return await taking

    assert run(main()) == [b"the one that counts"]
    assert sorted(ended) == sorted(came)  # each is told of once


@pytest.mark.parametrize("most", [1, 2])
def test_a_stranger_who_does_not_shake_hands_keeps_nobody_waiting(run: Run, tls_net: Net, most: int) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"handshake_timeout": peers.TIMEOUT, "max_connections": most, **tls_net.listening}
        async with ringmain.load(tls_net.url(), **options) as loader:
            waiting = asyncio.ensure_future(anext(loader))
            strangers = [await asyncio.to_thread(peers.connect, loader.port) for _ in range(5)]
            client = await witness.connect(loader.port, tls_net.client())
            await client.shake_hands()
            await client.send(b"served at once\n")
            assert bytes(await waiting) == b"served at once\n"
            client.sock.close()
            for stranger in strangers:
                stranger.close()

    run(main())


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a byte", "six bytes"])
@pytest.mark.parametrize("limit", [1000.0, None])
def test_strangers_who_take_all_the_room_for_handshakes_and_begin_none_make_room_for_who_waits(
    run: Run,
    tls_net: Net,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    said: bytes,
    limit: float | None,
) -> None:
    monkeypatch.setattr(reception, "_PATIENCE", 1 / 1000)
    monkeypatch.setattr(reception, "_TIMEOUT", 1000.0)

    async def main() -> None:
        options: dict[str, Any] = {"handshake_timeout": limit, "max_connections": 2, **tls_net.listening}
        with contextlib.ExitStack() as stack:
            async with ringmain.load(tls_net.url(), **options) as loader:
                waiting = asyncio.ensure_future(anext(loader))
                strangers = [stack.enter_context(peers.connect(loader.port)) for _ in range(MOST_AT_ONCE)]
                for it in strangers:
                    it.sendall(said)
                client = await witness.connect(loader.port, tls_net.client())
                stack.enter_context(client.sock)
                await client.shake_hands()
                await client.send(b"served\n")
                assert bytes(await waiting) == b"served\n"
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(strangers.pop(0).recv, 1) == b""
                assert not any(map(is_over, strangers))  # nobody else has to go

    run(main(), peers.TIMEOUT)
    assert len([it for it in caplog.messages if "let go: it was not ready to begin after 1 s" in it]) == 1


@pytest.mark.parametrize("silent", [1, 0], ids=["one of them silent", "all have begun"])
def test_who_has_begun_a_handshake_is_let_go_for_who_waits_after_those_who_have_not(
    run: Run, tls_net: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, silent: int
) -> None:
    monkeypatch.setattr(reception, "_PATIENCE", 1 / 1000)

    heard: list[tuple[Any, ...]] = []

    async def main() -> None:
        options: dict[str, Any] = {"handshake_timeout": 1000.0, "max_connections": 2, **tls_net.listening}
        with contextlib.ExitStack() as stack:
            loader = ringmain.load(tls_net.url(), **options)
            loader.on_failed = lambda *failed: heard.append(failed)
            async with loader:
                waiting = asyncio.ensure_future(anext(loader))
                slow = [stack.enter_context(peers.connect(loader.port)) for _ in range(MOST_AT_ONCE)]
                for it in slow[: MOST_AT_ONCE - silent]:
                    it.sendall(peers.hello())
                    assert await asyncio.to_thread(it.recv, 1 << 16)  # our answer, after which it says no more
                client = await witness.connect(loader.port, tls_net.client())
                stack.enter_context(client.sock)
                await client.shake_hands()
                await client.send(b"served\n")
                assert bytes(await waiting) == b"served\n"
                gone = slow.pop(-1 if silent else 0)
                with contextlib.suppress(ConnectionResetError):
                    await asyncio.to_thread(peers.read_all, gone)
                assert len([it for it in caplog.messages if "let go" in it]) == 1
                ((_, _, error, verdict),) = heard
                assert (str(error) in caplog.messages, verdict) == (True, "handshake failed")

    run(main(), peers.TIMEOUT)
    (line,) = [it for it in caplog.messages if "let go" in it]
    assert f"{'it was not ready to begin after 1' if silent else 'its handshake was not done after 3'} s" in line


@pytest.mark.parametrize("said", [b"", b"\x16"], ids=["nothing", "a byte"])
def test_strangers_at_a_unix_socket_make_room_too(
    run: Run, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(reception, "_PATIENCE", 1 / 1000)
    path = tmp_path / "socket"

    def send() -> None:
        context = ssl.create_default_context(cafile=str(certificates.ca))
        context.check_hostname = False
        with context.wrap_socket(peers.dial_unix(path)) as sock:
            sock.sendall(b"served\n")

    async def main() -> None:
        tls: dict[str, Any] = {"tls": True, "certfile": str(certificates.server), "handshake_timeout": 1000.0}
        with contextlib.ExitStack() as stack:
            async with ringmain.load(f"unix:{path}", max_connections=2, **tls) as loader:
                waiting = asyncio.ensure_future(anext(loader))
                for _ in range(MOST_AT_ONCE):
                    stack.enter_context(peers.dial_unix(path)).sendall(said)
                await asyncio.to_thread(send)
                assert bytes(await waiting) == b"served\n"

    run(main(), peers.TIMEOUT)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("said", [b"\x16", b"\x16\x03\x01\x02\x00\x01"], ids=["a byte", "six bytes"])
def test_who_leaves_within_a_hello_is_not_waited_for(
    run: Run, certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture, unix: bool, said: bytes
) -> None:
    path = tmp_path / "socket"

    async def main() -> None:
        tls: dict[str, Any] = {"tls": True, "certfile": str(certificates.server), "handshake_timeout": None}
        async with ringmain.load(f"unix:{path}" if unix else "127.0.0.1:0", **tls) as loader:
            waiting = asyncio.ensure_future(anext(loader))
            with peers.dial_unix(path) if unix else peers.connect(loader.port) as sock:
                sock.sendall(said)
            await asyncio.to_thread(peers.eventually, lambda: "TLS handshake with" in caplog.text, "a warning")
            waiting.cancel()

    run(main(), peers.TIMEOUT)


def is_over(sock: socket.socket) -> bool:
    """Tell whether a connection has ended on which nothing has come."""
    return bool(select.select([sock], [], [], 0)[0])


def test_who_shook_hands_while_another_was_served_counts_as_waiting(run: Run, tls_net: Net) -> None:
    """It is no stranger that may have left: the silent one that is served has to make room for it."""

    async def main() -> None:
        options: dict[str, Any] = {"handshake_timeout": 5.0, "gate": "queue", **tls_net.listening}
        async with ringmain.load(tls_net.url(), **options) as loader:
            silent, patient = [await witness.connect(loader.port, tls_net.client()) for _ in range(2)]
            waiting = asyncio.ensure_future(anext(loader))
            await asyncio.gather(silent.shake_hands(), patient.shake_hands())
            await patient.send(b"at last\n")
            assert bytes(await waiting) == b"at last\n"
            silent.sock.close()
            patient.sock.close()

    run(main())


def test_with_refuse_client_n_plus_1_is_reset(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", max_connections=2, gate="refuse") as loader:
            got, waiting = b"", asyncio.ensure_future(anext(loader))
            with peers.connect(loader.port) as one, peers.connect(loader.port) as two:
                one.sendall(b"one\n")
                two.sendall(b"two\n")
                got += await waiting
                while set(got.split()) != {b"one", b"two"}:
                    got += await anext(loader)
                waiting = asyncio.ensure_future(anext(loader))
                await asyncio.to_thread(_is_refused, loader.port)
                assert loader.refused == 1
                two.sendall(b"still served\n")
                assert bytes(await waiting) == b"still served\n"

    run(main())


def _is_refused(port: int) -> None:
    with pytest.raises(ConnectionResetError), peers.connect(port) as sock:  # the reset may be faster than connect
        sock.recv(1)

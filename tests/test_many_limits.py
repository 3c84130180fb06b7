"""Many clients at once: who has no place yet, who takes too long, and how one ends while the others go on."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import witness
from conforming import Net

import ringmain
from ringmain.outcome import Outcome

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Lines:
    """Takes the lines of a loader, until each of those waited for has come."""

    def __init__(self, loader: ringmain.Loader) -> None:
        self._loader = loader
        self.got: list[bytes] = []

    async def until(self, *lines: bytes) -> None:
        while not set(lines) <= set(self.got):
            self.got += bytes(await anext(self._loader)).split(b"\n")[:-1]


@pytest.mark.parametrize("gate", ["hold", "queue"])
def test_client_n_plus_1_is_served_once_a_place_is_free(run: Run, gate: Any) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            async with ringmain.load("127.0.0.1:0", max_connections=2, gate=gate) as loader:
                lines = Lines(loader)
                waiting = asyncio.ensure_future(lines.until(b"one", b"two"))
                one, two = (stack.enter_context(peers.connect(loader.port)) for _ in range(2))
                one.sendall(b"one\n")
                two.sendall(b"two\n")
                await waiting
                third = stack.enter_context(socket.socket())
                third.setblocking(False)
                third.connect_ex(("127.0.0.1", loader.port))
                knocking = asyncio.ensure_future(asyncio.to_thread(_send_once_connected, third, b"three\n"))
                one.sendall(b"more of one\n")
                two.sendall(b"more of two\n")
                await lines.until(b"more of one", b"more of two")
                assert b"three" not in lines.got
                one.close()
                await lines.until(b"three")
                await knocking
                two.sendall(b"last of two\n")
                await lines.until(b"last of two")

    run(main())


def _send_once_connected(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(peers.TIMEOUT)
    with contextlib.suppress(OSError):  # it is connected already
        sock.connect(sock.getpeername())
    peers.eventually(lambda: _sends(sock, data), "a connection")


def _sends(sock: socket.socket, data: bytes) -> bool:
    try:
        return sock.send(data) == len(data)
    except OSError:  # not connected yet
        return False


@pytest.mark.parametrize("gate", ["hold", "queue"])
def test_where_all_who_have_a_place_are_silent_those_who_wait_get_them(run: Run, net: Net, gate: Any) -> None:
    outcomes: list[Outcome] = []

    async def main() -> None:
        options: dict[str, Any] = {"max_connections": 2, "gate": gate, "handshake_timeout": 3.0, **net.listening}
        with contextlib.ExitStack() as stack:
            async with ringmain.load(net.url(), **options) as loader:
                loader.on_end = outcomes.append
                lines = Lines(loader)
                waiting = asyncio.ensure_future(lines.until(b"0", b"1"))
                silent = [await witness.connect(loader.port, net.client()) for _ in range(2)]
                for it in silent:
                    stack.enter_context(it.sock)
                    await it.shake_hands()
                for number in range(2):
                    client = await witness.connect(loader.port, net.client())
                    stack.enter_context(client.sock)
                    await client.shake_hands()
                    await client.send(b"%d\n" % number)
                await waiting
                for it in silent:
                    await it.read_to_end()
                    assert it.end == "reset"

    run(main())
    assert [(it.verdict, it.size) for it in outcomes[:2]] == [("timed out", 0)] * 2


def test_who_is_idle_is_ended_and_who_sends_is_not(run: Run, net: Net) -> None:
    outcomes: list[Outcome] = []

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            async with ringmain.load(net.url(), max_connections=3, idle_timeout=3.0, **net.listening) as loader:
                loader.on_end = outcomes.append
                lines = Lines(loader)
                waiting = asyncio.ensure_future(lines.until(b"idle", b"busy"))
                idle, busy = [await witness.connect(loader.port, net.client()) for _ in range(2)]
                for it, data in ((idle, b"idle\nunfinished"), (busy, b"busy\n")):
                    stack.enter_context(it.sock)
                    await it.shake_hands()
                    await it.send(data)
                await waiting
                number = 0
                while not outcomes:
                    await busy.send(b"%d\n" % number)
                    await lines.until(b"%d" % number)
                    await asyncio.sleep(0.05)
                    number += 1
                await busy.send(b"last\n")
                await lines.until(b"last")

    run(main())
    assert (outcomes[0].verdict, outcomes[0].counters.dropped_bytes) == ("timed out", len(b"unfinished"))


@pytest.mark.parametrize("verdict", ["ended", "truncated", "reset", "stopped"])
def test_however_one_ends_the_others_go_on(run: Run, net: Net, verdict: str) -> None:
    if verdict == "truncated" and not net.tls:
        pytest.skip("a plain connection has but one end")
    outcomes: list[Outcome] = []

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            options: dict[str, Any] = {"max_connections": 2, "max_record": 100, **net.listening}
            async with ringmain.load(net.url(), **options) as loader:
                loader.on_end = outcomes.append
                lines = Lines(loader)
                waiting = asyncio.ensure_future(lines.until(b"one", b"other"))
                one, other = [await witness.connect(loader.port, net.client()) for _ in range(2)]
                for it, data in ((one, b"one\nrest"), (other, b"other\n")):
                    stack.enter_context(it.sock)
                    await it.shake_hands()
                    await it.send(data)
                await waiting
                if verdict == "ended":
                    await one.finish()
                elif verdict == "truncated":
                    one.sock.close()
                elif verdict == "reset":
                    one.reset()
                else:
                    await one.send(b"x" * 200)  # a record that is too long: our side ends it
                if verdict == "ended":
                    await lines.until(b"rest")
                while not outcomes:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                await other.send(b"still here\n")
                await lines.until(b"still here")
                assert (b"rest" in lines.got) == (verdict == "ended")

    run(main())
    assert outcomes[0].verdict == verdict
    assert (outcomes[0].counters.dropped_bytes > 0) == (verdict != "ended")
    assert len(outcomes) == 2

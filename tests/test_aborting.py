"""`abort` closes the listener at once: nobody else gets in, though the block is not left yet."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import brokers
import peers
import pytest

import ringmain

Run = Callable[[Coroutine[Any, Any, Any]], Any]
HERE = "tcp://127.0.0.1:0"
COUNTS = pytest.mark.parametrize("count", [1, 2], ids=["one", "many"])


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), peers.TIMEOUT).close()
    except ConnectionRefusedError:
        return True
    return False


def ports_of(verb: Any) -> list[int]:
    return [int(address.rpartition(":")[2]) for address in verb.addresses]


@COUNTS
@pytest.mark.parametrize(
    "open_verb",
    [
        lambda count: ringmain.load(HERE, max_connections=count, delimiter=b"\n"),
        lambda count: ringmain.save(HERE, listen=True, max_connections=count),
        lambda count: ringmain.relay(HERE, "tcp://127.0.0.1:1", max_connections=count),
        lambda count: ringmain.relay(HERE, HERE, listen=True, max_connections=count),
    ],
    ids=["load", "save", "relay", "relay that listens at both ends"],
)
def test_nobody_is_let_in_any_more(run: Run, open_verb: Callable[[int], Any], count: int) -> None:
    async def main() -> None:
        async with open_verb(count) as verb:
            ports = ports_of(verb)
            assert ports
            assert not any(map(is_refused, ports))
            verb.abort()
            assert all(map(is_refused, ports))
            assert verb.addresses == []
            assert "listening" not in repr(verb)

    run(main())


@COUNTS
@pytest.mark.parametrize("waits_for", ["a client", "the other side"])
def test_a_relay_that_waits_for_clients_ends(run: Run, count: int, waits_for: str) -> None:
    async def main() -> None:
        async with ringmain.relay(HERE, HERE, listen=True, max_connections=count) as relayer:
            serving = asyncio.ensure_future(relayer.serve())
            port = relayer.source.port
            others = [peers.connect(port) for _ in range(count)] if waits_for == "the other side" else []
            while len(relayer.source.peers) < len(others):  # noqa: ASYNC110 - they have come in
                await asyncio.sleep(0.001)
            relayer.abort()
            await serving
            assert all([await asyncio.to_thread(peers.ends_in_reset, it) for it in others])
            assert is_refused(port)
            await relayer.serve()  # which serves nobody
            for it in others:
                it.close()

    run(main())


def test_a_relay_into_a_log_lets_nobody_in_any_more(run: Run, bench: peers.Bench) -> None:
    broker = brokers.Broker(bench)
    broker.add_stream("EVENTS")

    async def main() -> None:
        async with ringmain.relay(HERE, broker.url("events")) as relayer:
            serving = asyncio.ensure_future(relayer.serve())
            port = relayer.port
            assert not is_refused(port)
            relayer.abort()
            assert is_refused(port)
            await serving

    run(main())

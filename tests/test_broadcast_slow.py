"""Many clients of a saver of which one takes nothing: it makes all wait, or is reset and nobody waits."""

import asyncio
from collections.abc import Callable
from typing import Any

import peers
import pytest
import witness
from audiences import PLAIN, come, read_on, stalled
from conforming import LARGE, PROPER, Net
from merging import until

import ringmain
from ringmain.outcome import Outcome

Run = Callable[[Any], Any]


def test_with_wait_a_stalled_client_makes_all_wait_and_nobody_misses_a_byte(run: Run, net: Net) -> None:
    async def main() -> list[witness.Witness]:
        async with ringmain.save(net.url(), listen=True, max_connections=4, **net.listening) as saver:
            clients = await come(saver, net, 4)
            reading = read_on(clients[1:])

            async def write() -> None:
                for _ in range(8):
                    await saver.write(LARGE)

            writing = asyncio.ensure_future(write())
            await until(lambda: stalled(saver) and all(client.received for client in clients[1:]))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not writing.done()
            assert not clients[0].received
            reading_too = read_on(clients[:1])
            await writing
        await asyncio.gather(reading, reading_too)
        return clients

    for client in run(main()):
        assert peers.sha256(bytes(client.received)) == peers.sha256(LARGE * 8)
        assert client.end in PROPER


async def write_until_dropped(saver: ringmain.Saver, clients: list[witness.Witness], wanted: int) -> bytes:
    """Write while all of these clients keep up, until so many connections are left; return what was written."""
    sent = bytearray()

    def all_have_it() -> bool:
        return all(len(client.received) == len(sent) for client in clients)

    while saver.connections > wanted:
        piece = peers.payload(300_000, len(sent))
        sent += piece
        await saver.write(piece)
        await until(all_have_it)
    return bytes(sent)


def test_with_drop_a_stalled_client_is_reset_and_the_others_get_all(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[Outcome] = []

    async def main() -> tuple[list[witness.Witness], bytes]:
        options = {"max_connections": 4, "slow": "drop", "client_buffer": 2_000_000, **net.listening}
        async with ringmain.save(net.url(), listen=True, **options) as saver:
            saver.on_end = outcomes.append
            clients = await come(saver, net, 4)
            reading = read_on(clients[1:])
            sent = await write_until_dropped(saver, clients[1:], 3)
            await saver.write(b"the end")
        await asyncio.gather(reading, read_on(clients[:1]))
        return clients, sent + b"the end"

    clients, sent = run(main())
    assert clients[0].end == "reset"
    assert sent.startswith(clients[0].received)
    for client in clients[1:]:
        assert peers.sha256(bytes(client.received)) == peers.sha256(sent)
        assert client.end in PROPER
    (warning,) = caplog.messages
    peer = outcomes[0].peer
    assert f"save to {peer}: reset, since it is more than client_buffer=2000000 bytes behind" in warning
    missed = int(warning.rpartition(": ")[2].split()[0])
    assert 1_400_000 < missed <= len(sent)  # a piece less than the buffer, and what TLS had gathered
    assert (outcomes[0].verdict, str(outcomes[0].error) in warning) == ("stopped", True)
    assert [outcome.verdict for outcome in outcomes[1:]] == ["ended"] * 3


def test_with_drop_what_is_due_is_kept_once_and_within_the_buffer(run: Run, net: Net) -> None:
    limit = 4_000_000

    async def main() -> None:
        options = {"max_connections": 5, "slow": "drop", "client_buffer": limit, **net.listening}
        async with ringmain.save(net.url(), listen=True, **options) as saver:
            clients, most = await come(saver, net, 5), 0
            reading = read_on(clients[4:])
            audience: Any = saver._clients._audience  # type: ignore[union-attr]
            while saver.connections > 1:
                await saver.write(LARGE)
                for size in (100, 16_000, 70_000, 500_000):
                    await saver.write(LARGE[:size])
                    chunks = {id(chunk): len(chunk) for client in audience for chunk in client._due}
                    most = max(most, sum(chunks.values()))
                    assert most <= limit
                    assert all(client.due_size <= limit for client in audience)
            assert most > limit / 2
        await asyncio.gather(reading, read_on(clients[:4]))

    run(main())


def test_with_drop_tiny_writes_are_bounded_by_what_they_take(run: Run) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"max_connections": 2, "slow": "drop", "client_buffer": 100_000}
        async with ringmain.save("127.0.0.1:0", listen=True, **options) as saver:
            clients, most = await come(saver, PLAIN, 2), 0
            reading = read_on(clients[1:])
            audience: Any = saver._clients._audience  # type: ignore[union-attr]
            stuck = next(iter(audience))
            while saver.connections == 2:
                await saver.write(b"x" if stuck.due_size else LARGE[:60_000])  # what its kernel takes is no test
                await asyncio.sleep(0)
                most = max(most, stuck.due_size + len(stuck._due) * 64)
            assert 90_000 < most <= 100_000
        await asyncio.gather(reading, read_on(clients[:1]))

    run(main())


def test_with_drop_a_lone_client_is_waited_for_until_another_one_waits(run: Run, net: Net) -> None:
    async def main() -> tuple[str | None, bytes]:
        options = {"max_connections": 2, "slow": "drop", "client_buffer": 100_000, **net.listening}
        async with ringmain.save(net.url(), listen=True, **options) as saver:
            (stuck,) = await come(saver, net)
            writing = asyncio.ensure_future(saver.write(LARGE * 2))
            await until(lambda: stalled(saver))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not writing.done()
            late = await witness.connect(saver.port, net.client())
            await late.shake_hands()
            reading = read_on([late])
            await writing
        await asyncio.gather(reading, read_on([stuck]))
        assert late.end in PROPER
        return stuck.end, bytes(late.received)

    end, got = run(main())
    assert end == "reset"
    assert peers.sha256(got) == peers.sha256(LARGE * 2)


def test_with_drop_what_is_due_when_the_saver_is_left_is_waited_for(run: Run, net: Net) -> None:
    async def main() -> witness.Witness:
        options = {"max_connections": 2, "slow": "drop", "client_buffer": 4 * len(LARGE), **net.listening}
        async with ringmain.save(net.url(), listen=True, **options) as saver:
            (client,) = await come(saver, net)
            await saver.write(LARGE)
            await saver.write(LARGE)
            reading = asyncio.ensure_future(until(lambda: stalled(saver)))
            await reading
            taking = read_on([client])
        await taking
        return client

    client = run(main())
    assert peers.sha256(bytes(client.received)) == peers.sha256(LARGE * 2)
    assert client.end in PROPER


def test_a_stalled_client_is_let_go_by_the_idle_timeout_and_the_others_go_on(
    run: Run, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> list[witness.Witness]:
        async with ringmain.save(net.url(), listen=True, max_connections=3, idle_timeout=3.0, **net.listening) as saver:
            clients = await come(saver, net, 3)
            reading = read_on(clients[1:])
            await saver.write(LARGE * 2)
            assert saver.connections == 2
        await asyncio.gather(reading, read_on(clients[:1]))
        return clients

    stuck, *others = run(main())
    assert stuck.end == "reset"
    assert {peers.sha256(bytes(client.received)) for client in others} == {peers.sha256(LARGE * 2)}
    assert "it took nothing for 3 s" in caplog.text


def test_a_stalled_client_is_no_obstacle_to_the_end_of_the_others(run: Run, net: Net) -> None:
    async def main() -> list[str | None]:
        options = {"max_connections": 3, "slow": "drop", "client_buffer": 4 * len(LARGE), **net.listening}
        async with ringmain.save(net.url(), listen=True, **options) as saver:
            clients = await come(saver, net, 3)
            reading = read_on(clients[1:])
            await saver.write(LARGE)
            await saver.write(LARGE)
            ending = asyncio.ensure_future(saver.end_connection())
            await reading
            await until(lambda: saver.connections == 1)
            assert not ending.done()
            ending.cancel()
            await asyncio.wait([ending])
            assert saver.connections == 0
        await read_on(clients[:1])
        return [client.end for client in clients]

    stuck, *others = run(main())
    assert stuck == "reset"
    assert set(others) <= set(PROPER)

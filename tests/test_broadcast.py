"""Many clients of a saver at once: each gets what is written from when it has come, once and in order."""

import asyncio
import contextlib
import functools
import gc
import random
from collections.abc import Callable
from typing import Any

import peers
import pytest
import witness
from audiences import PLAIN, come, read_on, stalled
from conforming import LARGE, PROPER, Net, nothing_is_pending
from merging import until

import ringmain
from ringmain import errors
from ringmain.outcome import Outcome

Run = Callable[[Any], Any]


def pieces_of(data: bytes, sizes: list[int], seed: int = 1) -> list[bytes]:
    """Return data in pieces of these sizes, in any order."""
    chance, pieces = random.Random(seed), []
    while data:
        size = chance.choice(sizes)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("slow", ["wait", "drop"])
def test_five_clients_get_the_same_stream_byte_by_byte(run: Run, net: Net, slow: Any) -> None:
    data = peers.payload(9_000_000)

    async def main() -> list[witness.Witness]:
        options = {"max_connections": 5, "slow": slow, "client_buffer": len(data), **net.listening}
        async with ringmain.save(net.url(), listen=True, **options) as saver:
            clients = await come(saver, net, 5)
            reading = read_on(clients)
            for piece in pieces_of(data, [1, 100, 20_000, 70_000, 2_500_000]):
                await saver.write(bytearray(piece))
        await reading
        nothing_is_pending()
        return clients

    for client in run(main()):
        assert peers.sha256(bytes(client.received)) == peers.sha256(data)
        assert client.end in PROPER


def test_who_comes_later_gets_all_that_is_written_from_then_on(run: Run, net: Net) -> None:
    pieces = pieces_of(peers.payload(3_000_000), [1, 100, 20_000, 70_000])

    async def main() -> list[tuple[witness.Witness, int]]:
        clients, reading = [], []
        async with ringmain.save(net.url(), listen=True, max_connections=10, **net.listening) as saver:
            for number, piece in enumerate(pieces):
                if number % (len(pieces) // 9) == 0:
                    (client,) = await come(saver, net)
                    clients.append((client, number))
                    reading.append(read_on([client]))
                await saver.write(piece)
        await asyncio.gather(*reading)
        return clients

    clients = run(main())
    assert len(clients) >= 9
    for client, first in clients:
        assert peers.sha256(bytes(client.received)) == peers.sha256(b"".join(pieces[first:]))


def test_who_comes_while_a_write_is_under_way_gets_the_next_one_whole(run: Run, net: Net) -> None:
    async def main() -> list[bytes]:
        async with ringmain.save(net.url(), listen=True, max_connections=2, **net.listening) as saver:
            (first,) = await come(saver, net)
            writing = asyncio.ensure_future(saver.write(LARGE * 2))
            await until(lambda: stalled(saver))
            late = await witness.connect(saver.port, net.client())
            await asyncio.gather(late.shake_hands(), until(lambda: saver.connections == 2))
            assert not writing.done()
            reading = read_on([first, late])
            await writing
            await saver.write(b"then")
        await reading
        return [bytes(client.received) for client in (first, late)]

    first, late = run(main())
    assert peers.sha256(first) == peers.sha256(LARGE * 2 + b"then")
    assert late == b"then"


@pytest.mark.parametrize("leave", ["reset", "close"])
def test_a_client_that_leaves_in_the_middle_leaves_the_others_all(
    run: Run, net: Net, leave: str, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = pieces_of(peers.payload(12_000_000), [1, 20_000, 400_000])

    async def main() -> list[bytes]:
        async with ringmain.save(net.url(), listen=True, max_connections=4, **net.listening) as saver:
            stay, (lost,) = await come(saver, net, 3), await come(saver, net)
            reading = read_on(stay)
            taking = asyncio.ensure_future(lost.read_to_end(1_000_000))
            for number, piece in enumerate(pieces):
                await saver.write(piece)
                if number == len(pieces) // 3:
                    await taking
                    if leave == "reset":
                        lost.reset()
                    else:
                        lost.sock.close()
            await until(lambda: saver.connections == 3)
        await reading
        return [bytes(client.received) for client in stay]

    assert {peers.sha256(got) for got in run(main())} == {peers.sha256(b"".join(pieces))}
    assert caplog.text.count("save to 127.0.0.1:") == 1


def test_a_write_waits_for_a_client_and_is_whole_again_for_the_next_when_all_are_lost(run: Run, net: Net) -> None:
    async def main() -> bytes:
        async with ringmain.save(net.url(), listen=True, max_connections=3, **net.listening) as saver:
            writing = asyncio.ensure_future(saver.write(LARGE * 2))
            for client in await come(saver, net, 2, waiting=False):
                await client.read_to_end(100)
                client.reset()
            await until(lambda: saver.connections == 0)
            assert not writing.done()
            (third,) = await come(saver, net, waiting=False)
            reading = read_on([third])
            await writing
        await reading
        return bytes(third.received)

    assert peers.sha256(run(main())) == peers.sha256(LARGE * 2)


@pytest.mark.parametrize("how", ["by an exception", "after a cancelled write"])
def test_leaving_with_a_part_resets_all(run: Run, net: Net, how: str) -> None:
    async def main() -> list[str | None]:
        clients: list[witness.Witness] = []
        with pytest.raises(LookupError if how == "by an exception" else errors.SendError):
            async with ringmain.save(net.url(), listen=True, max_connections=3, **net.listening) as saver:
                clients += await come(saver, net, 3)
                reading = read_on(clients[1:])
                writing = asyncio.ensure_future(saver.write(LARGE * 2))
                await until(lambda: stalled(saver))
                writing.cancel()
                await asyncio.wait([writing])
                with pytest.raises(errors.SendError, match="cancelled half-way"):
                    await saver.write(b"after the hole")
                if how == "by an exception":
                    raise LookupError
        await asyncio.gather(reading, read_on(clients[:1]))
        nothing_is_pending()
        return [client.end for client in clients]

    assert run(main()) == ["reset"] * 3


def test_a_write_that_is_cancelled_while_it_waits_for_a_client_has_done_nothing(run: Run, net: Net) -> None:
    async def main() -> bytes:
        async with ringmain.save(net.url(), listen=True, max_connections=2, **net.listening) as saver:
            writing = asyncio.ensure_future(saver.write(LARGE))
            await asyncio.sleep(0)
            writing.cancel()
            await asyncio.wait([writing])
            (client,) = await come(saver, net)
            reading = read_on([client])
            await saver.write(b"the first")
        await reading
        return bytes(client.received)

    assert run(main()) == b"the first"


def test_many_are_ended_side_by_side_and_what_is_written_then_is_for_others(run: Run, net: Net) -> None:
    async def main() -> list[witness.Witness]:
        outcomes: list[Outcome] = []
        async with ringmain.save(net.url(), listen=True, max_connections=3, **net.listening) as saver:
            saver.on_end = outcomes.append
            with pytest.raises(errors.UsageError, match="there is no connection to end"):
                await saver.end_connection()
            first = await come(saver, net, 3)
            await saver.write(b"small")
            ending = asyncio.ensure_future(saver.end_connection())
            reading = read_on(first)
            await ending
            second = await come(saver, net, 2)
            assert (saver.connections, repr(saver).split("listening, ")[1]) == (2, "2 connections, 0 bytes>")
            await saver.write(b"more")
            await saver.write(LARGE[:20_000])
            assert saver.counters is not None
            assert saver.counters.bytes_out == 2 * 20_004
            reading_too = read_on(second)
        await asyncio.gather(reading, reading_too)
        assert sorted((it.verdict, it.size) for it in outcomes) == [("ended", 5)] * 3 + [("ended", 20_004)] * 2
        assert (saver.connections, saver.counters, saver.unacknowledged_bytes, saver.fullness) == (0, None, 0, 0.0)
        return first + second

    clients = run(main())
    assert [bytes(it.received) for it in clients] == [b"small"] * 3 + [b"more" + LARGE[:20_000]] * 2
    assert all(it.end in PROPER for it in clients)


def test_many_that_are_broken_off_get_all_that_was_written_and_no_end(run: Run, net: Net) -> None:
    async def main() -> list[witness.Witness]:
        async with ringmain.save(net.url(), listen=True, max_connections=3, **net.listening) as saver:
            clients = await come(saver, net, 3)
            reading = asyncio.gather(*(client.read_to_end(len(LARGE) + 5) for client in clients))
            await saver.write(LARGE)
            await saver.write(b"small")
            await asyncio.gather(saver.break_off(), reading)
            await read_on(clients)
        return clients

    for client in run(main()):
        assert peers.sha256(bytes(client.received)) == peers.sha256(LARGE + b"small")
        assert client.end == "reset"


@pytest.mark.parametrize("gate", ["hold", "queue", "refuse"])
def test_a_client_too_many_is_kept_away_until_another_has_left(run: Run, gate: Any) -> None:
    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen=True, max_connections=2, gate=gate) as saver:
            first, second = await come(saver, PLAIN, 2)
            if gate == "refuse":
                with contextlib.suppress(ConnectionResetError):  # the reset may be faster than connect
                    refused = await witness.connect(saver.port)
                    await refused.read_to_end()
                    assert refused.end == "reset"
                    refused.sock.close()
                await until(lambda: saver.refused == 1)
            else:
                connecting = asyncio.ensure_future(witness.connect(saver.port))
            await saver.write(b"for two")
            first.reset()
            await until(lambda: saver.connections == 1)
            third = await (witness.connect(saver.port) if gate == "refuse" else connecting)
            await until(lambda: saver.connections == 2)
            await saver.write(b"for others")
            reading = read_on([second, third])
        await reading
        assert (bytes(second.received), bytes(third.received)) == (b"for twofor others", b"for others")

    run(main())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_forgotten_saver_of_many_lets_go_of_all(run: Run, net: Net) -> None:
    async def main() -> list[str | None]:
        saver = await ringmain.save(net.url(), listen=True, max_connections=3, **net.listening).__aenter__()
        saver.on_end = functools.partial(getattr, saver)  # which refers to it
        clients = await come(saver, net, 2)
        del saver
        reading = read_on(clients)
        while not reading.done():
            gc.collect()
            await asyncio.sleep(0.01)
        return [client.end for client in clients]

    assert run(main()) == ["reset"] * 2


def test_what_on_end_raises_comes_out_and_leaves_nobody_open(run: Run, net: Net) -> None:
    def on_end(_: Outcome) -> None:
        raise LookupError

    async def main() -> list[str | None]:
        with pytest.raises(LookupError):
            async with ringmain.save(net.url(), listen=True, max_connections=3, **net.listening) as saver:
                saver.on_end = on_end
                clients = await come(saver, net, 3)
                clients[0].reset()
                while True:
                    await saver.write(b"small")
                    await asyncio.sleep(0)
        await read_on(clients[1:])
        nothing_is_pending()
        return [client.end for client in clients[1:]]

    assert run(main()) == ["reset"] * 2


def test_what_was_gathered_for_those_who_have_left_by_then_goes_to_who_comes_with_all_that_follows(
    run: Run, net: Net
) -> None:
    async def main() -> bytes:
        async with ringmain.save(net.url(), listen=True, max_connections=2, **net.listening) as saver:
            (first,) = await come(saver, net)
            await saver.write(b"gathered, ")
            saver._clients._audience.reset_all()  # type: ignore[union-attr]  # before this turn of the loop is over
            (second,) = await come(saver, net, waiting=False)
            await second.read_to_end(10)
            await saver.write(b"and what follows")
            await second.read_to_end(26)
        await read_on([first, second])
        return bytes(second.received)

    assert run(main()) == b"gathered, and what follows"


def test_a_client_that_leaves_while_nothing_is_written_makes_room(run: Run, net: Net) -> None:
    async def main() -> bytes:
        async with ringmain.save(net.url(), listen=True, max_connections=2, gate="queue", **net.listening) as saver:
            first, second = await come(saver, net, 2)
            outcomes: list[Outcome] = []
            saver.on_end = outcomes.append
            third = await witness.connect(saver.port, net.client())
            if net.tls:
                await first.finish()  # a goodbye; without TLS that may be a half-close
            else:
                first.reset()
            await third.shake_hands()
            await until(lambda: len(outcomes) == 1 and saver.connections == 2)
            reading = read_on([second, third])
            await saver.write(b"for others")
        await reading
        first.sock.close()
        return bytes(third.received)

    assert run(main()) == b"for others"


def test_who_does_not_shake_hands_holds_nobody_up(run: Run, tls_net: Net) -> None:
    async def main() -> bytes:
        options = {"max_connections": 2, "handshake_timeout": peers.TIMEOUT, **tls_net.listening}
        async with ringmain.save(tls_net.url(), listen=True, **options) as saver:
            strangers = [await witness.connect(saver.port) for _ in range(5)]
            clients = await come(saver, tls_net, 2)
            reading = read_on(clients)
            await saver.write(LARGE)
        await reading
        for stranger in strangers:
            stranger.sock.close()
        return bytes(clients[0].received)

    assert peers.sha256(run(main())) == peers.sha256(LARGE)

"""A relay for many clients at once: every byte of each, and nobody waits for another."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import peers
import pytest
import witness
from conftest import Certificates
from crossing import WAYS, Crossing, ask, crossing, flood, until

import ringmain

Run = Callable[[Any], Any]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [2, 50])
def test_all_bytes_of_all_passages_go_both_ways_side_by_side(
    run: Run, certificates: Certificates, way: str, count: int
) -> None:
    size = 1_000_000 if count == 2 else 60_000
    there = [peers.payload(size, number) for number in range(count)]
    back = [peers.payload(size // 2, 1000 + number) for number in range(count)]

    async def main() -> None:
        async with crossing(certificates, way, count) as it:
            pairs = await it.pairs(count)
            # A pump counts what it has moved a moment later than the peer may have it.
            await until(lambda: [counters.bytes_out for counters in it.relayer.counters] == [count, count])
            assert all(0 <= size <= count for size in it.relayer.taken)  # what was read need not be acknowledged
            assert len(it.relayer.taken) == 2
            assert f"{count} connections" in repr(it.relayer)
            exchanges = []
            for number, (client, server) in enumerate(pairs):
                exchanges.append(client.exchange(there[number], 1 + len(back[number])))
                exchanges.append(server.exchange(back[number], 1 + len(there[number])))
            await asyncio.gather(*exchanges)
            for number, (client, server) in enumerate(pairs):
                assert peers.sha256(bytes(server.received[1:])) == peers.sha256(there[number])
                assert peers.sha256(bytes(client.received[1:])) == peers.sha256(back[number])
                assert (client.end, server.end) == tuple(
                    "close_notify" if secured else "fin" for secured in (way == "tls to plain", way == "plain to tls")
                )
            await until(lambda: len(it.outcomes) == count)
            assert {outcome.verdict for outcome in it.outcomes} == {"ended"}
            sizes = {(outcome.source.size, outcome.destination.size) for outcome in it.outcomes}
            assert sizes == {(1 + size, 1 + size // 2)}
            assert it.relayer.counters == it.relayer.taken == []
            assert it.relayer.stop() is False

    run(main())


@pytest.mark.parametrize("way", ["kernel", "block"])
def test_one_way_drops_answers_of_many_too(run: Run, certificates: Certificates, way: str) -> None:
    data = [peers.payload(200_000, number) for number in range(10)]

    async def main() -> None:
        async with crossing(certificates, way, 10, one_way=True) as it:
            pairs = [await it.pair() for _ in range(10)]
            for _, server in pairs:
                await server.send(b"nobody hears this")
            exchanges = []
            for (client, server), payload in zip(pairs, data, strict=True):
                exchanges += [client.exchange(payload), server.exchange(b"", len(payload))]
            await asyncio.gather(*exchanges)
            for (client, server), payload in zip(pairs, data, strict=True):
                assert peers.sha256(bytes(server.received)) == peers.sha256(payload)
                assert (client.received, client.end, server.end) == (b"", "fin", "fin")

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_passage_that_stands_still_keeps_no_other_waiting(run: Run, certificates: Certificates, way: str) -> None:
    async def main() -> None:
        async with crossing(certificates, way, 5) as it:
            *stalled, good = await it.pairs(5)
            floods = [asyncio.ensure_future(flood(client)) for client, _ in stalled]
            for _, server in stalled:  # which read nothing
                await until(lambda server=server: peers.unread(server.sock) > 0)
            data = peers.payload(3_000_000)
            await asyncio.gather(good[0].exchange(data, 1), good[1].exchange(b"", 1 + len(data)))
            assert peers.sha256(bytes(good[1].received[1:])) == peers.sha256(data)
            for flooding in floods:
                flooding.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            for client, server in stalled:
                client.reset()
                server.reset()

    run(main())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_is_told_to_its_own_other_end_only(run: Run, certificates: Certificates, way: str, who: str) -> None:
    async def main() -> None:
        async with crossing(certificates, way, 6) as it:
            pairs = await it.pairs(6)
            for client, server in pairs[::2]:
                lost, other = (client, server) if who == "client" else (server, client)
                lost.reset()
                await other.read_to_end()
                assert other.end in ("reset", "truncated")
                other.sock.close()
            await until(lambda: len(it.outcomes) == 3)
            assert {outcome.verdict for outcome in it.outcomes} <= {"reset", "truncated"}
            for client, server in pairs[1::2]:
                await ask(client, server, b"still here")
                await asyncio.gather(client.exchange(b""), server.exchange(b""))

    run(main())


@pytest.mark.parametrize("gate", ["hold", "queue", "refuse"])
def test_client_n_plus_1_is_treated_as_the_gate_says(run: Run, certificates: Certificates, gate: str) -> None:
    async def main() -> None:
        async with crossing(certificates, "kernel", 2, gate=gate) as it:
            pairs = await it.pairs(2)
            if gate == "refuse":
                with contextlib.suppress(ConnectionResetError):  # the reset may be faster than connect
                    third = await it.client()
                    await third.read_to_end()
                    assert third.end == "reset"
                    third.sock.close()
                await until(lambda: it.relayer.refused)
            connecting = asyncio.ensure_future(it.client()) if gate != "refuse" else None
            for client, server in pairs:
                await ask(client, server)
            assert len(it.relayer.counters) == 2
            assert "2 connections" in repr(it.relayer)
            await asyncio.gather(*(end.exchange(b"") for end in pairs[0]))
            third = await (connecting or _after(it, 1))
            server = await it.accept()
            await ask(third, server)
            await ask(*pairs[1])
            await asyncio.gather(*(end.exchange(b"") for end in (third, server, *pairs[1])))

    run(main())


async def _after(it: Crossing, count: int) -> witness.Witness:
    """Connect once so many have left."""
    await until(lambda: len(it.outcomes) == count)
    return await it.client()


def test_a_destination_that_does_not_shake_hands_keeps_no_other_client_waiting(
    run: Run, certificates: Certificates
) -> None:
    async def main() -> None:
        async with crossing(certificates, "plain to tls", 3, handshake_timeout=peers.TIMEOUT) as it:
            waiting = [await it.client() for _ in range(2)]
            silent = [await it.accept() for _ in range(2)]
            client, server = await it.pair()
            await ask(client, server, b"served at once")
            for end in silent:
                end.reset()
            for end in waiting:  # whose other end has failed
                await end.read_to_end()
                assert end.end == "reset"
                end.sock.close()
            await ask(client, server, b"still served")
            again = await it.pair()
            await ask(*again)
            await asyncio.gather(*(end.exchange(b"") for end in (client, server, *again)))

    run(main())


def test_clients_are_reset_while_the_destination_is_down_and_the_others_go_on(
    run: Run, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with crossing(certificates, "kernel", 3) as it:
            pair = await it.pair()
            there = it.listener.getsockname()[1]
            it.listener.close()
            for _ in range(3):
                with contextlib.suppress(OSError):  # the reset may be faster than connect
                    client = await it.client()
                    await client.read_to_end()
                    assert client.end == "reset"
                    client.sock.close()
            await ask(*pair)
            it.listener = socket.create_server(("127.0.0.1", there))
            it.listener.setblocking(False)
            with it.listener:
                again = await it.pair()
                await ask(*again)
                await asyncio.gather(*(end.exchange(b"") for end in (*pair, *again)))

    run(main())
    assert sum("connection refused" in message for message in caplog.messages) == 3


@pytest.mark.parametrize("how", ["stopped", "cancelled", "left"])
@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_ended_every_peer_is_reset(run: Run, certificates: Certificates, way: str, how: str) -> None:
    async def main() -> None:
        async with crossing(certificates, way, 9) as it:
            pairs = await it.pairs(8)
            dialled_for = await it.client()  # whose other end is not ready, under TLS
            assert it.serving is not None
            leaving = None
            if how == "stopped":
                assert it.relayer.stop()
                await it.serving
            elif how == "cancelled":
                it.serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await it.serving
            else:
                leaving = asyncio.ensure_future(it.relayer.__aexit__(None, None, None))
            for end in (*(end for pair in pairs for end in pair), dialled_for):
                await end.read_to_end()
                assert end.end in ("reset", "truncated"), end.end
                end.sock.close()
            if leaving is not None:
                await leaving
            assert it.relayer.counters == []
            assert len(it.outcomes) >= 8

    run(main())


@pytest.mark.parametrize("way", ["kernel", "plain to tls"])
def test_it_can_be_cancelled_at_each_turn_of_the_loop(run: Run, certificates: Certificates, way: str) -> None:
    async def attempt(turns: int) -> bool:
        async with crossing(certificates, way, 3) as it:
            clients = [await it.client() for _ in range(3)]
            assert it.serving is not None
            for _ in range(turns):
                await asyncio.sleep(0)
            relaying = bool(it.relayer.counters)
            it.serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await it.serving
            for client in clients:
                client.sock.close()
            return relaying or turns == 40

    async def main() -> None:
        turns = 0
        while not await attempt(turns):
            turns += 1
        for more in range(1, 6):
            await attempt(turns + more)

    run(main())


def test_where_both_ends_listen_clients_are_paired_in_the_order_they_come(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        relayer = ringmain.relay("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", listen=True, max_connections=4)
        async with relayer:
            serving = asyncio.ensure_future(relayer.serve())
            sources = [await witness.connect(relayer.source.port) for _ in range(4)]
            sources[1].reset()  # nobody is to be paired with it
            del sources[1]
            await until(lambda: "reset the connection before the other side answered" in caplog.text)
            servers = [await witness.connect(relayer.destination.port) for _ in range(3)]
            for number, (source, server) in enumerate(zip(sources, servers, strict=True)):
                await ask(source, server, b"number %d" % number)
            await asyncio.gather(*(end.exchange(b"") for end in (*sources, *servers)))
            relayer.stop()
            await serving

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_each_proxy_header_belongs_to_its_own_client(run: Run, certificates: Certificates, tls: bool) -> None:
    async def main() -> None:
        way = "tls to plain" if tls else "block"
        async with crossing(certificates, way, 10, accept_proxy=True, send_proxy="v1") as it:
            clients = []
            for number in range(10):
                client = await it.client()
                header = b"PROXY TCP4 192.0.2.%d 198.51.100.1 %d 443\r\n" % (number, 1000 + number)
                await asyncio.get_running_loop().sock_sendall(client.sock, header)
                await client.shake_hands()
                await client.send(b"%d\n" % number)
                clients.append(client)
            heard = set()
            servers = [await it.accept() for _ in range(10)]
            for server in servers:
                while server.received.count(b"\n") < 2:
                    await server.read_to_end(len(server.received) + 1)
                told, number = bytes(server.received).splitlines()
                assert told == b"PROXY TCP4 192.0.2.%d 198.51.100.1 %d 443" % (int(number), 1000 + int(number))
                heard.add(int(number))
            assert heard == set(range(10))
            await asyncio.gather(*(end.exchange(b"") for end in (*clients, *servers)))
            await until(lambda: len(it.outcomes) == 10)
            assert {outcome.source.peer for outcome in it.outcomes} == {f"192.0.2.{n}:{1000 + n}" for n in range(10)}

    run(main())


def test_what_on_end_raises_ends_all(run: Run, certificates: Certificates) -> None:
    class OopsError(Exception):
        pass

    def raise_it(_: object) -> None:
        raise OopsError

    async def main() -> None:
        async with crossing(certificates, "kernel", 3) as it:
            pairs = await it.pairs(3)
            it.relayer.on_end = raise_it
            await asyncio.gather(*(end.exchange(b"") for end in pairs[0]))
            assert it.serving is not None
            with pytest.raises(OopsError):
                await it.serving
            it.serving = None
            for end in (*pairs[1], *pairs[2]):
                await end.read_to_end()
                assert end.end == "reset"
                end.sock.close()

    run(main())


@pytest.mark.parametrize("options", [{"listen_once": True}, {"connect": True}, {"max_connections": 0}])
def test_many_of_what_there_is_but_one_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ringmain.UsageError, match="max_connections"):
        ringmain.relay("tcp://:0", "tcp://:1", **{"max_connections": 2, **options})

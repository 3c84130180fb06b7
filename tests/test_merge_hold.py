"""Records of many connections wait for others until a block is half full, for `linger` at most, and never for nothing.

A linger of an hour lasts as long as any test: what comes in spite of it did not wait for that.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
from conftest import Certificates
from framed import KINDS, cut, framed
from merging import Sockets, Sums, merger, records, taken, until

from ringmain._counters import Counters
from ringmain._member import Member
from ringmain._ring import Ring
from ringmain.flow.blocks import cutter_for

Run = Callable[[Coroutine[Any, Any, Any]], Any]
HOUR = 3600.0
BLOCK = 1 << 14
FULL = BLOCK // 2
LONGEST = 3000


class Two:
    """Two peers of one merger, and how a record is sent so that it has arrived there."""

    def __init__(self, sockets: Sockets, linger: float = HOUR, **options: Any) -> None:
        self.merging = merger(Ring(4 * BLOCK, BLOCK), linger=linger, **options)
        (self.peer, link), (self.other_peer, other_link) = sockets.connect(), sockets.connect()
        self.member, self.other = (self.merging.add(it, Counters()) for it in (link, other_link))

    async def send(self, data: bytes, *, other: bool = False) -> None:
        """Send little enough for the kernel, and let it arrive."""
        peer, member = (self.other_peer, self.other) if other else (self.peer, self.member)
        wanted = member.counters.bytes_in + len(data)
        peer.sendall(data)
        await until(lambda: member.counters.bytes_in == wanted)

    def close(self) -> None:
        """Stop both, and all."""
        for member in (self.member, self.other):
            member.stop()
        self.merging.close()


def test_a_lone_record_waits_for_none_and_what_follows_until_there_is_a_block(run: Run) -> None:
    async def main() -> None:
        with Sockets() as sockets:
            both = Two(sockets)
            await both.send(b"lone\n")
            assert taken(both.merging) == b"lone\n"
            waiting, sent = both.merging.wait(), 0
            while sent < FULL:
                assert both.merging.take() is None
                assert not waiting.done()
                await both.send(b"x" * 99 + b"\n", other=sent % 200 == 0)
                sent += 100
            await waiting
            block = both.merging.take()
            assert block is not None
            with block:
                assert (len(block), both.merging.take()) == (sent, None)
            both.close()

    run(main())


def test_all_that_a_full_block_has_is_told_apart_without_waiting(run: Run) -> None:
    async def main() -> None:
        with Sockets() as sockets:
            both, sent = Two(sockets), [b"0\n"]
            await both.send(sent[0])
            assert taken(both.merging) == sent.pop()
            while sum(map(len, sent)) < FULL:
                assert both.merging.take_tagged() is None
                sent.append(b"%d\n" % len(sent) * 50)
                await both.send(sent[-1], other=len(sent) % 2 == 0)
            got: list[tuple[Member, bytes]] = []
            while (found := both.merging.take_tagged()) is not None:
                with found[1]:
                    got.append((found[0], bytes(found[1])))
            members = [both.member, both.other]
            assert got == [(members[index % 2], data) for index, data in enumerate(sent)]
            await both.send(b"next\n")
            assert both.merging.take_tagged() is None
            both.close()

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_a_flood_are_full_whatever_tells_where_records_end(
    run: Run, certificates: Certificates, kind: str
) -> None:
    chance = random.Random(kind)
    sizes = [1, 20, 200] if kind.startswith("length:1") else [1, 20, 200, LONGEST]
    count = 6

    def stream() -> bytes:
        contents = (chance.randbytes(chance.choice(sizes)) for _ in range(2000))
        return b"".join(framed(kind, it.translate(None, b"\0\r\n<") or b"x") for it in contents)

    async def main() -> None:
        got, small, ended = bytearray(), 0, []
        cutter = cutter_for({"nul": b"\0", "crlf": b"\r\n"}.get(kind, b""), kind)
        assert cutter is not None
        merging = merger(Ring(1 << 22, BLOCK), cutter, linger=HOUR)
        with Sockets(certificates) as sockets:
            sent = []
            for number in range(count):
                peer, link = sockets.connect(tls=number % 2 == 0)
                merging.add(link, Counters()).on_end = lambda number=number: ended.append(number)
                sent.append(stream())
                sockets.send(peer, sent[-1], chance)
            while len(ended) < count:
                while (block := merging.take()) is not None:
                    with block:
                        small += len(block) < FULL
                        got += block
                if len(ended) < count:
                    await merging.wait()
            got += taken(merging)
        # The first, those that are let go by an end, and the rest of the same block; and the last one before a stall.
        assert small <= 2 * (1 + count + merging.stalls)
        found = cut(kind, bytes(got))
        assert (found.end, len(got)) == ("whole", sum(map(len, sent)))
        assert sorted(map(bytes, found.frames)) == sorted(bytes(it) for data in sent for it in cut(kind, data).frames)
        merging.close()

    run(main())


def _ends(both: Two) -> bytes:
    both.other_peer.shutdown(socket.SHUT_WR)
    return b"rest\n"


def _breaks(both: Two) -> bytes:
    peers.close_with_reset(both.other_peer)
    return b""


def _is_stopped(both: Two) -> bytes:
    both.other.stop()
    return b""


def _is_hung_up(both: Two) -> bytes:
    both.other.hang_up()
    both.other.link.hang_up()
    return b""


@pytest.mark.parametrize("end", [_ends, _breaks, _is_stopped, _is_hung_up])
def test_nothing_waits_once_any_stream_has_ended(run: Run, end: Callable[[Two], bytes]) -> None:
    async def main() -> None:
        with Sockets() as sockets:
            both = Two(sockets, terminator=b"\n")
            await both.send(b"lone\n")
            assert taken(both.merging) == b"lone\n"
            await both.send(b"theirs\n")
            await both.send(b"its\nrest", other=True)
            assert both.merging.take() is None
            waiting, told = both.merging.wait(), []
            both.other.on_end = lambda: told.append(both.merging.take())
            last = end(both)
            await waiting
            assert [bytes(it) if it is not None else it for it in told] == [b"theirs\nits\n" + last]
            assert both.merging.take() is None
            told.clear()
            both.close()

    run(main())


def test_a_ring_that_is_full_holds_nothing_back(run: Run) -> None:
    data = b"".join(records(1, 3000, [0, 10, 100]))

    async def main() -> None:
        sums, held, stalls = Sums(), [], 0
        merging = merger(Ring(4 * BLOCK, BLOCK), linger=HOUR)
        with Sockets() as sockets:
            members = []
            for _ in range(3):
                peer, link = sockets.connect()
                members.append(sums.watch(merging.add(link, Counters())))
                sockets.send(peer, data)
            while len(sums.ended) < len(members):
                while (found := merging.take_tagged()) is not None:
                    sums.count(*found)
                    held.append(found)
                if merging.paused:  # so all that is whole was there to take
                    stalls += 1
                    whole = sum(it.counters.bytes_in for it in members) - sum(sums.sizes.values())
                    assert whole <= len(members) * 101
                    for _, view in held:
                        view.release()
                    held.clear()
                    await until(lambda: not merging.paused)
                elif len(sums.ended) < len(members):
                    await merging.wait()
            await sums.take_all(merging)
            held.clear()
        assert stalls >= 1
        assert {sums.digests[it].hexdigest() for it in members} == {peers.sha256(data)}
        merging.close()

    run(main())


@pytest.mark.parametrize("linger", [0.02, 0.001, 1e-6])
def test_what_nobody_adds_to_comes_by_itself(run: Run, linger: float) -> None:
    async def main() -> None:
        with Sockets() as sockets:
            both = Two(sockets, linger)
            for number in range(50):
                text = b"%d\n" % number
                await both.send(text, other=number % 2 == 0)
                got = taken(both.merging)
                while not got:
                    await both.merging.wait()
                    got = taken(both.merging)
                assert got == text
            both.close()

    run(main())


def test_what_is_begun_behind_full_blocks_comes_by_itself_too(run: Run) -> None:
    data = b"".join(records(1, 300, [99]))

    async def main() -> None:
        with Sockets() as sockets:
            both = Two(sockets, 0.05)
            for _ in range(3):
                await both.send(data)
                await both.send(b"x\n")
                got = taken(both.merging)
                while len(got) < len(data) + 2:
                    await both.merging.wait()
                    got += taken(both.merging)
                assert got == data + b"x\n"
            both.close()

    run(main())


def test_whoever_gives_up_waiting_loses_nothing(run: Run) -> None:
    async def main() -> None:
        with Sockets() as sockets:
            both, got = Two(sockets, 0.005), b""
            for number in range(100):
                both.peer.sendall(b"%d\n" % number)
                both.merging.wait().cancel()
                await asyncio.sleep(0)
                got += taken(both.merging)
            while got.count(b"\n") < 100:
                await both.merging.wait()
                got += taken(both.merging)
            assert got.split() == [b"%d" % number for number in range(100)]
            both.close()

    run(main())


def test_what_waits_is_forgotten_with_the_merger_and_its_timer_too(run: Run) -> None:
    async def main() -> None:
        with Sockets() as sockets:
            both = Two(sockets)
            await both.send(b"lone\n")
            assert taken(both.merging) == b"lone\n"
            await both.send(b"waits\n")
            waiting = both.merging.wait()
            both.merging.close()
            await waiting
            assert both.merging.take() is None
            assert both.merging.wait().done()

    run(main())


def test_without_a_linger_nothing_waits_and_there_is_no_timer(run: Run) -> None:
    async def main() -> None:
        with Sockets() as sockets:
            both = Two(sockets, 0.0)
            for number in range(20):
                await both.send(b"%d\n" % number)
                assert taken(both.merging) == b"%d\n" % number
            both.close()

    run(main())

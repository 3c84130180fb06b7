"""Many connections into one ring: whose turn it is, what happens where there is no room, and who may come between."""

import asyncio
import gc
import os
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
import streams
from conftest import FORGOTTEN, Certificates
from merging import Sockets, Sums, merger, records, taken, until

from ringmain._counters import Counters
from ringmain._member import Member
from ringmain._merge import Merger
from ringmain._ring import Ring
from ringmain.net.link import Link

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SIZES = [0, 1, 400, 400, 5000, 70_000]


def test_a_consumer_that_holds_all_blocks_makes_every_peer_wait_and_loses_nothing(
    run: Run, certificates: Certificates
) -> None:
    async def main() -> None:
        sums, sent, held = Sums(), {}, []
        ring = Ring(1 << 17, 1 << 15)
        merging = merger(ring, max_record=1 << 18)
        with Sockets(certificates) as sockets:
            for number in range(6):
                peer, link = sockets.connect(tls=number % 2 == 0)
                data = b"".join(records(number, 60, [*SIZES, 250_000]))
                sent[sums.watch(merging.add(link, Counters()))] = data
                sockets.send(peer, data)
            for _ in range(10):
                while (found := merging.take_tagged()) is not None or not (merging.paused and ring.starved):
                    if found is not None:
                        held.append(found)
                    else:
                        await merging.wait()
                assert all(member.paused for member in sent)
                assert sum(len(view) for _, view in held) <= ring.memory <= (1 << 17) + (1 << 18)
                random.Random(1).shuffle(order := list(held))
                for member, view in held:
                    sums.count(member, view)
                for _, view in order:
                    view.release()
                held.clear()
                del order, view
            await sums.take_all(merging)
        for member, data in sent.items():
            assert sums.digests[member].hexdigest() == peers.sha256(data)
            assert member.counters.stalls >= 10
            assert member.counters.stalled_seconds > 0
        merging.close()

    run(main())


def test_a_quiet_peer_has_its_turn_among_floods_into_a_consumer_that_is_slower(run: Run) -> None:
    size, floods = 1 << 20, 8

    async def main() -> None:
        merging = merger(Ring(size, size // 4), b"\0")
        with Sockets() as sockets:
            flooding = [sockets.connect() for _ in range(floods)]
            quiet_peer, link = sockets.connect()
            members = [merging.add(it, Counters()) for _, it in flooding]
            quiet = merging.add(link, Counters())
            ends = [streams.flood(peer) for peer, _ in flooding]
            for _ in range(20):
                await until(lambda: merging.paused)
                quiet_peer.sendall(b"quiet\0")
                await until(lambda: link.unread() > 0 or quiet.counters.bytes_in % 6 == 0)
                passed = 0
                while (found := merging.take_tagged()) is None or found[0] is not quiet:
                    if found is not None:
                        passed += len(found[1])
                        found[1].release()
                    await asyncio.sleep(0)
                    await until(lambda: merging.paused)
                # What the ring had, and a round: everybody's part of the ring, and the rest of a block each.
                assert passed <= 4 * size
                assert found[1] == b"quiet\0"
                found[1].release()
            for end in ends:
                end()
            for member in [*members, quiet]:
                member.stop()
        merging.close()

    run(main())


@pytest.mark.parametrize("how", ["stop", "end"])
def test_a_large_record_for_which_there_is_no_room_comes_before_the_end_is_told(run: Run, how: str) -> None:
    async def main() -> None:
        sums, held = Sums(), []
        ring = Ring(1 << 16, 1 << 14)
        merging = merger(ring, max_record=1 << 20, terminator=b"\n")
        with Sockets() as sockets:
            (peer, link), (other_peer, other_link) = sockets.connect(), sockets.connect()
            member, other = (sums.watch(merging.add(it, Counters())) for it in (link, other_link))
            record = b"x" * 100_000 + b"\n"
            peer.sendall(record[:50_000])
            await until(lambda: member.counters.bytes_in == 50_000)
            for count in range(1, 5):
                other_peer.sendall(b"y" * 13_999 + b"\n")
                await until(lambda: other.counters.bytes_in == 14_000 * count)  # noqa: B023 - awaited at once
                held.append(merging.take_tagged())
            peer.sendall(record[50_000:] + b"rest")
            if how == "end":
                peer.close()
            await until(lambda: merging.paused and member.counters.bytes_in == len(record) + 4)
            if how == "stop":
                member.stop()
                assert (member.verdict, member.dropped) == ("stopped", 4)
            for _ in range(3):
                await asyncio.sleep(0)
            assert not sums.ended
            for found in held:
                found[1].release()
            held.clear()
            await until(lambda: sums.ended)
            await until(lambda: not merging.paused)
            while sums.take(merging):
                pass
            assert sums.digests[member].hexdigest() == peers.sha256(record + b"rest\n" * (how == "end"))
            assert member.verdict == ("stopped" if how == "stop" else "ended")
            other.stop()
        merging.close()

    run(main())


def test_what_openssl_has_already_comes_though_the_socket_has_nothing(run: Run, certificates: Certificates) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 16, 1 << 14))
        with Sockets(certificates) as sockets:
            peer, link = sockets.connect(tls=True)
            data = b"".join(records(1, 50, [999]))  # one read takes it all from the kernel, and decrypts a block of it
            peer.sendall(data)
            await until(lambda: link.unread() > len(data))
            member = sums.watch(merging.add(link, Counters()))
            while member.counters.bytes_in < len(data):
                await merging.wait()
                while sums.take(merging):
                    pass
            assert sums.digests[member].hexdigest() == peers.sha256(data)
            member.stop()
        merging.close()

    run(main())


def test_views_of_one_block_are_of_one_peer_each_and_give_it_back_together(run: Run) -> None:
    async def main() -> None:
        ring = Ring(1 << 16, 1 << 14)
        merging = merger(ring)
        with Sockets() as sockets:
            both = [sockets.connect() for _ in range(2)]
            members = [merging.add(link, Counters()) for _, link in both]
            for text in (b"one\n", b"two\n"):
                for (peer, _), member in zip(both, members, strict=True):
                    before = member.counters.bytes_in
                    peer.sendall(text)
                    await until(lambda: member.counters.bytes_in > before)  # noqa: B023 - awaited at once
            found = [merging.take_tagged() for _ in range(5)]
            assert found.pop() is None
            pieces = [it for it in found if it is not None]
            assert [(members.index(member), bytes(view)) for member, view in pieces] == [
                *((0, b"one\n"), (1, b"one\n")),
                *((0, b"two\n"), (1, b"two\n")),
            ]
            assert ring.lent == 1
            assert [member.counters.blocks for member in members] == [2, 2]
            del found, pieces
            assert ring.lent == 0
            for member in members:
                member.stop()
        merging.close()

    run(main())


def test_short_records_of_peers_in_turn_stop_where_telling_them_apart_takes_more_room_than_they_do(run: Run) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 16, 1 << 14))
        with Sockets() as sockets:
            both = [sockets.connect() for _ in range(2)]
            members = [sums.watch(merging.add(link, Counters())) for _, link in both]
            count = 0
            while not merging.paused:
                peer = both[count % 2][0]
                before = members[count % 2].counters.bytes_in
                peer.sendall(b"\n")
                count += 1
                await until(lambda: merging.paused or members[(count - 1) % 2].counters.bytes_in > before)  # noqa: B023
                assert count < 10_000
            await until(lambda: sums.take(merging))
            await until(lambda: not merging.paused)
            for peer, _ in both:
                peer.shutdown(socket.SHUT_WR)
            await sums.take_all(merging)
            assert sum(sums.sizes.values()) == count
        merging.close()

    run(main())


def test_hundreds_may_end_at_once(run: Run) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 16, 1 << 14), terminator=b"\n")
        with Sockets() as sockets:
            links = []
            for number in range(300):
                peer, link = sockets.connect()
                peer.sendall(b"%d\n" % number + b"rest")
                peer.close()
                links.append(link)
            numbers = {sums.watch(merging.add(link, Counters())): number for number, link in enumerate(links)}
            await sums.take_all(merging)
        assert len(set(sums.ended)) == len(sums.ended) == 300
        for member, number in numbers.items():
            assert sums.digests[member].hexdigest() == peers.sha256(b"%d\nrest\n" % number)
        merging.close()

    run(main())


def test_one_consumer_waits_at_a_time_and_whoever_is_cancelled_takes_nothing_away(run: Run) -> None:
    async def main() -> None:
        merging = merger(Ring(1 << 16, 1 << 14))
        with Sockets() as sockets:
            peer, link = sockets.connect()
            member = merging.add(link, Counters())
            waiting = asyncio.ensure_future(merging.wait())
            with pytest.raises(RuntimeError, match="already waiting"):
                merging.wait()
            waiting.cancel()
            await asyncio.sleep(0)
            again = merging.wait()
            peer.sendall(b"one\n")
            await again
            assert merging.wait().done()
            assert taken(merging) == b"one\n"
            assert merging.take() is None
            later = merging.wait()
            assert not later.done()
            member.stop()
            await later
            last = merging.wait()
            assert not last.done()
            merging.close()
            assert last.done()
            assert merging.wait().done()
            assert merging.take_tagged() is None

    run(main())


def test_a_socket_that_was_closed_before_it_was_stopped_gives_way_to_the_next_with_its_number(run: Run) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 16, 1 << 14))
        with Sockets() as sockets:
            (_, first), (peer, second) = sockets.connect(), sockets.connect(loose=True)
            before = sums.watch(merging.add(first, Counters()))
            fd = first.fd
            first.close()
            with socket.socket(fileno=os.dup2(second.fd, fd)) as sock:
                sock.setblocking(False)
                second.close()
                link = Link(sock, "the next")
                member = sums.watch(merging.add(link, Counters()))
                assert before.verdict == "stopped"
                peer.sendall(b"one\n")
                peer.close()
                await sums.take_all(merging)
                link.close()
            assert sums.sizes == {before: 0, member: 4}
        merging.close()

    run(main())


@FORGOTTEN
def test_a_merger_that_is_forgotten_with_all_that_it_has_leaves_nothing_behind(run: Run) -> None:
    async def main() -> None:
        merging: Merger = merger(Ring(1 << 16, 1 << 14))
        with Sockets() as sockets:
            peer, link = sockets.connect()
            member: Member = merging.add(link, Counters())
            peer.sendall(b"one\nrest")
            await merging.wait()
            view = merging.take()
            member.on_end = lambda: (member, view, merging)  # a cycle with all of it in it
            peer.sendall(b"x" * 100_000 + b"\ntwo\n")
            await until(lambda: member.counters.bytes_in > 90_000)

    run(main())
    gc.collect()

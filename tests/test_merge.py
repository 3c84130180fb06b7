"""Many connections into one ring, whole records only: that each record comes, once, in order, and how streams end."""

import asyncio
import functools
import random
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
from conftest import Certificates
from merging import Sockets, Sums, every_split, merger, records, taken, until

from ringmain._counters import Counters
from ringmain._delimiter import Delimiter
from ringmain._member import Member
from ringmain._merge import Merger
from ringmain._ring import Ring

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SIZES = [0, 0, 1, 3, 100, 400, 400, 400, 5000, 70_000]


@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "in pieces"])
def test_every_record_of_plain_and_tls_peers_comes_once_in_order(
    run: Run, certificates: Certificates, pieces: bool
) -> None:
    async def main() -> None:
        sums, sent = Sums(), {}
        merging = merger(Ring(1 << 20, 1 << 17))
        with Sockets(certificates) as sockets:
            for number in range(12):
                peer, link = sockets.connect(tls=number % 4 == 0)
                large = [3_000_000 - number] if number % 3 == 0 else []
                data = b"".join(records(number, 40, [*SIZES * 2, *large]))
                sent[sums.watch(merging.add(link, Counters()))] = data
                sockets.send(peer, data, random.Random(number) if pieces else None)
            await sums.take_all(merging)
        for member, data in sent.items():
            assert sums.digests[member].hexdigest() == peers.sha256(data)
            assert (member.verdict, member.error, member.dropped) == ("ended", None, 0)
            assert member.taken == member.counters.bytes_in == len(data)
            assert not member.paused
        assert len(set(sums.ended)) == len(sums.ended) == 12
        assert merging.ring.memory <= (1 << 20) + (4 << 20)
        merging.close()

    run(main())


def test_what_is_merged_has_every_record_once_and_each_peers_in_order(run: Run, certificates: Certificates) -> None:
    async def main() -> bytes:
        merging, got = merger(Ring(1 << 18, 1 << 15)), bytearray()
        ended: list[int] = []
        with Sockets(certificates) as sockets:
            for number in range(8):
                peer, link = sockets.connect(tls=number % 2 == 0)
                lines = enumerate(records(number, 300, SIZES))
                merging.add(link, Counters()).on_end = lambda number=number: ended.append(number)
                sockets.send(peer, b"".join(b"%d:%d:%b" % (number, at, line) for at, line in lines))
            while len(ended) < 8:
                await merging.wait()
                got += taken(merging)
            got += taken(merging)
        assert sorted(ended) == list(range(8))
        merging.close()
        return bytes(got)

    by_peer: dict[int, list[bytes]] = {number: [] for number in range(8)}
    for line in run(main()).split(b"\n")[:-1]:
        number, at, rest = line.split(b":", 2)
        assert int(at) == len(by_peer[int(number)])
        by_peer[int(number)].append(rest + b"\n")
    for number, lines in by_peer.items():
        assert lines == records(number, 300, SIZES)


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"aba", b"--end--"], ids=repr)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_stream_may_be_split_anywhere_in_a_record_or_its_delimiter(
    run: Run, certificates: Certificates, delimiter: bytes, tls: bool
) -> None:
    data = delimiter.join([b"one", b"", delimiter[:-1] + b"x", b"four", b""])
    whole = [len(delimiter.join([*data.split(delimiter)[:count], b""])) for count in range(5)]

    async def main() -> None:
        merging = merger(Ring(1 << 16, 1 << 14), delimiter)
        with Sockets(certificates) as sockets:
            peer, link = sockets.connect(tls=tls)
            member = merging.add(link, Counters())
            counters, sent = member.counters, 0
            for first, second in every_split(data):
                got = b""
                for part in (first, second):
                    peer.sendall(part)
                    sent += len(part)
                    await until(lambda: counters.bytes_in == sent)  # noqa: B023 - awaited at once
                    got += taken(merging)
                    assert len(got) == max(size for size in whole if size <= len(data if part is second else first))
                assert got == data
            member.stop()
            assert (member.verdict, member.dropped) == ("stopped", 0)
        merging.close()

    run(main())


@pytest.mark.parametrize("max_record", [16, 100, 5000])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "in pieces"])
def test_long_records_are_left_out_and_the_others_come(
    run: Run, certificates: Certificates, max_record: int, tls: bool, pieces: bool
) -> None:
    sizes = [0, 1, 5, max_record - 3, max_record - 2, max_record - 1, max_record, 3 * max_record, 20_000]

    async def main() -> None:
        sums, good = Sums(), {}
        offsets: list[int] = []
        merging = merger(Ring(1 << 13, 1 << 11), b"\r\n", max_record, skips=True)
        with Sockets(certificates) as sockets:
            for number in range(4):
                lines = records(number, 150, sizes, b"\r\n")
                peer, link = sockets.connect(tls=tls)
                member = sums.watch(merging.add(link, Counters()))
                member.on_skip = offsets.append
                good[member] = lines
                sockets.send(peer, b"".join(lines), random.Random(number) if pieces else None)
            await sums.take_all(merging, b"\r\n")
        for member, lines in good.items():
            kept = [line for line in lines if len(line) <= max_record]
            assert sums.digests[member].hexdigest() == peers.sha256(b"".join(kept))
            assert member.counters.skipped_records == len(lines) - len(kept)
            assert member.counters.skipped_bytes == sum(map(len, lines)) - sum(map(len, kept))
            assert member.counters.bytes_in == sum(map(len, lines))
            first = next(at for at, line in enumerate(lines) if len(line) > max_record)
            assert sum(map(len, lines[:first])) in offsets
        assert len(offsets) == 4
        merging.close()

    run(main())


@pytest.mark.parametrize("size", [101, 2000, 50_000])
@pytest.mark.parametrize("has_end", [False, True], ids=["without end", "with end"])
def test_a_long_record_stops_its_stream_and_no_other(run: Run, size: int, has_end: bool) -> None:
    before = b"".join(b"%d\n" % number for number in range(1000))

    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 13, 1 << 11), b"\n", 100)
        with Sockets() as sockets:
            for tail in (b"x" * size + b"\n" * has_end, b"good\n"):
                peer, link = sockets.connect()
                sums.watch(merging.add(link, Counters()))
                sockets.send(peer, before + tail)
            await sums.take_all(merging)
        bad, good = sums.digests
        assert sums.digests[bad].hexdigest() == peers.sha256(before)
        assert bad.verdict == "stopped"
        assert isinstance(bad.error, OverflowError)
        assert str(bad.error) == f"the record at offset {len(before)} is longer than 100 bytes"
        assert bad.dropped == bad.counters.bytes_in - len(before)
        assert sums.digests[good].hexdigest() == peers.sha256(before + b"good\n")
        assert good.verdict == "ended"
        merging.close()

    run(main())


# What is behind the last delimiter, the terminator, and what is made of that.
LASTS = [
    (b"", b"\n", b"", 0),
    (b"rest", b"\n", b"rest\n", 0),
    (b"rest", b"", b"", 4),
    (b"x" * 99, b"\n", b"x" * 99 + b"\n", 0),
]


@pytest.mark.parametrize(("rest", "terminator", "last", "dropped"), LASTS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_proper_end_completes_the_last_record_or_drops_it(
    run: Run, certificates: Certificates, rest: bytes, terminator: bytes, last: bytes, dropped: int, tls: bool
) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 12, 1 << 10), b"\n", 100, terminator=terminator)
        with Sockets(certificates) as sockets:
            peer, link = sockets.connect(tls=tls)
            member = sums.watch(merging.add(link, Counters()))
            sockets.send(peer, b"first\n" + rest)
            await sums.take_all(merging)
        assert sums.digests[member].hexdigest() == peers.sha256(b"first\n" + last)
        assert (member.verdict, member.dropped) == ("ended", dropped)
        merging.close()

    run(main())


@pytest.mark.parametrize("skips", [False, True], ids=["stop", "skip"])
def test_a_last_record_that_its_terminator_makes_too_long_is_none(run: Run, skips: bool) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 12, 1 << 10), b"\r\n", 100, terminator=b"\r\n", skips=skips)
        with Sockets() as sockets:
            peer, link = sockets.connect()
            member = sums.watch(merging.add(link, Counters()))
            sockets.send(peer, b"first\r\n" + b"x" * 99)
            await sums.take_all(merging, b"\r\n")
        assert sums.digests[member].hexdigest() == peers.sha256(b"first\r\n")
        assert (member.verdict, member.dropped) == (("ended", 0) if skips else ("stopped", 99))
        assert member.counters.skipped_bytes == (99 if skips else 0)
        assert (member.error is None) == skips
        merging.close()

    run(main())


def _reset(peer: socket.socket) -> None:
    peers.close_with_reset(peer)


def _truncate(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    ("tls", "end", "verdict", "error"),
    [
        (False, _reset, "reset", ConnectionResetError),
        (True, _truncate, "truncated", ssl.SSLEOFError),
        (True, _reset, "reset", ConnectionResetError),
    ],
)
@pytest.mark.parametrize("size", [4, 200_000])
def test_a_stream_that_breaks_keeps_its_whole_records_and_counts_the_rest(
    run: Run,
    certificates: Certificates,
    tls: bool,
    end: Callable[[socket.socket], None],
    verdict: str,
    error: type[Exception],
    size: int,
) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 20, 1 << 18), terminator=b"\n")
        with Sockets(certificates) as sockets:
            peer, link = sockets.connect(tls=tls)
            member = sums.watch(merging.add(link, Counters()))
            data = b"first\n" + b"x" * size
            peer.sendall(data)
            await until(lambda: member.counters.bytes_in == len(data))
            end(peer)
            await sums.take_all(merging)
        assert sums.digests[member].hexdigest() == peers.sha256(b"first\n")
        assert (member.verdict, member.dropped) == (verdict, size)
        assert isinstance(member.error, error)
        merging.close()

    run(main())


def test_a_reset_behind_the_last_bytes_is_heard_after_them(run: Run) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 16, 1 << 14))
        with Sockets() as sockets:
            peer, link = sockets.connect()
            data = b"".join(records(1, 100, [400]))
            peer.sendall(data)
            await until(lambda: link.unread() == len(data))
            peers.close_with_reset(peer)
            member = sums.watch(merging.add(link, Counters()))
            await sums.take_all(merging)
        assert sums.digests[member].hexdigest() == peers.sha256(data)
        assert member.verdict == "reset"
        merging.close()

    run(main())


def test_a_stream_that_is_stopped_keeps_what_was_whole(run: Run) -> None:
    async def main() -> None:
        sums = Sums()
        merging = merger(Ring(1 << 16, 1 << 14), terminator=b"\n")
        with Sockets() as sockets:
            members = []
            for _ in range(3):
                peer, link = sockets.connect()
                members.append(sums.watch(merging.add(link, Counters())))
                peer.sendall(b"first\nrest")
            await until(lambda: all(member.counters.bytes_in == 10 for member in members))
            members[0].stop("timed out")
            members[1].stop("stopped", LookupError("why"))
            for _ in range(2):
                members[0].stop()
            members[2].hang_up()
            members[2].link.hang_up()
            await sums.take_all(merging)
        assert [(it.verdict, it.dropped) for it in members] == [("timed out", 4), ("stopped", 4), ("stopped", 4)]
        assert isinstance(members[1].error, LookupError)
        assert all(size == 6 for size in sums.sizes.values())
        assert len(sums.ended) == 3
        merging.close()

    run(main())


def test_an_end_is_told_once_when_the_ring_has_all_that_came_before(run: Run, certificates: Certificates) -> None:
    async def main() -> None:
        merging = merger(Ring(1 << 16, 1 << 14), terminator=b"\n")
        sums, wrong = Sums(), []

        def on_end(member: Member, size: int) -> None:
            while sums.take(merging):
                pass
            sums.ended.append(member)
            if sums.sizes[member] != size or member.taken != size:
                wrong.append((sums.sizes[member], size))

        with Sockets(certificates) as sockets:
            for number in range(60):
                peer, link = sockets.connect(tls=number % 10 == 0)
                data = b"".join(records(number, 20, SIZES)) + b"rest"
                member = sums.watch(merging.add(link, Counters()))
                member.on_end = functools.partial(on_end, member, len(data) + 1)
                sockets.send(peer, data)
            await sums.take_all(merging)
        assert not wrong
        assert len(set(sums.ended)) == len(sums.ended) == 60
        merging.close()

    run(main())


def test_what_cannot_be_merged_is_refused(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="must not have a delimiter"):
            merger(Ring(1 << 12, 1 << 10, b"\n"))
        with pytest.raises(ValueError, match="at least its delimiter"):
            merger(Ring(1 << 12, 1 << 10), b"\r\n", 1)
        merging = merger(Ring(1 << 12, 1 << 10))
        merging.close()
        merging.close()
        with Sockets() as sockets:
            _, link = sockets.connect()
            with pytest.raises(RuntimeError, match="closed"):
                merging.add(link, Counters())
            other = merger(Ring(1 << 12, 1 << 10))
            link.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                other.add(link, Counters())
            other.close()
        Merger(asyncio.get_running_loop(), Ring(1 << 12, 1 << 10), Delimiter(b"\n"), 100).close()

    run(main())

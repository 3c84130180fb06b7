"""Hundreds of clients at once, through faults: no record is torn, lost or mixed, whatever befalls the others.

The seed is printed; `RINGMAIN_STORM_SEED=7` runs that one instead, and `RINGMAIN_STORM=1000` has so many clients at
each port, in place of 20, who stall for seconds too.
"""

import asyncio
import collections
import hashlib
import itertools
import os
import random
import re
import resource
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
import storm
import uvloop
from conftest import Certificates
from framed import KINDS
from storm import Storm

import ringmain
from ringmain.outcome import Outcome

Run = Callable[..., Any]
COUNT = int(os.environ.get("RINGMAIN_STORM", "20"))
LIMIT = peers.TIMEOUT + COUNT
LOOPS = [uvloop.new_event_loop, asyncio.new_event_loop]
ENDS_OF_RECORDS = ["\n", "\r\n--", *KINDS]
HEAD = re.compile(rb"(?:<\d>)?#(\d+) (\d+) ([0-9a-f]{8}) ")
pytestmark = pytest.mark.timeout(LIMIT + peers.TIMEOUT)


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    storm.open_many()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Tagged:
    """What came of each peer, as a hash: each is a whole number of a client's records, from the first one on."""

    def __init__(self) -> None:
        self._sums: collections.defaultdict[str, Any] = collections.defaultdict(hashlib.sha256)
        self._sizes: collections.Counter[str] = collections.Counter()
        self._numbers: dict[str, int] = {}

    async def take(self, loader: ringmain.Loader, chance: random.Random) -> None:
        async for peer, block in loader.tagged():
            with block:
                if peer not in self._numbers:
                    found = re.search(rb"#(\d+) 0 ", bytes(block[:64]))
                    assert found is not None
                    self._numbers[peer] = int(found[1])
                self._sums[peer].update(block)
                self._sizes[peer] += len(block)
                if chance.random() < 0.1:
                    await asyncio.sleep(chance.random() * 0.005)

    def judge(self, sent: Storm, whole: list[int], outcomes: list[Outcome]) -> None:
        for peer, number in self._numbers.items():
            digest, size = hashlib.sha256(), 0
            for frame in sent.frames(number):
                if size == self._sizes[peer] and number not in whole:
                    break
                digest.update(frame)
                size += len(frame)
            assert (size, digest.hexdigest()) == (self._sizes[peer], self._sums[peer].hexdigest()), number
        assert len(set(self._numbers.values())) == len(self._numbers)
        assert set(whole) <= set(self._numbers.values())
        for outcome in outcomes:
            counters = outcome.counters
            assert counters.bytes_in == self._sizes[outcome.peer] + counters.dropped_bytes


class Untagged:
    """The records that came of each client, and how many there were that do not tell who sent them."""

    def __init__(self) -> None:
        self._found: collections.defaultdict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        self._little = 0

    async def take(self, loader: ringmain.Loader, chance: random.Random) -> None:
        async for record in loader.records():
            with record:
                if len(record) <= 1:
                    assert record in (b"", b"x")
                    self._little += 1
                    continue
                head = HEAD.match(record)
                assert head is not None, bytes(record[:80])
                assert zlib.crc32(record[head.end() :]) == int(head[3], 16)
                self._found[int(head[1])].append((int(head[2]), int(head[3], 16)))
                if chance.random() < 0.002:
                    await asyncio.sleep(chance.random() * 0.005)

    def judge(self, sent: Storm, whole: list[int], outcomes: list[Outcome]) -> None:
        least = most = 0
        for number in range(sent.count):
            contents = list(sent.contents(number))
            expected = [(int(it[2]), int(it[3], 16)) for it in map(HEAD.match, contents) if it is not None]
            found = self._found.pop(number, [])
            assert found == expected[: len(found)], number
            assert len(found) == len(expected) or number not in whole, number
            little = len(contents) - len(expected)
            most += little
            least += little if number in whole else 0
        assert not self._found
        assert least <= self._little <= most
        assert sum(it.verdict == "ended" for it in outcomes) >= len(whole)


async def meet(storms: Storm, heard: Tagged | Untagged, listening: dict[str, Any]) -> None:
    """Serve all clients of a storm, and judge what came."""
    chance, outcomes = storms.draw(0, "loader"), []
    how = {"delimiter": storms.delimiter.encode()} if storms.delimiter else {"framing": storms.kind}
    options: dict[str, Any] = {
        "max_connections": chance.choice([7, max(2, storms.count // 2), storms.count + 1]),
        "max_record": 4 << 20,
        "ring_size": 1 << 20,
        "block_size": 1 << 16,
        "gate": chance.choice(["queue", "hold"]),
        "handshake_timeout": LIMIT,
    }
    async with ringmain.load("127.0.0.1:0", **how, **options, **listening) as loader:
        loader.on_end = outcomes.append
        taking = asyncio.ensure_future(heard.take(loader, chance))
        storms = Storm(**{**vars(storms), "port": loader.port})
        clients = asyncio.ensure_future(storm.clients_of(storms))
        try:
            await asyncio.wait([taking, clients], return_when=asyncio.FIRST_COMPLETED)
            loader.stop()
            await taking
            whole = await clients
        finally:
            clients.cancel()
            await asyncio.gather(clients, return_exceptions=True)
    assert {number for number in range(storms.count) if storms.end(number) == "proper"} <= set(whole)
    heard.judge(storms, whole, outcomes)


# Each on one of the two loops, in turn: one run has all of what may go wrong.
@pytest.mark.parametrize(("run", "kind"), list(zip(itertools.cycle(LOOPS), ENDS_OF_RECORDS)), indirect=["run"])
def test_through_a_storm_no_record_is_torn_or_lost_or_mixed(run: Run, certificates: Certificates, kind: str) -> None:
    seed = int(os.environ.get("RINGMAIN_STORM_SEED", random.randrange(1 << 31)))
    sys.stdout.write(f"RINGMAIN_STORM_SEED={seed}\n")
    delimiter = kind if kind not in KINDS else ""
    drawn = ("reset", "cut", "stall") if COUNT > 100 else ("reset", "cut")
    plain = Storm(seed, COUNT, 0, kind, delimiter, "", drawn)
    tls = Storm(seed + 1, COUNT, 0, kind, delimiter, str(certificates.ca), drawn)
    heard = random.Random(seed).sample([Tagged(), Untagged()], 2)

    async def main() -> None:
        await asyncio.gather(
            meet(plain, heard[0], {}), meet(tls, heard[1], {"certfile": str(certificates.server), "tls": True})
        )

    run(main(), LIMIT)

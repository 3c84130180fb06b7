"""Records longer than `max_record`, by which a stream ends or goes on; and the collector under a running loader."""

import asyncio
import gc
import hashlib
import logging
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers
import pytest
from conftest import Certificates
from rings import Cycle

import ringmain
from ringmain import errors

Run = Callable[[Coroutine[Any, Any, Any]], Any]
OPTIONS: dict[str, Any] = {"delimiter": b"\n", "ring_size": 4096, "block_size": 1024, "listen_once": True}


def sending(sock: Any, data: bytes, piece: int) -> threading.Thread:
    """Send data in pieces on a thread, and then an end."""

    def send() -> None:
        with sock:
            for start in range(0, len(data), piece):
                sock.sendall(data[start : start + piece])
            if hasattr(sock, "unwrap"):
                sock.unwrap()

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("max_record", [100, 1024, 5000])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_long_records_are_skipped_whole_and_the_others_come_in_order(
    run: Run, certificates: Certificates, caplog: pytest.LogCaptureFixture, max_record: int, tls: bool
) -> None:
    chance = random.Random(max_record)
    sizes = [chance.choice([0, 1, 50, max_record - 1, max_record, 3 * max_record, 20_000]) for _ in range(300)]
    records = [chance.randbytes(size).replace(b"\n", b" ") + b"\n" for size in sizes]
    good = [record for record in records if len(record) <= max_record]
    long = [record for record in records if len(record) > max_record]
    options = {**OPTIONS, "max_record": max_record, "long_records": "skip"}
    if tls:
        options |= {"tls": True, "certfile": str(certificates.server)}
    data, got = b"".join(records), bytearray()

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", **options) as loader:

            def connect() -> Any:
                return peers.connect_tls(loader.port, certificates.ca) if tls else peers.connect(loader.port)

            connecting = asyncio.ensure_future(asyncio.to_thread(connect))
            async for stream in loader.connections():
                thread = sending(await connecting, data, 777)
                async for block in stream:
                    assert bytes(block).endswith(b"\n")
                    assert data[stream.offset - len(block) : stream.offset] == block
                    got.extend(block)
                    block.release()
                counters = stream.counters
                assert counters.skipped_records == len(long)
                assert counters.skipped_bytes == sum(map(len, long))
                assert counters.bytes_in == len(data)
            await asyncio.to_thread(thread.join)

    with caplog.at_level(logging.WARNING, "ringmain"):
        run(main())
    assert bytes(got) == b"".join(good)
    (warning,) = (it for it in caplog.records if "skipped" in it.getMessage())
    assert f"longer than {max_record} bytes" in warning.getMessage()


def test_a_long_record_ends_the_stream_after_all_before_it_and_its_offset_is_told(run: Run) -> None:
    before = b"".join(b"%d\n" % number for number in range(1000))

    async def main() -> None:
        for size in (101, 2000, 50_000):
            for long in (b"x" * size + b"\n", b"x" * size):
                got = bytearray()
                async with ringmain.load("127.0.0.1:0", **OPTIONS, max_record=100) as loader:
                    with peers.connect(loader.port) as sock:
                        sock.sendall(before + long)
                    with pytest.raises(errors.RecordTooLongError, match=f"offset {len(before)} is longer than 100 by"):
                        async for block in loader:
                            got += block
                assert bytes(got) == before

    run(main())


def test_what_cannot_be_skipped_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="without a delimiter"):
        ringmain.load("127.0.0.1:0", long_records="skip")
    with pytest.raises(errors.UsageError, match="choose one of raise, skip"):
        ringmain.load("127.0.0.1:0", delimiter=b"\n", long_records="drop")  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="max_record"):
        ringmain.load("127.0.0.1:0", delimiter=b"\n", max_record=0)
    with pytest.raises(errors.UsageError, match="give at least 2"):
        ringmain.load("127.0.0.1:0", delimiter=b"\r\n", max_record=1, block_size=1, long_records="skip")


def test_a_loader_holds_no_more_than_its_ring_and_one_record(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringmain.flow.blocks._HELD_TIMEOUT", 0.2)
    record = b"r" * 3000 + b"\n"

    async def main() -> None:
        kept = []
        async with ringmain.load("127.0.0.1:0", **OPTIONS, max_record=4000) as loader:
            with peers.connect(loader.port) as sock:
                sock.sendall(record * 10)
                with pytest.raises(errors.BlocksHeldError, match="release or copy blocks"):
                    async for block in loader:
                        kept.append(block)
                assert sum(map(len, kept)) <= loader.ring.memory <= 8096

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_views_that_the_collector_and_other_threads_free_cost_a_stream_no_byte(
    run: Run, certificates: Certificates, tls: bool
) -> None:
    data = b"".join(b"%d\n" % number for number in range(60_000))
    options: dict[str, Any] = {**OPTIONS, "linger": 0.0}
    if tls:
        options |= {"tls": True, "certfile": str(certificates.server)}
    digest, chance = hashlib.sha256(), random.Random(1)

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", **options) as loader:

            def connect() -> Any:
                return peers.connect_tls(loader.port, certificates.ca) if tls else peers.connect(loader.port)

            connecting = asyncio.ensure_future(asyncio.to_thread(connect))
            with ThreadPoolExecutor(2) as pool:
                async for stream in loader.connections():
                    thread = sending(await connecting, data, 500)
                    async for block in stream:
                        digest.update(block)
                        fate = chance.randrange(4)
                        if fate == 0:
                            block.release()
                        elif fate == 1:
                            pool.submit(block.release)
                        else:
                            Cycle(block)
                        del block
            await asyncio.to_thread(thread.join)

    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1, 5, 1 << 20)
    try:
        run(main())
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
    assert digest.hexdigest() == peers.sha256(data)

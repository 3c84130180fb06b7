"""The blocks of a loader: where they end, how long they wait, and how long they may be kept."""

import asyncio
from typing import Any

import peers
import pytest
from conftest import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ringmain
from ringmain import errors


def test_every_block_ends_at_a_delimiter_and_connections_never_share_one(run: Run) -> None:
    parts = [b"a\nbb\n" * 1000 + b"unfinished", b"\n", b"", b"c\nd\n"]

    async def main() -> list[bytes]:
        blocks = []
        async with ringmain.load("127.0.0.1:0", delimiter=b"\n") as loader:
            thread = peers.send_in_thread(loader.port, *parts)
            async for block in loader:
                blocks.append(bytes(block))
                if b"".join(blocks) == b"".join(parts):
                    break
        thread.join()
        return blocks

    blocks = run(main())
    # Only the last block of the first connection may lack its delimiter, and it holds nothing of the next one.
    assert [block for block in blocks if not block.endswith(b"\n")] == [b"unfinished"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.binary(max_size=3000), max_size=20), delimiter=st.sampled_from([b"", b"\n", b"\x00\x01"]))
def test_no_pattern_of_writes_changes_a_byte(run: Run, writes: list[bytes], delimiter: bytes) -> None:
    async def main() -> bytes:
        options = {"delimiter": delimiter, "block_size": 64, "ring_size": 1024, "listen_once": True}
        async with ringmain.load("127.0.0.1:0", **options) as loader:
            thread = peers.send_in_thread(loader.port, b"".join(writes))
            got = b"".join([bytes(block) async for block in loader])
        thread.join()
        return got

    assert run(main()) == b"".join(writes)


def test_views_that_are_kept_stay_as_they_were(run: Run) -> None:
    data = peers.payload(1_000_000)

    async def main() -> list[memoryview]:
        async with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
            thread = peers.send_in_thread(loader.port, data)
            blocks = [block async for block in loader]
        thread.join()
        return blocks

    assert peers.sha256(b"".join(run(main()))) == peers.sha256(data)


def test_a_consumer_that_holds_every_block_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import ringmain.flow.blocks

    monkeypatch.setattr(ringmain.flow.blocks, "_HELD_TIMEOUT", 0.2)

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", listen_once=True, ring_size=4096, block_size=1024) as loader:
            with peers.connect(loader.port) as sock:
                sock.sendall(b"x" * 100_000)
                held = []
                with pytest.raises(errors.BlocksHeldError, match="release or copy blocks"):
                    async for block in loader:
                        held.append(block)

    run(main())


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize("count", [1, 2], ids=["one", "many"])
def test_what_it_is_told_is_a_short_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, plain: bool, count: int
) -> None:
    import ringmain.flow.blocks

    monkeypatch.setattr(ringmain.flow.blocks, "_HELD_TIMEOUT", 0.2)
    options: Any = {"ring_size": 4096, "block_size": 1024, "max_connections": count, "delimiter": b"\n"}

    def hold(loader: ringmain.Loader) -> None:
        with peers.connect(loader.port) as sock:
            sock.sendall(b"x\n" * 50_000)
            list(loader)

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", **options) as loader:
            with peers.connect(loader.port) as sock:
                sock.sendall(b"x\n" * 50_000)
                _ = [block async for block in loader]

    with pytest.raises(errors.BlocksHeldError) as caught:
        if plain:
            with ringmain.load("127.0.0.1:0", **options) as loader:
                hold(loader)
        else:
            run(main())
    assert caught.value.__cause__ is caught.value.__context__ is None
    ours = [entry for entry in caught.traceback if "/ringmain/" in str(entry.path)]
    assert len(ours) <= 4
    del caught


def test_an_endless_record_is_an_error_with_its_offset(run: Run) -> None:
    async def main() -> None:
        options = {"delimiter": b"\n", "ring_size": 4096, "block_size": 1024, "max_record": 8192, "listen_once": True}
        async with ringmain.load("127.0.0.1:0", **options) as loader:
            with peers.connect(loader.port) as sock:
                sock.sendall(b"x" * 100_000)
                with pytest.raises(errors.RecordTooLongError, match="offset"):
                    async for _ in loader:
                        pass

    run(main())


@pytest.mark.parametrize("linger", [0.2, 3600])
def test_small_blocks_wait_for_more_and_no_longer_than_linger(run: Run, linger: float) -> None:
    async def main() -> list[int]:
        sizes = []
        all_there = asyncio.Event()
        options = {"min_block": 100_000, "linger": linger, "listen_once": True}
        async with ringmain.load("127.0.0.1:0", **options) as loader, asyncio.TaskGroup() as group:

            async def send() -> None:
                async with ringmain.save(f"127.0.0.1:{loader.port}") as saver:
                    for _ in range(300):
                        await saver.write(b"x" * 1000)
                        await asyncio.sleep(0)
                    if linger < 3600:  # what waits is handed out before anything follows
                        await all_there.wait()
                    await saver.write(b"late")

            group.create_task(send())
            async for block in loader:
                sizes.append(len(block))
                if sum(sizes) == 300_000:
                    all_there.set()
        return sizes

    sizes = run(main())
    assert sum(sizes) == 300_004
    if linger < 3600:
        assert sizes[-1] == 4
    else:
        assert min(sizes[:-1]) >= 100_000


def test_copies_may_be_kept_without_end(run: Run) -> None:
    data = peers.payload(3_000_000)

    async def main() -> list[memoryview]:
        options = {"ring_size": 64 << 10, "block_size": 16 << 10, "listen_once": True, "copy": True}
        async with ringmain.load("127.0.0.1:0", **options) as loader:
            thread = peers.send_in_thread(loader.port, data)
            blocks = [block async for block in loader]
        thread.join()
        return blocks

    blocks = run(main())
    assert all(block.readonly for block in blocks)
    assert peers.sha256(b"".join(blocks)) == peers.sha256(data)

"""The connections of a loader, one by one: told apart, left early, broken."""

import asyncio

import peers
import pytest
from conftest import Run

import ringmain
from ringmain import errors


def test_the_reset_of_a_listener_is_no_error_of_the_next(run: Run) -> None:
    async def main() -> bytes:
        async with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
            for _ in range(3):
                peers.close_with_reset(peers.connect(loader.port))
            thread = peers.send_in_thread(loader.port, b"good")
            got = b"".join([bytes(block) async for block in loader])
        thread.join()
        return got

    assert run(main()) == b"good"


def test_connections_are_told_apart(run: Run) -> None:
    parts = [b"a\nb", b"", b"c\nd\n"]

    async def main() -> list[tuple[bytes, str | None, int, str]]:
        seen = []
        async with ringmain.load("127.0.0.1:0", delimiter=b"\n") as loader:
            thread = peers.send_in_thread(loader.port, *parts)
            async for connection in loader.connections():
                got = b"".join([bytes(block) async for block in connection])
                seen.append((got, connection.verdict, connection.counters.bytes_in, connection.peer))
                assert connection.tls is connection.cipher is None
                if len(seen) == len(parts):
                    break
        thread.join()
        return seen

    seen = run(main())
    assert [row[:3] for row in seen] == [(part, "ended", len(part)) for part in parts]
    assert len({row[3] for row in seen}) == len(parts)


def test_a_connection_left_early_is_closed_and_the_next_one_comes_whole(run: Run) -> None:
    async def main() -> list[bytes]:
        seen = []
        async with ringmain.load("127.0.0.1:0", gate="queue") as loader:
            first, second = peers.connect(loader.port), peers.connect(loader.port)
            first.sendall(b"1" * 100_000)
            second.sendall(b"2" * 1000)
            second.close()
            async for connection in loader.connections():
                async for block in connection:
                    seen.append(bytes(block[:1]))
                    if bytes(block[:1]) == b"1":
                        break
                if seen[-1] == b"2":
                    break
            with pytest.raises(OSError):  # noqa: PT011 - a reset, or a broken pipe
                while True:
                    first.sendall(b"1")
                    await asyncio.sleep(0.01)
            first.close()
        return seen

    assert run(main()) == [b"1", b"2"]


def test_a_connection_that_breaks_raises_in_its_own_loop(run: Run) -> None:
    async def main() -> bytes:
        async with ringmain.load("127.0.0.1:0") as loader:
            broken = peers.connect(loader.port)
            broken.sendall(b"x")
            with pytest.raises(errors.ReceiveError, match="after 1 bytes"):
                async for connection in loader.connections():
                    async for block in connection:
                        assert bytes(block) == b"x"
                        peers.close_with_reset(broken)
            assert connection.verdict == "reset"
            thread = peers.send_in_thread(loader.port, b"good")
            async for connection in loader.connections():
                return b"".join([bytes(block) async for block in connection] + [thread.join() or b""])
        raise AssertionError

    assert run(main()) == b"good"


def test_what_became_of_a_connection_that_was_left_after_its_last_block_is_warned_of(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> str:
        async with ringmain.load("127.0.0.1:0", gate="queue") as loader:
            connections = loader.connections()
            with peers.connect(loader.port) as broken, peers.connect(loader.port):
                broken.sendall(b"x")
                left = await anext(connections)
                assert bytes(await anext(left)) == b"x"
                peers.close_with_reset(broken)
                while left.verdict is None:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
                await anext(connections)
        return left.peer

    peer = run(main())
    assert [record.getMessage() for record in caplog.records] == [
        f"load from {peer}: connection reset by peer after 1 bytes; what arrived may not be all that was sent"
    ]

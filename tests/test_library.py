"""ringmain.load and ringmain.save from Python."""

import asyncio
import gc
import socket
import threading
from collections.abc import Callable
from typing import Any

import peers
import pytest
from conftest import FORGOTTEN, Certificates
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ringmain
from ringmain import errors

Run = Callable[[Any], Any]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_load_and_save_move_bytes_between_each_other(run: Run, certificates: Certificates, tls: bool) -> None:
    data = peers.payload(5_000_000)

    async def main() -> None:
        scheme = "tcps" if tls else "tcp"
        options = {"certfile": str(certificates.server)} if tls else {}
        trust = {"cafile": str(certificates.ca)} if tls else {}
        async with ringmain.load(f"{scheme}://127.0.0.1:0", listen_once=True, **options) as loader:

            async def send() -> None:
                async with ringmain.save(f"{scheme}://127.0.0.1:{loader.port}", **trust) as saver:
                    for start in range(0, len(data), 777_777):
                        await saver.write(data[start : start + 777_777])

            task = asyncio.ensure_future(send())
            got = bytearray()
            async for block in loader:
                assert block.readonly
                got += block
                del block
            await task
            assert peers.sha256(bytes(got)) == peers.sha256(data)
            gc.collect()
            assert loader.ring.lent == 0

    run(main())


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


def test_a_write_to_a_lost_client_goes_to_the_next_one(run: Run) -> None:
    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            loop = asyncio.get_running_loop()
            first = await loop.run_in_executor(None, peers.connect, saver.port)
            await saver.write(b"to the first")
            assert await loop.run_in_executor(None, first.recv, 100) == b"to the first"
            first.close()
            second = await loop.run_in_executor(None, peers.connect, saver.port)
            await asyncio.sleep(0.05)  # the FIN of the first
            await saver.write(b"to the second")
            await asyncio.sleep(0.05)  # the reset that answers it
            await saver.wait_for_peer()
            assert await loop.run_in_executor(None, second.recv, 100) == b"to the second"
            await saver.end_connection()
            second.close()

    run(main())


def test_leaving_early_and_cancellation_leave_nothing_open(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0") as loader:
            thread = peers.send_in_thread(loader.port, b"x" * 100)
            async for _ in loader:
                break
            thread.join()
        async with ringmain.load("127.0.0.1:0") as loader:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    async for _ in loader:
                        raise AssertionError

    run(main())


@pytest.mark.parametrize("turns", range(8))
def test_a_load_may_be_cancelled_or_stopped_while_a_connection_begins(run: Run, turns: int) -> None:
    async def take(loader: ringmain.Loader) -> None:
        async with loader:
            async for _ in loader:
                raise AssertionError

    async def main() -> None:
        for stop in (False, True):
            loader = ringmain.load("127.0.0.1:0")
            task = asyncio.ensure_future(take(loader))
            while not loader.addresses:  # noqa: ASYNC110 - single turns of the loop are what this is about
                await asyncio.sleep(0)
            with peers.connect(loader.port):
                while loader.counters is None and turns:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                for _ in range(turns):
                    await asyncio.sleep(0)
                if not (stop and loader.stop()):
                    task.cancel()
                await asyncio.wait([task], timeout=peers.TIMEOUT)
                assert task.done()

    run(main())


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(errors.UsageError, match="gate='open'"):
        ringmain.load("127.0.0.1:0", gate="open")  # type: ignore[arg-type]
    for seconds in ("5s", 0, -1):
        with pytest.raises(errors.UsageError, match="not a number of seconds"):
            ringmain.load("127.0.0.1:0", idle_timeout=seconds)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="1 to 16 bytes"):
        ringmain.load("127.0.0.1:0", delimiter=b"x" * 17)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ringmain.load("127.0.0.1:0", delimeter=b"\n"), "'delimeter': not known; did you mean delimiter=?"),
        (lambda: ringmain.load("127.0.0.1:0", nonsense=True), "'nonsense': not known; choose one of allow, alpn"),
        (lambda: ringmain.save("127.0.0.1:0", idle_timout=1), "did you mean idle_timeout=?"),
        (lambda: ringmain.open("127.0.0.1:0", "rb", ca_file="x"), "did you mean cafile=?"),
        (lambda: ringmain.relay("127.0.0.1:0", "127.0.0.1:1", oneway=True), "did you mean one_way=?"),
        (
            lambda: ringmain.relay("127.0.0.1:0", "127.0.0.1:1", cafile="x"),
            "give it in source_tls= or destination_tls=",
        ),
        (lambda: ringmain.TlsSettings(cerfile="x"), "did you mean certfile=?"),  # type: ignore[call-arg]
    ],
)
def test_an_unknown_keyword_is_refused_with_the_nearest_one(call: Any, said: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        call()
    assert said in str(caught.value)
    assert "prefix" not in str(caught.value)


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


@pytest.mark.parametrize("seconds", [None, 1, 60, 7200])
def test_silent_peers_are_probed_if_wanted(seconds: float | None) -> None:
    from ringmain.net.dial import prepare
    from ringmain.settings import Settings

    with socket.socket() as sock:
        prepare(sock, Settings(keepalive=seconds))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == (seconds is not None)
        if seconds is not None:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == seconds


def test_a_saver_dials_what_listens(run: Run) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
                sock, _ = listener.accept()
                await saver.write(memoryview(b"abcd").cast("H"))
                await saver.write(bytearray(b"efgh"))
            assert peers.read_all(sock) == b"abcdefgh"
            sock.close()

    run(main())


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


def test_a_second_consumer_is_an_error_at_once(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0") as loader:
            waiting = asyncio.ensure_future(anext(loader))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(loader)
            with peers.connect(loader.port) as sock:
                await asyncio.sleep(0.1)
                with pytest.raises(RuntimeError, match="another task"):
                    await anext(loader)
                sock.sendall(b"x")
                assert bytes(await waiting) == b"x"
            with pytest.raises(RuntimeError, match="another task"):
                await asyncio.gather(*(asyncio.ensure_future(anext(loader)) for _ in range(2)))

    run(main())


def test_a_second_writer_is_an_error_at_once(run: Run) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
                sock, _ = listener.accept()
                data = peers.payload(20_000_000)
                first = asyncio.ensure_future(saver.write(data))
                await asyncio.sleep(0.1)
                with pytest.raises(RuntimeError, match="already writing"):
                    await saver.write(b"x" * 100_000)
                reading = asyncio.get_running_loop().run_in_executor(None, peers.read_all, sock)
                await first
            assert peers.sha256(await reading) == peers.sha256(data)
            sock.close()

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_small_and_large_writes_keep_their_order(run: Run, certificates: Certificates, tls: bool) -> None:
    sizes = [1, 100, 20_000, 3, 16_384, 16_385, 65_000, 0, 7, 1_000_000, 1]
    parts = [peers.payload(size, seed) for seed, size in enumerate(sizes * 5)]

    async def main() -> bytes:
        scheme, options = ("tcps", {"certfile": str(certificates.server)}) if tls else ("tcp", {})
        trust = {"cafile": str(certificates.ca)} if tls else {}
        async with ringmain.load(f"{scheme}://127.0.0.1:0", listen_once=True, **options) as loader:

            async def send() -> None:
                async with ringmain.save(f"{scheme}://127.0.0.1:{loader.port}", **trust) as saver:
                    for part in parts:
                        buffer = bytearray(part)
                        await saver.write(buffer)
                        buffer[:] = bytes(len(buffer))  # ours again

            task = asyncio.ensure_future(send())
            got = b"".join([bytes(block) async for block in loader])
            await task
        return got

    assert peers.sha256(run(main())) == peers.sha256(b"".join(parts))


@FORGOTTEN
@pytest.mark.parametrize("served", [False, True], ids=["waiting", "served"])
def test_a_forgotten_loader_closes_what_it_opened(run: Run, served: bool) -> None:
    async def main() -> None:
        loader = await ringmain.load("127.0.0.1:0").__aenter__()
        port = loader.port
        sock = peers.connect(port)
        if served:
            sock.sendall(b"x")
            await anext(loader)
        del loader
        gc.collect()
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            peers.connect(port)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(100):
                sock.sendall(b"x")
                await asyncio.sleep(0.01)
        sock.close()

    run(main())


def test_a_loader_that_is_not_open_says_so(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(errors.UsageError, match="use it inside `async with`"):
            await anext(ringmain.load("127.0.0.1:0"))

    run(main())
    with pytest.raises(errors.UsageError, match="use it inside `with`"):
        next(ringmain.load("127.0.0.1:0"))
    for options in ({"block_size": 0}, {"ring_size": 1000}, {"min_block": 10, "linger": 0}):
        with pytest.raises(errors.UsageError):
            ringmain.load("127.0.0.1:0", **options)


@pytest.mark.parametrize("direct", [True, False], ids=["libssl", "python"])
@pytest.mark.parametrize(
    ("ending", "error"),
    [("close_notify", None), ("fin", errors.TruncatedError), ("reset", errors.ReceiveError)],
)
def test_tls_is_read_alike_by_libssl_and_by_python(
    run: Run,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    direct: bool,
    ending: str,
    error: type[Exception] | None,
) -> None:
    from ringmain import _libssl

    if direct and not _libssl.HAS_LIBSSL:
        pytest.skip("libssl is built into this interpreter")
    monkeypatch.setattr(_libssl, "HAS_LIBSSL", direct)
    data = peers.payload(3_000_000)

    def send(port: int) -> None:
        sock = peers.connect_tls(port, certificates.ca)
        sock.sendall(data)
        received.wait(peers.TIMEOUT)
        if ending == "close_notify":
            sock.unwrap().close()
        elif ending == "fin":
            sock.close()
        else:
            peers.close_with_reset(sock)

    received = threading.Event()
    got = bytearray()

    async def main() -> None:
        async with ringmain.load("tcps://127.0.0.1:0", listen_once=True, certfile=str(certificates.server)) as loader:
            sending = asyncio.get_running_loop().run_in_executor(None, send, loader.port)
            try:
                async for block in loader:
                    got.extend(block)
                    if len(got) == len(data):
                        received.set()
            finally:
                await sending

    if error is None:
        run(main())
    else:
        with pytest.raises(error):
            run(main())
    assert peers.sha256(bytes(got)) == peers.sha256(data)


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_a_reset_right_behind_the_data_is_heard_of(run: Run, size: int) -> None:
    data = peers.payload(size)

    def send(port: int) -> None:
        with peers.connect(port) as sock:
            sock.sendall(data)
            peers.close_with_reset(sock)

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
            sending = asyncio.ensure_future(asyncio.to_thread(send, loader.port))
            if size < 1 << 20:
                await sending  # all of it is there before the first read
            got = bytearray()
            with pytest.raises(ringmain.ReceiveError):
                async for block in loader:
                    got += block
            await sending
        assert data.startswith(bytes(got))

    run(main())

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

"""What becomes of bytes when a peer leaves, or a writer is interrupted, at the worst moment."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import peers
import pytest
from conftest import Certificates

import ringmain
from ringmain import errors

Run = Callable[[Any], Any]


def small_listener() -> socket.socket:
    """Return a listener whose connections hold little that was not read."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def slow_client(port: int) -> socket.socket:
    """Return a connection that holds little that was not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.connect(("127.0.0.1", port))
    return sock


async def read_all(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().run_in_executor(None, peers.read_all, sock)


async def settled(sock: socket.socket) -> int:
    """Wait until no more comes to a socket that nobody reads; return how much is there."""
    before = -1
    while (now := peers.unread(sock)) != before or now == 0:
        before = now
        await asyncio.sleep(0.2)
    return now


def test_a_client_lost_while_the_rest_drains_costs_the_next_one_no_byte_and_gives_it_none_twice(run: Run) -> None:
    data = peers.payload(300_000)

    async def main() -> tuple[int, bytes]:
        async def clients(port: int) -> tuple[int, bytes]:
            first = slow_client(port)
            had = await settled(first)
            peers.close_with_reset(first)
            with peers.connect(port) as second:
                return had, await read_all(second)

        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            visiting = asyncio.ensure_future(clients(saver.port))
            await saver.write(data)
        return await visiting

    had, got = run(main())
    assert peers.sha256(data[:had] + got) == peers.sha256(data)


def test_what_a_lost_client_never_got_outlives_a_write_that_was_given_up(run: Run) -> None:
    data = peers.payload(40_000)

    async def main() -> tuple[int, bytes]:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            first = slow_client(saver.port)
            await saver.wait_for_peer()
            await saver.write(data)
            had = await settled(first)
            peers.close_with_reset(first)
            await asyncio.sleep(0.1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await saver.write(b"given up")
            second = peers.connect(saver.port)
            reading = asyncio.ensure_future(read_all(second))
            await saver.write(b"after")
            await saver.end_connection()
            with second:
                return had, await reading

    had, got = run(main())
    assert data[:had] + got == data + b"after"


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_peer_that_closed_unread_is_an_error_for_a_single_byte_too(run: Run, size: int) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(errors.SendError):
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
                sock, _ = listener.accept()
                peers.close_with_reset(sock)
                await saver.write(b"x" * size)

    run(main())


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
def test_a_reset_while_the_rest_drains_is_heard(run: Run, half_closed: bool) -> None:
    async def main() -> None:
        with small_listener() as listener, pytest.raises(errors.SendError):
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
                sock, _ = listener.accept()
                if half_closed:
                    sock.shutdown(socket.SHUT_WR)
                await saver.write(b"x" * 300_000)
                asyncio.get_running_loop().call_later(0.3, peers.close_with_reset, sock)

    run(main())


def test_small_writes_survive_whoever_cancels_every_task(run: Run) -> None:
    async def main() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
                sock, _ = listener.accept()
                await saver.write(b"one;")
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    if "flush" in repr(task.get_coro()):
                        task.cancel()
                await asyncio.sleep(0)
                await saver.write(b"two;")
                await saver.write(b"B" * 20_000)
            with sock:
                return peers.read_all(sock)

    assert run(main()) == b"one;two;" + b"B" * 20_000


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_a_tls_write_that_was_given_up_ends_on_a_record_and_spoils_no_other(
    run: Run, certificates: Certificates, size: int
) -> None:
    got: list[bytes] = []
    read_on = threading.Event()

    def receive(listener: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server)
        context.num_tickets = 0
        with context.wrap_socket(listener.accept()[0], server_side=True, suppress_ragged_eofs=False) as sock:
            read_on.wait(peers.TIMEOUT)
            got.append(peers.read_all(sock))

    async def main(listener: socket.socket) -> None:
        url = f"tcps://localhost:{listener.getsockname()[1]}"
        async with ringmain.save(url, family=4, cafile=str(certificates.ca)) as saver:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await saver.write(b"a" * 8_000_000)
            read_on.set()
            await saver.write(b"b" * size)

    with small_listener() as listener:
        thread = threading.Thread(target=receive, args=(listener,))
        thread.start()
        run(main(listener))
        thread.join()
    assert got[0].count(b"b") == size
    assert got[0] == b"a" * got[0].count(b"a") + b"b" * size


def test_a_lost_connection_says_so_to_every_later_write(run: Run) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
                peers.close_with_reset(listener.accept()[0])
                for _ in range(2):
                    with pytest.raises(errors.SendError):
                        for _ in range(1000):
                            await saver.write(b"x" * 100_000)

    run(main())


def test_an_interrupted_file_is_broken_off_and_never_sent_twice() -> None:
    data = peers.payload(20_000_000)
    with small_listener() as listener:
        file = ringmain.open(f"127.0.0.1:{listener.getsockname()[1]}", "wb", buffer_size=len(data) + 1)
        sock, _ = listener.accept()
        file.write(data)
        file.raw.saver.run = interrupted(file.raw.saver.run)  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            file.flush()
        file.close()
        got = bytearray()
        with sock, pytest.raises(ConnectionResetError):
            while chunk := sock.recv(1 << 16):
                got += chunk
    assert data.startswith(bytes(got))


def test_a_file_whose_write_failed_says_so_to_every_later_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file = ringmain.open(f"127.0.0.1:{listener.getsockname()[1]}", "wb", buffer_size=1)
        peers.close_with_reset(listener.accept()[0])
        for _ in range(3):
            with pytest.raises(errors.SendError):
                for _ in range(1000):
                    file.write(b"x" * 100_000)
        file.close()


def test_a_tls_client_that_timed_out_leaves_the_next_one_just_the_rest(run: Run, certificates: Certificates) -> None:
    data = peers.payload(8_000_000)

    async def main() -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        options = {"listen": True, "idle_timeout": 0.5, "certfile": str(certificates.server)}
        async with ringmain.save("tcps://127.0.0.1:0", **options) as saver:
            taken: list[int] = []
            saver.on_end = lambda _peer, counters, _verdict: taken.append(counters.bytes_out)

            def visit() -> bytes:
                with peers.connect_tls(saver.port, certificates.ca):
                    peers.eventually(lambda: taken, "the time-out of a client that reads nothing")
                with peers.connect_tls(saver.port, certificates.ca) as second:
                    return peers.read_all(second)

            visiting = loop.run_in_executor(None, visit)
            await saver.write(data)
        return taken[0], await visiting

    taken, got = run(main())
    assert peers.sha256(got) == peers.sha256(data[taken:])


def interrupted(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a runner so that its first piece of work is given up half-way, as Control-C does."""
    calls: list[Any] = []

    def wrapped(work: Any) -> Any:
        calls.append(work)
        if len(calls) > 1:
            return run(work)

        async def give_up() -> None:
            async with asyncio.timeout(0.2):
                await work

        try:
            run(give_up())
        except TimeoutError:
            raise KeyboardInterrupt from None

    return wrapped


def test_a_stream_that_was_left_gives_nothing_of_the_next_one(run: Run) -> None:
    async def main() -> list[bytes]:
        got = []
        async with ringmain.load("127.0.0.1:0") as loader:
            thread = peers.send_in_thread(loader.port, b"first", b"second")
            connections = loader.connections()
            first = await anext(connections)
            got.append(bytes(await anext(first)))
            second = await anext(connections)
            while not second.counters.bytes_in:
                waiting = asyncio.ensure_future(anext(second))
                assert [block async for block in first] == []
                got.append(bytes(await waiting))
            first.close()
            assert [block async for block in first] == []
            assert second.verdict in (None, "ended")
            thread.join()
        return got

    assert run(main()) == [b"first", b"second"]


def test_who_waits_for_a_client_hears_that_the_loader_was_closed(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0") as loader:
            waiting = asyncio.ensure_future(anext(loader))
            await asyncio.sleep(0.05)
        with pytest.raises(errors.UsageError, match="closed while a client was waited for"):
            await waiting

    run(main())


def test_a_second_thread_is_refused_at_once() -> None:
    refused: list[Exception] = []
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:

        def use() -> None:
            peers.eventually(lambda: loader._busy, "the first thread waits")
            try:
                next(loader)
            except errors.UsageError as error:
                refused.append(error)
            with peers.connect(loader.port) as sock:
                sock.sendall(b"x")

        thread = threading.Thread(target=use)
        thread.start()
        assert bytes(next(loader)) == b"x"
        thread.join()
    assert "another thread" in str(refused[0])

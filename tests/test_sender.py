"""What becomes of bytes when a peer leaves, or a writer is interrupted, at the worst moment."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import peers
import pytest
from streams import connection, small_listener

import ringmain
from ringmain import errors
from ringmain.flow.outflow import Outflow
from ringmain.net.link import Link
from ringmain.net.readiness import finish

Run = Callable[[Any], Any]


def test_a_write_that_is_refused_while_another_task_waits_breaks_nothing(run: Run) -> None:
    async def main() -> bytes:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            waiting = asyncio.ensure_future(saver.wait_for_peer())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await saver.write(b"refused")
            with peers.connect(saver.port) as client:
                await waiting
                await saver.write(b"taken")
                await saver.end_connection()
                return await asyncio.to_thread(peers.read_all, client)

    assert run(main()) == b"taken"


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


def test_closing_again_touches_no_descriptor_that_another_one_has_got(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with connection() as (peer, ours), connection() as (other_peer, other):
            outflow = Outflow(Link(ours, "the peer"))
            number = ours.fileno()
            outflow.close()
            os.dup2(other.fileno(), number)
            with socket.socket(fileno=number) as heir:
                ready = loop.create_future()
                loop.add_reader(number, finish, ready)
                outflow.close()
                outflow.abort()
                assert outflow.link.unacknowledged() is None
                assert outflow.fullness == 0
                other_peer.sendall(b"for the heir")
                await asyncio.wait_for(ready, peers.TIMEOUT)
                loop.remove_reader(number)
                assert heir.recv(100) == b"for the heir"
            assert peer.recv(1) == b""

    run(main())


def test_an_end_that_was_cancelled_is_told_when_the_saver_is_left(run: Run) -> None:
    async def main() -> None:
        with small_listener() as listener, pytest.raises(errors.SendError, match="cancelled half-way"):
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
                sock, _ = listener.accept()
                with sock:
                    await saver.write(b"x" * 300_000)
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.1):
                            await saver.end_connection()
                    with pytest.raises(errors.SendError, match="cancelled half-way"):
                        await saver.write(b"more")
                    with pytest.raises(ConnectionResetError):
                        peers.read_all(sock)

    run(main())


def test_a_write_that_waits_hears_that_the_saver_was_left(run: Run) -> None:
    async def main(listener: socket.socket) -> None:
        with pytest.raises(errors.SendError, match="another task has not ended its write"):
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
                sock, _ = listener.accept()
                writing = asyncio.ensure_future(saver.write(b"x" * 8_000_000))
                await asyncio.sleep(0.05)
        with pytest.raises(errors.SendError, match="closed meanwhile"):
            await writing
        with sock, pytest.raises(ConnectionResetError):
            peers.read_all(sock)

    with small_listener() as listener:
        run(main(listener))


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
        with pytest.raises(errors.UsageError, match="closed while a task waited for a client"):
            await waiting

    run(main())


def test_a_second_thread_is_refused_at_once() -> None:
    refused: list[Exception] = []
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:

        def use() -> None:
            peers.eventually(lambda: loader._turn.taken, "the first thread waits")
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

"""What becomes of bytes when a peer leaves, or a writer is interrupted, at the worst moment."""

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import FORGOTTEN, Certificates
from streams import connection

import ringmain
from ringmain import errors
from ringmain.flow.outflow import Outflow
from ringmain.net.link import Link
from ringmain.net.readiness import finish

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


def test_a_client_that_is_broken_off_amid_small_writes_leaves_the_next_one_just_the_rest(run: Run) -> None:
    data = peers.payload(400_000)

    async def main() -> tuple[int, int, bytes]:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            first = slow_client(saver.port)
            await saver.wait_for_peer()
            outflow = saver._clients.outflows[0]
            outflow.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            sent = 0
            while not outflow.counters.stalls:  # a part of what was gathered has gone out, and the rest waits
                for _ in range(6):  # go out together
                    await saver.write(data[sent : sent + 10_000])
                    sent += 10_000
                await asyncio.sleep(0)
            had = await settled(first)
            await saver.break_off(at_once=True)
            first.close()
            with peers.connect(saver.port) as second:
                reading = asyncio.ensure_future(read_all(second))
                await saver.wait_for_peer()
                await saver.end_connection()
                return sent, had, await reading

    sent, had, got = run(main())
    assert data[had:sent] == got


def test_breaking_a_client_off_while_another_task_writes_gives_the_next_one_nothing_twice(run: Run) -> None:
    data = peers.payload(12_000_000)

    async def main() -> tuple[int, bytes]:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            first = slow_client(saver.port)
            writing = asyncio.ensure_future(saver.write(data))
            await asyncio.to_thread(peers.eventually, lambda: saver.counters is not None and saver.counters.stalls)
            had = await settled(first)
            assert not writing.done()
            await saver.break_off(at_once=True)
            first.close()
            with peers.connect(saver.port) as second:
                reading = asyncio.ensure_future(read_all(second))
                await writing
                await saver.end_connection()
                return had, await reading

    had, got = run(main())
    assert peers.sha256(data[:had] + got) == peers.sha256(data)


@pytest.mark.parametrize("more", [b"", b"more"], ids=["then-left", "then-more"])
def test_a_client_that_resets_before_it_got_anything_costs_the_one_that_counts_no_byte(run: Run, more: bytes) -> None:
    def visit(port: int) -> bytes:
        with peers.connect(port) as client:
            return peers.read_all(client)

    async def main() -> bytes:
        async with ringmain.save("127.0.0.1:0", listen_once=True) as saver:
            first = peers.connect(saver.port)
            await saver.wait_for_peer()
            sock = saver._clients.outflows[0].link.sock
            peers.close_with_reset(first)
            peers.eventually(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\7")
            await saver.write(b"small;")  # gathered, before the loop has heard of the reset
            await asyncio.sleep(0.05)
            reading = asyncio.ensure_future(asyncio.to_thread(visit, saver.port))
            await saver.write(more)
        return await reading

    assert run(main()) == b"small;" + more


def test_when_the_client_that_counts_is_lost_no_other_gets_what_follows(run: Run) -> None:
    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen_once=True) as saver:
            first = peers.connect(saver.port)
            await saver.write(b"one;")
            assert await asyncio.to_thread(first.recv, 10) == b"one;"
            peers.close_with_reset(first)
            with peers.connect(saver.port):
                for _ in range(2):
                    with pytest.raises(errors.SendError, match="reset by peer"):
                        while True:
                            await saver.wait_for_peer()
                            await asyncio.sleep(0.01)
                with pytest.raises(errors.SendError, match="reset by peer"):
                    await saver.write(b"two;")

    run(main())


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
                return await read_all(client)

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


@contextlib.contextmanager
def receiver(listener: socket.socket, certificate: Path | None) -> Iterator[tuple[threading.Event, list[bytes]]]:
    """Accept one client, read nothing before the event, then all; yield the event and what came and how it ended."""
    read_on, got = threading.Event(), []

    def receive() -> None:
        sock, _ = listener.accept()
        sock.settimeout(peers.TIMEOUT)
        with contextlib.ExitStack() as stack:
            if certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
                context.num_tickets = 0
                sock = context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
            stack.enter_context(sock)
            read_on.wait(peers.TIMEOUT)
            try:
                while chunk := sock.recv(1 << 16):
                    got.append(chunk)
                got.append(b"<end>")
            except OSError:
                got.append(b"<broken>")

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    try:
        yield read_on, got
    finally:
        read_on.set()
        thread.join(peers.TIMEOUT)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_stream_with_a_hole_never_ends_properly(run: Run, certificates: Certificates, tls: bool, again: bool) -> None:
    data = peers.payload(8_000_000)

    async def main(listener: socket.socket, read_on: threading.Event) -> None:
        url = f"{'tcps' if tls else 'tcp'}://localhost:{listener.getsockname()[1]}"
        with pytest.raises(errors.SendError, match="cancelled half-way"):
            async with ringmain.save(url, family=4, cafile=str(certificates.ca)) as saver:
                writing = asyncio.ensure_future(saver.write(data))
                await asyncio.sleep(0.2)
                writing.cancel()
                if again:
                    writing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await writing
                read_on.set()
                for record in (b"second", b"x" * 100_000):
                    with pytest.raises(errors.SendError, match="cancelled half-way"):
                        await saver.write(record)

    with small_listener() as listener, receiver(listener, certificates.server if tls else None) as (read_on, got):
        run(main(listener, read_on))
    assert got.pop() == b"<broken>"
    assert data.startswith(b"".join(got))


def test_a_write_that_is_cancelled_before_it_began_has_done_nothing(run: Run) -> None:
    data = peers.payload(300_000)

    async def main() -> bytes:
        async with ringmain.save("127.0.0.1:0", listen=True) as saver:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await saver.write(b"never")
            with peers.connect(saver.port) as sock:
                reading = asyncio.ensure_future(read_all(sock))
                await saver.write(data)
                await saver.end_connection()
                return await reading

    assert run(main()) == data


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_small_writes_outlive_a_large_one_that_was_cancelled_while_they_waited(
    run: Run, certificates: Certificates, tls: bool
) -> None:
    """The large one waits for room behind small ones that were copied: nothing of it has gone out."""

    async def main(listener: socket.socket, read_on: threading.Event) -> bytes:
        url = f"{'tcps' if tls else 'tcp'}://localhost:{listener.getsockname()[1]}"
        sent = bytearray()
        async with ringmain.save(url, family=4, cafile=str(certificates.ca)) as saver:
            outflow = saver._clients.outflows[0]
            while not outflow._gathered or not outflow.counters.stalls:
                piece = peers.payload(15_000, len(sent))
                await saver.write(piece)
                sent += piece
                for _ in range(20):
                    await asyncio.sleep(0)
            for _ in range(3):
                writing = asyncio.ensure_future(saver.write(b"never" * 10_000))
                await asyncio.sleep(0.02)
                writing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await writing
            await saver.write(b"and on")
            read_on.set()
        return bytes(sent)

    with small_listener() as listener, receiver(listener, certificates.server if tls else None) as (read_on, got):
        sent = run(main(listener, read_on))
    assert got.pop() == b"<end>"
    assert peers.sha256(b"".join(got)) == peers.sha256(sent + b"and on")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_listener_whose_write_was_cancelled_half_way_ends_properly_for_no_client(
    run: Run, certificates: Certificates, tls: bool
) -> None:
    async def main() -> None:
        options: Any = {"certfile": str(certificates.server)} if tls else {}
        with pytest.raises(errors.SendError, match="cancelled half-way"):
            async with ringmain.save(f"{'tcps' if tls else 'tcp'}://127.0.0.1:0", listen=True, **options) as saver:
                connect = (lambda: peers.connect_tls(saver.port, certificates.ca)) if tls else None
                visiting = asyncio.get_running_loop().run_in_executor(
                    None, connect or (lambda: peers.connect(saver.port))
                )
                await saver.wait_for_peer()
                first = await visiting
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await saver.write(b"x" * 20_000_000)
                peers.close_with_reset(first)
                with pytest.raises(errors.SendError, match="cancelled half-way"):
                    await saver.write(b"second")

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
def test_the_users_own_exception_gets_out_and_the_peer_sees_no_end(
    run: Run, certificates: Certificates, tls: bool, half_closed: bool
) -> None:
    async def main(listener: socket.socket, read_on: threading.Event) -> None:
        url = f"{'tcps' if tls else 'tcp'}://localhost:{listener.getsockname()[1]}"
        with pytest.raises(KeyError, match="mine"):
            async with ringmain.save(url, family=4, cafile=str(certificates.ca)) as saver:
                await saver.write(b"x" * 100_000)
                if half_closed:
                    saver._clients.outflows[0].link.discard()
                    saver._clients.outflows[0].link.read_to_end()
                raise KeyError("mine")

    with small_listener() as listener, receiver(listener, certificates.server if tls else None) as (read_on, got):
        run(main(listener, read_on))
    assert got.pop() == b"<broken>"


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


def test_a_peer_that_times_out_sees_no_proper_end(run: Run) -> None:
    async def main(listener: socket.socket) -> None:
        with pytest.raises(errors.TimedOutError, match="it took nothing"):
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}", idle_timeout=0.3) as saver:
                sock, _ = listener.accept()
                await saver.write(b"x" * 8_000_000)
        with sock, pytest.raises(ConnectionResetError):
            peers.read_all(sock)

    with small_listener() as listener:
        run(main(listener))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_leaving_that_is_cancelled_resets(run: Run, certificates: Certificates, tls: bool) -> None:
    async def main(listener: socket.socket, read_on: threading.Event) -> None:
        url = f"{'tcps' if tls else 'tcp'}://localhost:{listener.getsockname()[1]}"
        saver = ringmain.save(url, family=4, cafile=str(certificates.ca))
        await saver.__aenter__()
        await saver.write(b"x" * 15_000)
        await saver.write(b"y" * 60_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await saver.__aexit__(None, None, None)
        with pytest.raises(errors.UsageError):
            await saver.write(b"z")
        read_on.set()

    with small_listener() as listener, receiver(listener, certificates.server if tls else None) as (read_on, got):
        run(main(listener, read_on))
    assert got.pop() == b"<broken>"


@FORGOTTEN
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_forgotten_saver_resets_its_peer(certificates: Certificates, tls: bool) -> None:
    with small_listener() as listener, receiver(listener, certificates.server if tls else None) as (read_on, got):
        url = f"{'tcps' if tls else 'tcp'}://localhost:{listener.getsockname()[1]}"
        saver = ringmain.save(url, family=4, cafile=str(certificates.ca))
        saver.__enter__().write(b"some of it")
        del saver
        gc.collect()
        read_on.set()
    assert got.pop() == b"<broken>"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_file_left_by_an_exception_is_broken_off(certificates: Certificates, tls: bool) -> None:
    with small_listener() as listener, receiver(listener, certificates.server if tls else None) as (read_on, got):
        url = f"{'tcps' if tls else 'tcp'}://localhost:{listener.getsockname()[1]}"
        with pytest.raises(KeyError, match="mine"), ringmain.open(url, "wb", family=4, cafile=certificates.ca) as file:
            file.write(b"x" * 70_000)
            file.write(b"buffered")
            raise KeyError("mine")
        assert file.closed
        file.close()
        read_on.set()
    assert got.pop() == b"<broken>"
    assert b"buffered" not in b"".join(got)


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
        options = {"listen": True, "idle_timeout": 3.0, "certfile": str(certificates.server)}
        async with ringmain.save("tcps://127.0.0.1:0", **options) as saver:
            taken: list[int] = []
            saver.on_end = lambda outcome: taken.append(outcome.size)

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

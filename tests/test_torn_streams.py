"""A stream that was cut short, by whatever, never ends properly."""

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import FORGOTTEN, Certificates, Run
from streams import small_listener

import ringmain
from ringmain import errors


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
                reading = asyncio.ensure_future(asyncio.to_thread(peers.read_all, sock))
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

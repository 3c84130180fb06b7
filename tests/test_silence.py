"""A client that says nothing while others wait is turned away; alone it may stay silent for as long as it likes."""

import asyncio
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers
import pytest
from conftest import FORGOTTEN, Certificates
from streams import server_at

import ringmain
from ringmain import errors
from ringmain.outcome import Outcome

Run = Callable[[Any], Any]

# Shorter than the second after which others are looked for at all.
LIMIT = ["--handshake-timeout", "300ms"]


def read_line(program: peers.Program) -> bytes:
    assert program.process.stdout is not None
    return bytes(program.process.stdout.readline())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["hold", "queue"])
def test_a_silent_client_is_reset_with_one_warning_once_another_waits(
    bench: peers.Bench, certificates: Certificates, kind: str, tls: bool
) -> None:
    limit = 5 if tls else 0.3  # handshakes take their time on a busy machine
    options = ["--tls", "--certfile", certificates.server] if tls else []
    options += ["--handshake-timeout", f"{limit}s"]
    loader, port = bench.listening("load", "-o", "--gate", kind, *options, stdout=subprocess.PIPE)

    def connect() -> socket.socket:
        return peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)

    with connect() as silent, connect() as patient:
        patient.sendall(b"at last\n")
        assert read_line(loader) == b"at last\n"
        with pytest.raises(ConnectionResetError):
            socket.socket.recv(silent, 100)
        if tls:
            patient.unwrap()  # type: ignore[attr-defined]
    assert loader.wait() == 0  # the silent one did not count
    warnings = [line for line in loader.stderr.splitlines() if line.startswith("ringmain: ")]
    assert len(warnings) == 1
    assert f"it sent nothing for {limit} s while another client waited; raise --handshake-timeout" in warnings[0]


def test_with_refuse_a_silent_client_makes_room_for_those_who_try_again(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "--gate", "refuse", *LIMIT, stdout=subprocess.PIPE)

    served = threading.Event()

    def read() -> None:
        assert read_line(loader) == b"at last\n"
        served.set()

    def try_again() -> bool:
        """Send a line, and wait until it is served, or the connection is reset."""
        with contextlib.suppress(ConnectionError), peers.connect(port) as sock:
            sock.sendall(b"at last\n")
            sock.settimeout(0.05)
            while not served.is_set():
                with contextlib.suppress(TimeoutError):
                    assert sock.recv(1) == b""
                    return served.is_set()
        return served.is_set()

    with peers.connect(port) as silent, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        time.sleep(0.1)
        peers.eventually(try_again, "a client's turn")
        reading.result(peers.TIMEOUT)
        assert peers.ends_in_reset(silent)


@pytest.mark.parametrize("leave", [socket.socket.close, peers.close_with_reset], ids=["ended", "reset"])
@pytest.mark.parametrize("kind", ["hold", "queue"])
def test_who_knocks_and_leaves_at_once_does_not_count_as_waiting(
    bench: peers.Bench, kind: str, leave: Callable[[socket.socket], object]
) -> None:
    # Far longer than one who knocks stays on a busy machine, shorter than all of them together.
    limit = ["--handshake-timeout", "2s"]
    loader, port = bench.listening("load", "--gate", kind, *limit, stdout=subprocess.PIPE)
    with peers.connect(port) as silent:
        for _ in range(70):  # more than are kept to be served in turn
            time.sleep(0.04)
            leave(peers.connect(port))
        silent.sendall(b"in good time\n")
        assert read_line(loader) == b"in good time\n"
    assert "while another client waited" not in loader.stderr


def test_who_came_later_than_one_who_left_in_time_waits_in_vain_no_longer(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", *LIMIT, stdout=subprocess.PIPE)
    with peers.connect(port) as silent:
        hasty = peers.connect(port)
        with peers.connect(port) as patient:
            time.sleep(1.2)  # others are looked for after a second
            hasty.close()
            assert peers.ends_in_reset(silent)
            patient.sendall(b"at last\n")
            assert read_line(loader) == b"at last\n"


def test_who_waits_behind_those_who_left_counts_and_is_served(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", *LIMIT, stdout=subprocess.PIPE)
    with peers.connect(port) as silent:
        for _ in range(3):
            peers.connect(port).close()
        time.sleep(1.5)
        with peers.connect(port) as patient:
            patient.sendall(b"at last\n")
            assert read_line(loader) == b"at last\n"
            assert peers.ends_in_reset(silent)


def test_a_stranger_who_is_not_allowed_does_not_count_as_waiting(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", *LIMIT, "--allow", "127.0.0.2/32", stdout=subprocess.PIPE)
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) as silent:
        time.sleep(1.2)
        with contextlib.suppress(ConnectionResetError), peers.connect(port) as stranger:
            stranger.recv(1)
        loader.says("refused: not in --allow")
        time.sleep(0.8)
        silent.sendall(b"in good time\n")
        assert read_line(loader) == b"in good time\n"


def test_alone_a_silent_client_may_take_its_time(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", *LIMIT, stdout=subprocess.PIPE)
    with peers.connect(port) as sock:
        time.sleep(2)
        sock.sendall(b"in good time\n")
        assert read_line(loader) == b"in good time\n"
    assert loader.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["hold", "queue"])
def test_who_has_sent_a_byte_is_never_turned_away_for_silence(bench: peers.Bench, kind: str) -> None:
    loader, port = bench.listening("load", "--gate", kind, *LIMIT, stdout=subprocess.PIPE)
    with peers.connect(port) as first, peers.connect(port) as second:
        first.sendall(b"begun, ")
        second.sendall(b"second\n")
        time.sleep(2)
        first.sendall(b"and done\n")
        assert read_line(loader) == b"begun, and done\n"
        first.close()
        assert read_line(loader) == b"second\n"


def test_the_filter_goes_on_once_a_client_has_begun_late(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "--handshake-timeout", "1h", stdout=subprocess.PIPE)
    with peers.connect(port) as first:
        time.sleep(1.2)
        first.sendall(b"late\n")
        assert read_line(loader) == b"late\n"
        with peers.connect(port) as second:  # by this one it is noticed that others come

            def held() -> bool:
                try:
                    peers.connect(port, timeout=0.2).close()
                except TimeoutError:
                    return True
                return False

            peers.eventually(held, "the filter")
            second.sendall(b"second\n")
            first.close()
            assert read_line(loader) == b"second\n"


def test_off_means_that_nobody_is_turned_away(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "--gate", "queue", "--handshake-timeout", "off", stdout=subprocess.PIPE)
    with peers.connect(port) as silent, peers.connect(port):
        time.sleep(2)
        silent.sendall(b"still here\n")
        assert read_line(loader) == b"still here\n"


def test_who_sent_what_nobody_has_read_yet_is_not_silent(run: Run) -> None:
    async def main() -> bytes:
        options = {"gate": "queue", "handshake_timeout": 0.2}
        async with ringmain.load("127.0.0.1:0", **options) as loader:
            with peers.connect(loader.port) as first, peers.connect(loader.port):
                first.sendall(b"sent long ago")
                async for connection in loader.connections():
                    await asyncio.sleep(2)
                    return bytes(await anext(connection))
        raise AssertionError

    assert run(main()) == b"sent long ago"


def test_a_silent_tls_client_is_turned_away_however_late_it_is_first_read_from(
    run: Run, certificates: Certificates
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"certfile": str(certificates.server), "gate": "queue", "handshake_timeout": 5.0}
        async with ringmain.load("tcps://127.0.0.1:0", **options) as loader:
            waiting = asyncio.ensure_future(anext(loader.connections()))
            with await asyncio.to_thread(peers.connect_tls, loader.port, certificates.ca):
                stream = await waiting
                await asyncio.sleep(1.5)
                with await asyncio.to_thread(peers.connect, loader.port):
                    async with asyncio.timeout(peers.TIMEOUT):
                        with pytest.raises(ringmain.TimedOutError, match="while another client waited"):
                            await anext(stream)

    run(main())


@FORGOTTEN
def test_a_forgotten_loader_of_a_silent_client_is_closed_all_the_same(run: Run) -> None:
    import gc

    async def main() -> None:
        loader = await ringmain.load("127.0.0.1:0", gate="queue").__aenter__()
        port = loader.port
        with peers.connect(port) as silent:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(loader), 1.5)  # it looks out for others by now
            del loader
            for _ in range(10):  # what the loop and the wait that was broken off still hold is let go in between
                gc.collect()
                await asyncio.sleep(0.01)
            assert silent.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                peers.connect(port)

    run(main())


def test_a_relay_turns_a_silent_client_away_too(bench: peers.Bench) -> None:
    with server_at() as server:
        _, port = bench.relaying(f"127.0.0.1:{server.getsockname()[1]}", "--gate", "queue", *LIMIT)
        with peers.connect(port) as silent, peers.connect(port) as patient:
            patient.sendall(b"at last")
            for _ in range(2):
                sock, _ = server.accept()
                with sock, contextlib.suppress(ConnectionResetError):
                    sock.settimeout(peers.TIMEOUT)
                    data = sock.recv(100)
            assert data == b"at last"
            assert peers.ends_in_reset(silent)


def test_a_relay_whose_server_speaks_first_waits_for_the_answer(bench: peers.Bench) -> None:
    with server_at() as server:
        _, port = bench.relaying(f"127.0.0.1:{server.getsockname()[1]}", "--gate", "queue", *LIMIT)
        with peers.connect(port) as client, peers.connect(port):
            sock, _ = server.accept()
            with sock:
                sock.sendall(b"220 welcome")
                assert client.recv(100) == b"220 welcome"
                time.sleep(2)
                client.sendall(b"at leisure")
                assert sock.recv(100) == b"at leisure"


def test_a_saver_has_no_silent_clients(bench: peers.Bench) -> None:
    saver, port = bench.listening("save", "-l", "--gate", "queue", *LIMIT, stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    with peers.connect(port) as first, peers.connect(port):
        time.sleep(2)
        saver.process.stdin.write(b"to whom was first")
        saver.process.stdin.flush()
        assert first.recv(100) == b"to whom was first"


def test_who_is_turned_away_before_anybody_reads_is_recorded_as_timed_out(run: Run) -> None:
    outcomes: list[Outcome] = []

    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", gate="queue", handshake_timeout=0.1) as loader:
            loader.on_end = outcomes.append
            with peers.connect(loader.port), peers.connect(loader.port) as patient:
                patient.sendall(b"at last")
                async for connection in loader.connections():
                    with pytest.raises(errors.TimedOutError):
                        await asyncio.to_thread(peers.eventually, lambda at=connection: at.verdict)
                        await anext(connection)
                    break

    run(main())
    assert [outcome.verdict for outcome in outcomes] == ["timed out"]

"""Being stopped: by a signal or by `loader.stop()`, at any time; what was acknowledged is handed on."""

import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import peers
import pytest
from conftest import Certificates

import ringmain
from ringmain.net.arrivals import Arrivals

Run = Callable[[Any], Any]

# Some that end a process by themselves; each does so in every state of ours too.
SIGNALS = [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGXCPU, signal.SIGUSR2, signal.SIGALRM]


def acknowledged(sock: socket.socket) -> int:
    """Return how many bytes of a dialled connection the peer's kernel has acknowledged (tcpi_bytes_acked, with SYN)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("Q", info, 120)[0]) - 1


def fill(sock: socket.socket, data: bytes) -> None:
    """Send, under TLS in whole records, until the peer takes no more for a while."""
    sock.setblocking(False)
    view = memoryview(data)
    while len(view) and select.select([], [sock], [], 0.5)[1]:
        with contextlib.suppress(ssl.SSLWantWriteError):
            view = view[sock.send(view[:16384]) :]
    assert len(view), "the connection holds more than the test has"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM], ids=["USR2", "TERM"])
@pytest.mark.parametrize("path", ["kernel", "block"])
def test_a_signal_hands_on_all_that_was_acknowledged_to_a_slow_reader(
    bench: peers.Bench, path: str, number: int
) -> None:
    data = peers.payload(9_999_991) * 10  # more than all the buffers on the way may grow to
    loader, port = bench.listening("load", "--path", path, "-v", stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    with peers.connect(port) as sock:
        fill(sock, data)
        loader.signal(number)
        assert select.select([sock], [], [], peers.TIMEOUT)[0]  # its FIN: from now on nothing is acknowledged
        before = acknowledged(sock)
        got = loader.process.stdout.read()
        assert loader.wait() == 128 + number
        assert len(got) >= acknowledged(sock) >= before > 1_000_000
    assert peers.sha256(got) == peers.sha256(data[: len(got)])
    assert f"stopped after {len(got)} bytes" in loader.stderr


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_under_tls_a_signal_says_goodbye_and_hands_on_every_whole_record(
    bench: peers.Bench, certificates: Certificates, version: str
) -> None:
    data = peers.payload(9_999_991) * 10  # more than all the buffers on the way may grow to
    loader, port = bench.listening("load", "-v", "--tls", "--certfile", certificates.server, stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    with peers.connect_tls(port, certificates.ca, version=version) as sock:
        fill(sock, data)
        loader.signal(signal.SIGTERM)
        assert select.select([sock], [], [], peers.TIMEOUT)[0]
        assert sock.recv(1) == b""  # close_notify: without it this raises
        got = loader.process.stdout.read()
        assert loader.wait() == 143
        overhead = 16384 + (29 if version == "1.2" else 22)
        assert len(got) >= (acknowledged(sock) // overhead - 1) * 16384 > 1_000_000
    assert peers.sha256(got) == peers.sha256(data[: len(got)])
    assert f"stopped after {len(got)} bytes" in loader.stderr


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_that_ends_a_process_ends_a_run_as_sigterm_does(bench: peers.Bench, number: int) -> None:
    loader, port = bench.listening("load", "-v", stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    with peers.connect(port) as sock:
        sock.sendall(b"x" * 100_000)
        loader.says("connected")
        loader.signal(number)
        assert loader.process.stdout.read() == b"x" * 100_000
    assert loader.wait() == 128 + number
    assert list(bench.folder.glob("port-*")) == []


@pytest.mark.parametrize("verb", ["load", "save", "relay"])
def test_a_signal_that_was_ignored_when_we_started_stays_ignored(bench: peers.Bench, verb: str) -> None:
    listen = ["-l", "-I", bench.file(b"x")] if verb == "save" else []
    rest = ["127.0.0.1:1"] if verb == "relay" else []
    port_file = bench.folder / "port"
    command = [*peers.RINGMAIN, verb, *listen, "-v", "--port-file", port_file, "127.0.0.1:0", *rest]
    ignoring = ["sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh", *map(str, command)]
    program = bench.start(ignoring)
    peers.eventually(port_file.exists)
    for number in (signal.SIGHUP, signal.SIGINT):
        program.signal(number)
    program.signal(signal.SIGTERM)
    assert program.wait() == 143


def test_what_python_ignores_ends_nothing(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "-o", stdout=subprocess.PIPE)
    with peers.connect(port) as sock:
        for number in (signal.SIGXFSZ, signal.SIGPIPE):
            loader.hears(number)
        sock.sendall(b"still here")
    assert loader.wait() == 0
    assert loader.process.stdout.read() == b"still here"


def test_a_signal_while_the_program_starts_ends_it_without_a_word(bench: peers.Bench, tmp_path: Any) -> None:
    (tmp_path / "click.py").write_text(
        "import os, time\nos.write(2, b'starting\\n')\ntime.sleep(60)\n"  # at once, which print is not
    )
    for number in (signal.SIGUSR2, signal.SIGTERM):
        program = bench.ringmain("load", "127.0.0.1:0", env=os.environ | {"PYTHONPATH": str(tmp_path)})
        program.says("starting")
        program.signal(number)
        assert program.wait() == 128 + number
        assert program.stderr == "starting\n"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_stop_lets_what_was_acknowledged_be_taken(run: Run, certificates: Certificates, tls: bool) -> None:
    data = peers.payload(9_999_991) * 10  # more than all the buffers on the way may grow to

    async def main() -> None:
        options = {"tls": True, "certfile": str(certificates.server)} if tls else {}
        async with ringmain.load("127.0.0.1:0", ring_size=1 << 18, block_size=1 << 16, **options) as loader:
            first = asyncio.ensure_future(anext(loader))
            connect = (peers.connect_tls, loader.port, certificates.ca) if tls else (peers.connect, loader.port)
            with await asyncio.to_thread(*connect) as sock:
                filling = asyncio.ensure_future(asyncio.to_thread(fill, sock, data))
                got = bytearray(await first)
                await filling  # the ring is full, and so is the socket's buffer
                assert loader.stop()
                got += b"".join([bytes(block) async for block in loader])
                whole = acknowledged(sock) if not tls else (acknowledged(sock) // (16384 + 22) - 1) * 16384
                assert len(got) >= whole > 1 << 18
                assert peers.sha256(bytes(got)) == peers.sha256(data[: len(got)])
            with pytest.raises(StopAsyncIteration):
                await anext(loader)

    run(main())


@pytest.mark.parametrize("when", ["before opening", "before iterating", "while waiting", "while shaking hands"])
def test_stop_while_idle_ends_the_iteration_and_serves_nobody(run: Run, certificates: Certificates, when: str) -> None:
    async def main() -> list[bytes]:
        options = {"tls": True, "certfile": str(certificates.server)} if when == "while shaking hands" else {}
        loader = ringmain.load("127.0.0.1:0", **options)
        if when == "before opening":
            assert not loader.stop()
        async with loader:
            task = asyncio.ensure_future(anext(loader, None)) if when.startswith("while") else None
            await asyncio.sleep(0)
            with peers.connect(loader.port) as sock:
                if when == "while shaking hands":
                    await asyncio.sleep(0.1)
                    sock.sendall(peers.hello())
                    await asyncio.sleep(0.1)
                if when != "before opening":
                    assert not loader.stop()
                if task is not None:
                    assert await task is None
                if not options:
                    with contextlib.suppress(ConnectionError):  # it may have been turned away already
                        sock.sendall(b"never to be served")
                return [bytes(block) async for block in loader]

    assert run(main()) == []


@pytest.mark.parametrize("turns", range(8))
def test_stop_at_any_turn_of_the_loop_leaves_no_socket_to_the_collector(
    run: Run, certificates: Certificates, turns: int
) -> None:
    async def main() -> None:
        async with ringmain.load("tcps://127.0.0.1:0", certfile=str(certificates.server)) as loader:
            with peers.connect(loader.port):
                waiting = asyncio.ensure_future(anext(loader, None))
                for _ in range(turns):
                    await asyncio.sleep(0)
                loader.stop()
                assert await waiting is None

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(main())
        gc.collect()
    assert [str(it.message) for it in caught if it.category is ResourceWarning] == []


def test_stop_in_the_turn_in_which_a_client_comes_waits_for_no_handshake(
    run: Run, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = Arrivals._admit

    async def main() -> None:
        options: dict[str, Any] = {"certfile": str(certificates.server), "handshake_timeout": None}
        async with ringmain.load("tcps://127.0.0.1:0", **options) as loader:

            def admit_and_stop(arrivals: Arrivals, *client: Any) -> None:
                admit(arrivals, *client)
                loader._finished = True
                loader._hang_up()  # what `stop` does in the next turn, or in this one if it was called before

            monkeypatch.setattr(Arrivals, "_admit", admit_and_stop)
            waiting = asyncio.ensure_future(anext(loader, None))
            await asyncio.sleep(0)
            with await asyncio.to_thread(peers.connect, loader.port):
                async with asyncio.timeout(peers.TIMEOUT):
                    assert await waiting is None

    run(main())


def test_stop_before_dialling_dials_nobody(run: Run) -> None:
    async def main() -> list[bytes]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            loader = ringmain.load(f"127.0.0.1:{listener.getsockname()[1]}", connect=True)
            loader.stop()
            async with loader:
                got = [bytes(block) async for block in loader]
            assert not select.select([listener], [], [], 0)[0]
        return got

    assert run(main()) == []


def test_stop_while_dialling_ends_that_too(run: Run) -> None:
    async def main(port: int) -> list[bytes]:
        loader = ringmain.load(f"127.0.0.1:{port}", connect=True, connect_timeout=None)
        opening = asyncio.ensure_future(loader.__aenter__())
        await asyncio.to_thread(peers.eventually, lambda: peers.is_connecting(port), "a connect under way")
        assert not loader.stop()
        async with asyncio.timeout(peers.TIMEOUT):
            await opening
            got = [bytes(block) async for block in loader]
            await loader.__aexit__(None, None, None)
        return got

    with peers.full_backlog() as port:
        assert run(main(port)) == []


@pytest.mark.parametrize("served", [False, True], ids=["idle", "served"])
@pytest.mark.parametrize("how", ["thread", "signal"])
def test_a_plain_for_is_ended_by_a_thread_or_a_signal_handler(how: str, served: bool) -> None:
    got = []
    with ringmain.load("127.0.0.1:0") as loader:
        sock = peers.connect(loader.port) if served else None
        if sock is not None:
            sock.sendall(b"x")
            got.append(bytes(next(loader)))
        before = signal.signal(signal.SIGUSR1, lambda *_: loader.stop())
        stop = loader.stop if how == "thread" else lambda: os.kill(os.getpid(), signal.SIGUSR1)
        timer = threading.Timer(0.2, stop)
        timer.start()
        try:
            got += [bytes(block) for block in loader]
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
            if sock is not None:
                sock.close()
    assert b"".join(got) == (b"x" if served else b"")


CANCELLED_FROM_OUTSIDE = """
import asyncio
from ringmain.cli.session import Session

told = []

async def work():
    own = asyncio.current_task()
    for task in asyncio.all_tasks() - {own}:
        task.cancel()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.01)
        told.append("closed")

try:
    Session({"family": 0}, "tcp://127.0.0.1:1").run(work)
except asyncio.CancelledError:
    print(*told)
"""


def test_a_run_that_is_cancelled_from_outside_closes_what_it_has_open() -> None:
    command = [sys.executable, "-c", CANCELLED_FROM_OUTSIDE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=peers.TIMEOUT, check=False)
    assert (done.stdout, done.stderr) == ("closed\n", "")

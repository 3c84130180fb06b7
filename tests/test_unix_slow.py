"""Who reads slowly at a UNIX socket moves, although the kernel frees a piece only once its last byte is read."""

import asyncio
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest

import ringmain
from ringmain import errors
from ringmain.flow import clients
from ringmain.net import unix_diag

Run = Callable[[Any], Any]
# Less than one piece of the kernel's, so that TIOCOUTQ stays the same until all of it is read.
DATA = peers.payload(90_000)
PART = 1000


@pytest.fixture(autouse=True)
def told() -> None:
    """Skip where the kernel does not tell: there memory is all that is known."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        if unix_diag.PeerQueue().size(ours) is None:
            pytest.skip("this kernel has no unix_diag")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(peers.TIMEOUT)
        yield listener


def read_slowly(listener: socket.socket, seconds: float, got: bytearray) -> None:
    """Read a little now and then for so long, and then all there is."""
    sock, _ = listener.accept()
    sock.settimeout(peers.TIMEOUT)
    with sock:
        until = time.monotonic() + seconds
        while time.monotonic() < until and len(got) < len(DATA) - PART:
            got += sock.recv(PART)
            time.sleep(0.1)
        got += peers.read_all(sock)


def test_what_the_peer_has_not_read_is_told_to_the_byte() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    queue = unix_diag.PeerQueue()
    with ours, theirs:
        assert queue.size(ours) == 0
        ours.sendall(DATA)
        assert queue.size(ours) == len(DATA)
        assert queue.size(theirs) is not None
        theirs.recv(PART)
        assert queue.size(ours) == len(DATA) - PART
        assert unix_diag.PeerQueue().size(theirs) == 0
        theirs.close()
        assert queue.size(ours) is None


def test_it_is_told_too_where_it_was_asked_before_the_peer_had_accepted(listener: socket.socket) -> None:
    queue = unix_diag.PeerQueue()
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(listener.getsockname())
        ours.sendall(DATA)
        assert queue.size(ours) is None
        with listener.accept()[0]:
            assert queue.size(ours) == len(DATA)


def test_where_the_kernel_does_not_tell_it_is_memory(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    monkeypatch.setattr(unix_diag, "_SOCK_DIAG", 31)  # a protocol that nobody has

    async def main() -> None:
        async with ringmain.load(f"unix:{tmp_path}/s") as loader, ringmain.save(f"unix:{tmp_path}/s") as saver:
            await saver.write(DATA)
            assert 0 <= saver.unacknowledged_bytes <= len(DATA)
            stream = await loader.next_connection()
            assert stream is not None
            assert bytes(await anext(stream)) in DATA

    run(main())


@pytest.mark.parametrize("what", ["save", "reconnect", "relay", "connection"])
def test_a_slow_reader_does_not_stand_still(
    run: Run, listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It takes longer than the time-out to read what one piece holds, and moves all the while."""
    monkeypatch.setattr(clients, "_GRACE", 3.0)
    got = bytearray()
    url = f"unix:{tmp_path}/socket"

    async def main() -> None:
        reader = threading.Thread(target=read_slowly, args=[listener, 6.0, got])
        reader.start()
        if what == "relay":
            async with ringmain.relay(f"unix:{tmp_path}/from", url, idle_timeout=3, listen_once=True) as relayer:
                serving = asyncio.ensure_future(relayer.serve())
                async with ringmain.save(f"unix:{tmp_path}/from") as saver:
                    await saver.write(DATA)
                await serving
        elif what == "connection":
            async with ringmain.connect(url, idle_timeout=3) as connection:
                await connection.write(DATA)
                await connection.write_eof()
                with pytest.raises(StopAsyncIteration):
                    await anext(connection)
        else:
            async with ringmain.save(url, idle_timeout=3, reconnect=what == "reconnect") as saver:
                await saver.write(DATA)
        await asyncio.to_thread(reader.join)

    run(main())
    assert peers.sha256(bytes(got)) == peers.sha256(DATA)


def test_one_that_reads_nothing_does(run: Run, listener: socket.socket, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(errors.TimedOutError, match=r"it took nothing for 0\.3 s"):
            async with ringmain.save(f"unix:{tmp_path}/socket", idle_timeout=0.3) as saver:
                await saver.write(DATA)

    run(main())


def test_after_a_signal_a_slow_reader_gets_the_rest(
    bench: peers.Bench, listener: socket.socket, tmp_path: Path
) -> None:
    got = bytearray()
    reader = threading.Thread(target=read_slowly, args=[listener, 6.0, got])
    reader.start()
    saver = bench.ringmain("save", f"unix:{tmp_path}/socket", stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    saver.process.stdin.write(DATA)
    saver.process.stdin.flush()
    peers.eventually(lambda: got, "the first bytes")
    peers.eventually(lambda: peers.unread(saver.process.stdin) == 0, "an empty pipe")
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143
    reader.join()
    assert peers.sha256(bytes(got)) == peers.sha256(DATA)
    assert saver.stderr == ""

"""UNIX sockets: every byte arrives, on either path; who the peers are; whose file it is."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import streams
from merging import until
from peers import dial_unix as dial

import ringmain
from ringmain import errors
from ringmain.net import unix
from ringmain.outcome import Outcome, RelayOutcome, Verdict

Run = Callable[[Any], Any]
LARGE = peers.payload(6_000_000)  # more than the kernel holds of a connection that nobody reads
US = (os.getpid(), os.getuid(), os.getgid())


@contextlib.contextmanager
def listening(path: Path, backlog: int = 8) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(peers.TIMEOUT)
        listener.bind(str(path))
        listener.listen(backlog)
        yield listener


def accept(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    sock.settimeout(peers.TIMEOUT)
    return sock


def reading(listener: socket.socket, got: list[bytes]) -> threading.Thread:
    def read() -> None:
        with accept(listener) as sock:
            got.append(peers.read_all(sock))

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def swap(sock: socket.socket, data: bytes, size: int) -> bytes:
    """Send data and an end while so much is read."""
    with streams.sending(sock, data):
        got = streams.read(sock, size)
    sock.shutdown(socket.SHUT_WR)
    return got + peers.read_all(sock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.mark.parametrize("how", ["auto", "kernel", "block"])
def test_load_writes_every_byte_of_one_client_after_another(bench: peers.Bench, path: Path, how: str) -> None:
    output = bench.folder / "output"
    program = bench.ringmain("load", "--path", how, "--output", output, f"unix:{path}")
    for data in (LARGE, b"", b"and more"):
        with dial(path) as sock:
            sock.sendall(data)
    peers.eventually(lambda: output.stat().st_size == len(LARGE) + 8)
    program.signal(15)
    assert program.wait() == 143
    assert peers.sha256(output) == peers.sha256(LARGE + b"and more")
    assert not path.exists()


@pytest.mark.parametrize("how", ["kernel", "block"])
def test_a_slow_reader_makes_the_peer_wait_and_gets_all(bench: peers.Bench, path: Path, how: str) -> None:
    with streams.pipe(4096) as (reader, writer):
        program = bench.ringmain("load", "-o", "--path", how, f"unix:{path}", stdout=writer)
        writer.close()
        with dial(path) as sock, streams.sending(sock, LARGE):
            peers.eventually(lambda: peers.unread(reader) >= 4096, "a full pipe")
            got = streams.read(reader, len(LARGE))
        assert reader.read() == b""
        assert program.wait() == 0, program.stderr
    assert peers.sha256(got) == peers.sha256(LARGE)


@pytest.mark.parametrize("how", ["auto", "block"])
def test_save_sends_every_byte_of_a_file_and_of_a_pipe(bench: peers.Bench, path: Path, how: str) -> None:
    source = bench.file(LARGE)
    for arguments in (["--input", source], []):
        got: list[bytes] = []
        with listening(path) as listener, source.open("rb") as file:
            thread = reading(listener, got)
            program = bench.ringmain("save", "--path", how, *arguments, f"unix:{path}", stdin=file)
            thread.join(peers.TIMEOUT)
            assert program.wait() == 0, program.stderr
        assert peers.sha256(got[0]) == peers.sha256(LARGE)
        path.unlink()


def test_save_leaves_once_the_peer_has_read_all(bench: peers.Bench, path: Path) -> None:
    with listening(path) as listener:
        program = bench.ringmain("save", "--input", bench.file(b"12345"), f"unix:{path}")
        with accept(listener) as sock:
            peers.eventually(lambda: peers.unread(sock) == 5)
            assert program.process.poll() is None
            assert peers.read_all(sock) == b"12345"
            assert program.wait() == 0, program.stderr


def test_save_tells_that_the_peer_has_left_bytes_unread(bench: peers.Bench, path: Path) -> None:
    with listening(path) as listener:
        program = bench.ringmain("save", "--input", bench.file(b"12345"), f"unix:{path}")
        with accept(listener) as sock:
            peers.eventually(lambda: peers.unread(sock) == 5)
        assert program.wait() == 55
    assert "connection reset by peer" in program.stderr
    assert len(program.stderr.splitlines()) == 1


@pytest.mark.parametrize("how", ["auto", "block"])
@pytest.mark.parametrize("many", [1, 5])
def test_relays_go_both_ways_at_once(run: Run, path: Path, how: str, many: int) -> None:
    there, back = LARGE, peers.payload(5_000_000, 2)
    got: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with accept(listener) as sock:
            got.append(swap(sock, back, len(there)))

    def ask() -> bytes:
        with dial(path) as sock:
            return swap(sock, there, len(back))

    async def main(listener: socket.socket) -> None:
        url = f"unix:{listener.getsockname()}"
        told: list[RelayOutcome] = []
        async with ringmain.relay(f"unix:{path}", url, max_connections=many) as relayer:
            relayer.on_end = told.append
            serving = asyncio.create_task(relayer.serve(how))
            servers = [asyncio.create_task(asyncio.to_thread(serve, listener)) for _ in range(many)]
            answers = await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(many)))
            await asyncio.gather(*servers)
            assert {peers.sha256(it) for it in answers} == {peers.sha256(back)}
            await until(lambda: len(told) == many)
            relayer.stop()
            await serving
        assert {it.verdict for it in told} == {Verdict.ENDED}
        assert {it.source.credentials for it in told} == {it.destination.credentials for it in told} == {US}

    with listening(path.with_name("destination"), 64) as listener:
        run(main(listener))
    assert {peers.sha256(it) for it in got} == {peers.sha256(there)}


def test_a_client_that_has_sent_all_and_left_is_relayed_although_the_other_side_is_late(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(listener: socket.socket) -> None:
        dialling = asyncio.Event()
        connect = unix.connect

        async def connect_slowly(*arguments: Any) -> socket.socket:
            dialling.set()
            return await connect(*arguments)

        monkeypatch.setattr(unix, "connect", connect_slowly)
        with dial(listener.getsockname()):  # which fills the backlog
            async with ringmain.relay(f"unix:{path}", f"unix:{listener.getsockname()}", listen_once=True) as relayer:
                serving = asyncio.create_task(relayer.serve())
                with dial(path) as client:
                    client.sendall(b"12345")
                await dialling.wait()
                await asyncio.sleep(0)
                accept(listener).close()
                with await asyncio.to_thread(accept, listener) as sock:
                    assert await asyncio.to_thread(peers.read_all, sock) == b"12345"
                await serving

    with listening(path.with_name("destination"), 0) as listener:
        run(main(listener))


def test_a_full_backlog_is_waited_for_and_no_longer_than_that(run: Run, path: Path) -> None:
    async def main(listener: socket.socket) -> None:
        with dial(path), pytest.raises(errors.TimedOutError) as caught:
            async with ringmain.save(f"unix:{path}", connect_timeout=0.05):
                pass
        assert caught.value.limit == "connect_timeout"

    with listening(path, 0) as listener:
        run(main(listener))


def test_who_connects_is_known_by_process_and_user(run: Run, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Outcome] = []

    async def main() -> None:
        async with ringmain.load(f"unix:{path}", listen_once=True) as loader:
            loader.on_end = told.append
            assert loader.addresses == [f"unix:{path}"]
            assert f"unix:{path}" in repr(loader)
            with pytest.raises(ValueError, match="no port"):
                _ = loader.port
            with dial(path) as client:
                client.sendall(b"12345")
            assert [bytes(block) async for block in loader] == [b"12345"]

    run(main())
    assert told[0].credentials == US
    assert told[0].peer == f"unix:pid={US[0]},uid={US[1]},gid={US[2]}"


def test_a_row_of_the_stats_file_tells_who_it_was(bench: peers.Bench, path: Path) -> None:
    stats, output = bench.folder / "stats", bench.folder / "out"
    program = bench.ringmain("load", "-o", "--stats-file", stats, "--output", f"{output}-{{peer}}", f"unix:{path}")
    with dial(path) as sock:
        sock.sendall(b"12345")
    assert program.wait() == 0, program.stderr
    row = json.loads(stats.read_text())
    assert (row["pid"], row["uid"], row["gid"]) == US
    assert row["verdict"] == "ended"
    assert Path(f"{output}-unix_pid_{US[0]}_uid_{US[1]}_gid_{US[2]}").read_bytes() == b"12345"


def test_a_command_is_told_where_its_client_came_to(bench: peers.Bench, path: Path) -> None:
    command = 'cat > /dev/null; echo "$RINGMAIN_LISTENER $RINGMAIN_PEER" > ' + str(bench.folder / "told")
    program = bench.ringmain("load", "-o", "--exec", command, f"unix:{path}")
    dial(path).close()
    assert program.wait() == 0, program.stderr
    assert (bench.folder / "told").read_text() == f"unix:{path} unix:pid={US[0]},uid={US[1]},gid={US[2]}\n"


def test_a_file_that_nobody_listens_at_is_replaced(run: Run, path: Path) -> None:
    with listening(path):
        pass
    assert path.is_socket()

    async def main() -> None:
        async with ringmain.load(f"unix:{path}") as loader:
            assert loader.addresses == [f"unix:{path}"]
            dial(path).close()

    run(main())
    assert not path.exists()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_that_somebody_has_is_left_to_him_and_he_hears_nothing_of_it(run: Run, path: Path, kind: int) -> None:
    async def main() -> None:
        with pytest.raises(errors.BindError, match="stop what listens there"):
            async with ringmain.load(f"unix:{path}"):
                pass

    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        run(main())
        if kind == socket.SOCK_STREAM:
            other.listen()
            run(main())
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.accept()
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(run: Run, path: Path) -> None:
    path.write_bytes(b"precious")

    async def main() -> None:
        with pytest.raises(errors.BindError, match="not a socket"):
            async with ringmain.load(f"unix:{path}"):
                pass

    run(main())
    assert path.read_bytes() == b"precious"


def test_the_file_of_whoever_came_after_is_left_to_him(run: Run, path: Path) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            async with ringmain.load(f"unix:{path}"):
                os.unlink(path)  # noqa: PTH108 - as another program would, at once
                await stack.enter_async_context(ringmain.load(f"unix:{path}"))
            dial(path).close()  # which fails where it was removed

    run(main())
    assert not path.exists()


def test_the_mode_and_the_owner_are_those_that_are_asked_for(bench: peers.Bench, path: Path) -> None:
    owner = f":{os.getgid()}"
    bench.ringmain("load", "--socket-mode", "0622", "--socket-owner", owner, f"unix:{path}", umask=0o077)
    status = peers.eventually(lambda: path.exists() and stat.S_IMODE(path.stat().st_mode) == 0o622 and path.stat())
    assert status.st_gid == os.getgid()


def test_others_wait_connected_while_one_is_served(run: Run, path: Path) -> None:
    async def main() -> None:
        async with ringmain.load(f"unix:{path}", handshake_timeout=None) as loader:
            with dial(path) as first, dial(path) as second:
                second.sendall(b"second")
                second.shutdown(socket.SHUT_WR)
                stream = await loader.next_connection()
                assert stream is not None
                first.sendall(b"first")
                first.shutdown(socket.SHUT_WR)
                assert b"".join([bytes(it) async for it in stream]) == b"first"
                stream = await loader.next_connection()
                assert stream is not None
                assert b"".join([bytes(it) async for it in stream]) == b"second"

    run(main())

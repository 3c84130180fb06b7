"""Many clients of `save`, from the command line and in each of Python's forms, and what makes no sense."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
import witness
from audiences import PLAIN, connect, read_on
from conforming import LARGE, PROPER, Net, nothing_is_pending
from conftest import Certificates
from merging import until

import ringmain
from ringmain import errors
from ringmain.flow import copying, kernel
from ringmain.flow.descriptor import Input
from ringmain.flow.outflow import Outflow

Run = Callable[[Any], Any]


class Reader:
    """A client on a thread: it reads `first` bytes, and the rest once that was asked for."""

    def __init__(self, port: int, first: int, ca: Path | None = None) -> None:
        self.sock = peers.connect(port) if ca is None else peers.connect_tls(port, ca)
        self.got, self.end = b"", ""
        self._first, self._first_read, self._go_on = first, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def begun(self) -> None:
        assert self._first_read.wait(peers.TIMEOUT)

    def go_on(self) -> None:
        self._go_on.set()

    def over(self) -> None:
        self._go_on.set()
        self._thread.join(peers.TIMEOUT)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        chunks, size = [], 0
        with self.sock:
            try:
                while chunk := self.sock.recv(1 << 16):
                    chunks.append(chunk)
                    size += len(chunk)
                    if size >= self._first:
                        self._first_read.set()
                        self._go_on.wait(peers.TIMEOUT)
                self.end = "proper"
            except (ConnectionResetError, ssl.SSLError):
                self.end = "reset"
            self.got = b"".join(chunks)


@pytest.mark.parametrize("way", ["kernel", "block", "tls"])
def test_a_file_goes_whole_to_many_side_by_side(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, way: str
) -> None:
    data, stats = LARGE * 3, tmp_path / "stats"
    options = ["--listen", "--max-connections", 3, "--input", bench.file(data), "--stats-file", stats]
    options += ["--tls", "--certfile", certificates.server] if way == "tls" else ["--path", way]
    saver, port = bench.listening("save", *options)
    readers = [Reader(port, 1, certificates.ca if way == "tls" else None) for _ in range(3)]
    for reader in readers:
        reader.begun()  # nobody's file is through before everybody's has begun
    for reader in readers:
        reader.over()
        assert reader.end == "proper"
        assert peers.sha256(reader.got) == peers.sha256(data)
    late = Reader(port, 1, certificates.ca if way == "tls" else None)
    late.over()
    assert peers.sha256(late.got) == peers.sha256(data)
    peers.eventually(lambda: stats.exists() and stats.read_text().count("\n") == 4, "the rows")
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert [(row["bytes"], row["verdict"]) for row in rows] == [(len(data), "ended")] * 4
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143, saver.stderr


@pytest.mark.parametrize("way", ["kernel", "block"])
def test_a_signal_resets_those_who_have_a_part_of_a_file(bench: peers.Bench, way: str) -> None:
    options = ["--listen", "--max-connections", 2, "--input", bench.file(LARGE * 3), "--path", way]
    saver, port = bench.listening("save", *options)
    readers = [Reader(port, 1) for _ in range(2)]
    for reader in readers:
        reader.begun()
    saver.signal(signal.SIGTERM)
    for reader in readers:
        reader.over()
        assert reader.end == "reset"
    assert saver.wait() == 143, saver.stderr


def test_a_pipe_goes_to_all_who_are_there_and_ends_properly_at_a_signal(bench: peers.Bench, tmp_path: Path) -> None:
    data, stats = peers.payload(3_000_000), tmp_path / "stats"
    options = ["--listen", "--max-connections", 3, "--stats-file", stats, "-v", "--progress"]
    saver, port = bench.listening("save", *options, stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    readers = [Reader(port, 1 << 30) for _ in range(3)]
    peers.eventually(lambda: saver.stderr.count(": connected") == 3, "three connections")
    for offset in range(0, len(data), 700_000):
        saver.process.stdin.write(data[offset : offset + 700_000])
        saver.process.stdin.flush()
    saver.says("3 connected  ")
    peers.eventually(lambda: peers.unread(saver.process.stdin) == 0, "an empty pipe")
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143, saver.stderr
    for reader in readers:
        reader.over()
        assert (reader.end, peers.sha256(reader.got)) == ("proper", peers.sha256(data))
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert [(row["bytes"], row["verdict"]) for row in rows] == [(len(data), "ended")] * 3


def test_the_command_drops_who_is_behind(bench: peers.Bench) -> None:
    options = ["--listen", "--max-connections", 2, "--slow", "drop", "--client-buffer", "1M", "-v"]
    saver, port = bench.listening("save", *options, stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    stuck, good, sent = Reader(port, 1), Reader(port, 1 << 30), b""
    peers.eventually(lambda: saver.stderr.count(": connected") == 2, "two connections")
    while (
        "more than --client-buffer 1048576 bytes behind; raise --client-buffer, or give --slow wait" not in saver.stderr
    ):
        sent += LARGE[:50_000]
        saver.process.stdin.write(LARGE[:50_000])
        saver.process.stdin.flush()
    saver.process.stdin.close()
    assert saver.wait() == 0, saver.stderr
    stuck.over()
    good.over()
    assert (stuck.end, good.end) == ("reset", "proper")
    assert peers.sha256(good.got) == peers.sha256(sent)


def test_a_plain_with_serves_many_too() -> None:
    with ringmain.save("127.0.0.1:0", listen=True, max_connections=2) as saver:
        readers = [Reader(saver.port, 1 << 30) for _ in range(2)]
        saver.wait_for_peer()
        peers.eventually(lambda: saver.wait_for_peer() or saver.connections == 2)
        saver.write(b"small")
        saver.write(LARGE)
        assert saver.counters is not None
        assert saver.counters.bytes_out == 2 * len(LARGE) + 10
    for reader in readers:
        reader.over()
        assert (reader.end, peers.sha256(reader.got)) == ("proper", peers.sha256(b"small" + LARGE))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_connections": 2}, "max_connections=2: there is only one connection; add listen=True"),
        ({"max_connections": 2, "listen_once": True}, "max_connections=2 with listen_once=True: there is only one"),
        ({"max_connections": 0, "listen": True}, "max_connections=0: nobody could be served"),
        ({"slow": "drop", "listen": True}, "slow=drop: there is only one client"),
        ({"slow": "hurry", "listen": True}, "slow='hurry': not known; choose one of wait, drop"),
        ({"client_buffer": 0, "listen": True}, "client_buffer=0: it holds nothing; give at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ringmain.UsageError, match=said):
        ringmain.save("127.0.0.1:0", **options)


def test_a_stream_for_many_is_not_spliced(bench: peers.Bench) -> None:
    options = ["--listen", "--max-connections", 2, "--path", "kernel", "127.0.0.1:0"]
    saver = bench.ringmain("save", *options, stdin=subprocess.PIPE)
    assert saver.wait() == 2
    assert "--path kernel: input is sent to many clients in blocks; leave --path out" in saver.stderr


def test_each_of_many_is_given_its_own(run: Run, net: Net) -> None:
    async def main() -> list[tuple[bytes, str | None]]:
        numbers = iter(range(4))
        together = asyncio.Barrier(4)

        async def give(outflow: Outflow) -> bool:
            number = next(numbers)
            await together.wait()
            await outflow.send(memoryview(b"for %d" % number))
            return number < 3  # the last gets but a part

        async with ringmain.save(net.url(), listen=True, max_connections=4, **net.listening) as saver:
            serving = asyncio.ensure_future(saver.serve(give))
            clients = await connect(saver, net, 4)
            await read_on(clients)
            saver.stop()
            assert await serving
            with pytest.raises(errors.SendError, match="stopped"):
                await saver.write(b"for nobody")
        return sorted((bytes(client.received), client.end) for client in clients)

    proper = "close_notify" if net.tls else "fin"
    assert run(main()) == [(b"for %d" % number, proper if number < 3 else "reset") for number in range(4)]


@pytest.mark.parametrize("how", ["it fails", "it is cancelled"])
def test_when_giving_ends_early_all_are_reset(run: Run, net: Net, how: str) -> None:
    async def main() -> list[str | None]:
        begun: list[Outflow] = []

        async def give(outflow: Outflow) -> bool:
            await outflow.send(memoryview(b"a part"))
            begun.append(outflow)
            if len(begun) == 3 and how == "it fails":
                raise errors.InputError("read it", "it is gone")
            return bool(await asyncio.Event().wait())

        async with ringmain.save(net.url(), listen=True, max_connections=3, **net.listening) as saver:
            serving = asyncio.ensure_future(saver.serve(give))
            clients = await connect(saver, net, 3)
            reading = read_on(clients)
            if how == "it is cancelled":
                await until(lambda: len(begun) == 3)
                serving.cancel()
            await asyncio.wait([serving])
            assert serving.cancelled() or isinstance(serving.exception(), errors.InputError)
            await reading
        nothing_is_pending()
        return [client.end for client in clients]

    assert run(main()) == ["reset"] * 3


def test_a_client_there_is_no_thread_for_is_reset_where_the_kernel_path_is_insisted_on_and_the_others_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(LARGE)

    def refuse(_: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> list[witness.Witness]:
        async with ringmain.save("127.0.0.1:0", listen=True, max_connections=2) as saver:
            with path.open("rb") as file, contextlib.closing(Input(file.fileno(), str(path), "--input")) as source:
                sending = asyncio.ensure_future(copying.from_input(saver, source, "kernel"))
                with monkeypatch.context() as context:
                    context.setattr(kernel, "_start_thread", refuse)
                    (first,) = await connect(saver, PLAIN, 1)
                    await read_on([first])
                (second,) = await connect(saver, PLAIN, 1)
                await read_on([second])
                saver.stop()
                await sending
            return [first, second]

    first, second = run(main())
    assert (bytes(first.received), first.end) == (b"", "reset")
    assert peers.sha256(bytes(second.received)) == peers.sha256(LARGE)
    assert second.end in PROPER
    assert os.strerror(errno.EAGAIN).lower() in caplog.text


def test_giving_nothing_to_one_of_many_is_refused(run: Run) -> None:
    async def give(_: Outflow) -> None:
        return None

    async def main() -> None:
        async with ringmain.save("127.0.0.1:0", listen=True, max_connections=2) as saver:
            with socket.create_connection(("127.0.0.1", saver.port)):
                await saver.serve(give)

    with pytest.raises(ringmain.UsageError, match="the function gave one of many clients nothing"):
        run(main())

"""How many clients are asked for, in Python and on the command line, and what makes no sense."""

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest

import ringmain

Run = Callable[[Any], Any]


def test_plain_with_and_for_merge_too() -> None:
    got = b""
    with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
        threads = [peers.send_in_thread(loader.port, b"one\n"), peers.send_in_thread(loader.port, b"two\n")]
        for block in loader:
            with block:
                got += block
            if len(got) == 8:
                break
        for thread in threads:
            thread.join()
    assert sorted(got.split()) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_connections": 0}, "max_connections=0: nobody could be served; give at least 1"),
        ({"max_connections": 2, "connect": True}, "max_connections=2 with connect=True: there is only one connection"),
        ({"max_connections": 2, "listen_once": True}, "max_connections=2 with listen_once=True"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ringmain.UsageError, match=said):
        ringmain.load("127.0.0.1:0", **options)


def test_one_loader_is_read_in_one_way(run: Run) -> None:
    async def main() -> None:
        async with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(loader), 0.05)
            with pytest.raises(ringmain.UsageError, match="merged already"):
                await anext(loader.connections())
        async with ringmain.load("127.0.0.1:0") as loader:
            with pytest.raises(ringmain.UsageError, match="one connection at a time is served"):
                await anext(loader.tagged())

    run(main())


def test_the_command_merges_lines_and_tells_of_each_connection(bench: peers.Bench, tmp_path: Path) -> None:
    stats, got = tmp_path / "stats", tmp_path / "got"
    loader, port = bench.listening("load", "--max-connections", 4, "--stats-file", stats, "-O", got)
    sent = [b"".join(b"%d %d\n" % (number, index) for index in range(2000)) for number in range(8)]
    for thread in [peers.send_in_thread(port, data) for data in sent]:
        thread.join(peers.TIMEOUT)
    peers.eventually(lambda: stats.exists() and stats.read_text().count("\n") == 8, "the rows")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    lines = got.read_bytes().splitlines(keepends=True)
    assert sorted(lines) == sorted(b"".join(sent).splitlines(keepends=True))
    for number in range(8):
        assert b"".join(line for line in lines if line.startswith(b"%d " % number)) == sent[number]
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert sorted(row["bytes"] for row in rows) == sorted(map(len, sent))
    assert {row["verdict"] for row in rows} == {"ended"}


def test_progress_tells_how_many_clients_there_are(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "--max-connections", 3, "--progress", stdout=subprocess.DEVNULL)
    with peers.connect(port) as one, peers.connect(port) as other:
        for sock in (one, other):
            sock.sendall(b"12345\n")
        loader.says("2 connected  12 B")
    loader.says("0 connected  12 B")


def test_the_command_takes_another_delimiter(bench: peers.Bench) -> None:
    options = ("--max-connections", 2, "--delimiter", r"\x1e")
    loader, port = bench.listening("load", *options, stdout=subprocess.PIPE)
    with peers.connect(port) as sock:
        sock.sendall(b"one\n\x1etwo")
        assert loader.process.stdout is not None
        assert loader.process.stdout.read(5) == b"one\n\x1e"
        peers.send_no_more(sock)
        assert loader.process.stdout.read(4) == b"two\x1e"


def test_the_command_says_what_it_cannot_open(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "--max-connections", 10**20, stdout=subprocess.PIPE)
    loader.says("files only; see ulimit -n")
    with peers.connect(port) as sock:
        sock.sendall(b"served\n")
        assert loader.process.stdout is not None
        assert loader.process.stdout.readline() == b"served\n"
    assert "Traceback" not in loader.stderr


def test_what_hears_of_the_ends_may_raise_and_all_are_closed(run: Run) -> None:
    async def main() -> None:
        heard = []

        def hear(outcome: Any) -> None:
            heard.append(outcome)
            raise LookupError

        with socket.socket() as one, socket.socket() as two:
            with pytest.raises(LookupError):
                async with ringmain.load("127.0.0.1:0", max_connections=2) as loader:
                    loader.on_end = hear
                    for sock in (one, two):
                        sock.settimeout(peers.TIMEOUT)
                        sock.connect(("127.0.0.1", loader.port))
                        sock.sendall(b"x\n")
                    got = bytes(await anext(loader))
                    while len(got) < 4:
                        got += await anext(loader)
            for sock in (one, two):
                assert await asyncio.to_thread(sock.recv, 1) == b""
            assert loader.addresses == []
        assert len(heard) == 2

    run(main())

"""The how-to for compressed files: what it tells to run loses no byte under load, and cuts no line."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import peers
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "files.md"
ONE = "ringmain load --listen-once tcp://127.0.0.1:8000 | zstd -q -o events.ndjson.zst"
SPLIT = (
    "ringmain load --max-connections 100 tcp://127.0.0.1:8001 | "
    "split --line-bytes=1G --filter='zstd -q > \"$FILE.zst\"' - events-"
)
EXEC = (
    "ringmain load --max-connections 100 --exec 'zstd -q > \"events-$RINGMAIN_NUMBER.ndjson.zst\"' tcp://127.0.0.1:8002"
)
ROTATION = """/var/log/events.ndjson {
    size 1G
    rotate 14
    compress
    compresscmd /usr/bin/zstd
    compressext .zst
    compressoptions -q
    delaycompress
    nocreate
    postrotate
        systemctl kill --kill-whom=main --signal=HUP ringmain
    endscript
}
"""
CLIENTS = 4


@pytest.mark.parametrize("text", [ONE, SPLIT, EXEC, ROTATION], ids=["one", "split", "exec", "logrotate"])
def test_it_is_what_the_page_says(text: str) -> None:
    if not PAGE.exists() or "### Compress" not in PAGE.read_text():
        pytest.skip("the page is not beside these tests")
    assert text in PAGE.read_text()


@pytest.fixture(params=["zstd", "gzip"])
def compressor(request: pytest.FixtureRequest) -> str:
    peers.need(request.param)
    return str(request.param)


def run(bench: peers.Bench, line: str, compressor: str) -> tuple[peers.Program, int]:
    """Run a line of the page in the test's folder, with either compressor and at a free port."""
    port = peers.free_port()
    line = re.sub(r"(?<=127\.0\.0\.1:)\d+", str(port), line)
    if compressor == "gzip":
        line = line.replace("zstd -q -o", "gzip >").replace("zstd -q", "gzip")
    shim = bench.file(f'#!/bin/sh\nexec "{sys.executable}" -P -m ringmain "$@"\n'.encode(), "ringmain")
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{bench.folder}:{os.environ['PATH']}"}
    program = bench.start(["bash", "-c", line], cwd=bench.folder, env=environment, start_new_session=True)
    peers.wait_for_port(port)
    return program, port


def lines(client: int) -> bytes:
    filler = peers.payload(500, client).hex().encode()
    return b"".join(b"%d %d %s\n" % (client, number, filler[: number * 37 % 1000]) for number in range(4000))


def send_all(port: int) -> None:
    """Be all clients at once."""
    threads = [threading.Thread(target=send, args=[port, lines(client)]) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(peers.TIMEOUT)


def send(port: int, data: bytes) -> None:
    with peers.connect(port) as sock:
        sock.sendall(data)
        peers.send_no_more(sock)
        peers.read_all(sock)  # until the other side has it all


def plain(path: Path, compressor: str) -> bytes:
    return subprocess.run([compressor, "-dc", path], capture_output=True, check=True).stdout


def end(program: peers.Program) -> None:
    """End ringmain alone, and wait for the compressors."""
    [pid] = [pid for pid in children_of_group(program.process.pid) if is_ringmain(pid)]
    os.kill(pid, signal.SIGTERM)
    program.wait()


def children_of_group(group: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == group:
                found.append(int(stat.parent.name))
    return found


def is_ringmain(pid: int) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return words[0] == sys.executable.encode() and b"ringmain" in words
    return False


def test_one_stream_into_one_file(bench: peers.Bench, compressor: str) -> None:
    program, port = run(bench, ONE, compressor)
    send(port, lines(1))
    assert program.wait() == 0, program.stderr
    assert peers.sha256(plain(bench.folder / "events.ndjson.zst", compressor)) == peers.sha256(lines(1))


def test_many_clients_into_files_of_one_size(bench: peers.Bench, compressor: str) -> None:
    program, port = run(bench, SPLIT.replace("1G", "1M"), compressor)
    send_all(port)
    end(program)
    files = sorted(bench.folder.glob("events-*"))
    parts = [plain(it, compressor) for it in files]
    assert len(parts) > 3, program.stderr
    assert all(0 < len(it) <= 1 << 20 and it.endswith(b"\n") for it in parts)
    got = b"".join(parts).splitlines(keepends=True)
    for client in range(CLIENTS):
        mine = b"".join(it for it in got if it.startswith(b"%d " % client))
        assert peers.sha256(mine) == peers.sha256(lines(client))


def test_each_connection_into_a_file_of_its_own(bench: peers.Bench, compressor: str) -> None:
    program, port = run(bench, EXEC, compressor)
    send_all(port)
    end(program)
    got = {peers.sha256(plain(it, compressor)) for it in bench.folder.glob("events-*")}
    assert got == {peers.sha256(lines(client)) for client in range(CLIENTS)}


@pytest.mark.parametrize("compressor", ["zstd", "gzip"], indirect=True)
def test_logrotate_compresses_what_was_moved_away(bench: peers.Bench, tmp_path: Path, compressor: str) -> None:
    logrotate, file = peers.need("logrotate"), tmp_path / "log"
    service: dict[str, Any] = {"start_new_session": True}
    loader, port = bench.listening("load", "-o", "-O", file, "--append", **service)
    text = ROTATION.replace("/var/log/events.ndjson", str(file))
    if compressor == "gzip":
        text = re.sub(r" *compress(cmd|ext|options) .*\n", "", text)
    else:
        text = text.replace("/usr/bin/zstd", peers.need("zstd"))
    text, count = re.subn(r"systemctl kill .*", f"kill -HUP {loader.process.pid}", text)
    assert count == 1
    config = bench.file(text.encode(), "rotation")
    config.chmod(0o644)
    over, size = threading.Event(), 0
    data = b"".join(lines(client) for client in range(CLIENTS))

    def feed() -> None:
        nonlocal size
        with peers.connect(port) as sock:
            while not over.wait(0.002):
                sock.sendall(data[size % len(data) :][:20_000])
                size += min(20_000, len(data) - size % len(data))

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        for _ in range(4):
            peers.eventually(lambda: file.exists() and file.stat().st_size > 0, "something in the file")
            rotation = bench.start([logrotate, "--force", "--state", str(tmp_path / "state"), str(config)])
            assert rotation.wait() == 0, rotation.stderr
            peers.eventually(file.exists, "the new file")
    finally:
        over.set()
        feeding.join(peers.TIMEOUT)
    assert loader.wait() == 0
    suffix = ".zst" if compressor == "zstd" else ".gz"
    old = [tmp_path / f"log.{age}{suffix}" for age in (4, 3, 2)]
    got = b"".join(plain(it, compressor) for it in old)
    got += (tmp_path / "log.1").read_bytes() + file.read_bytes()
    assert len(got) == size
    assert peers.sha256(got) == peers.sha256((data * (size // len(data) + 1))[:size])

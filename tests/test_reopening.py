"""SIGHUP to a service: output and stats files are opened anew, and each byte is in one of them, once and in order."""

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documented
import peers
import pytest
from conftest import Certificates
from crews import Crew

PAGE = documented.ROOT / "docs" / "howto" / "files.md"
# Without a controlling terminal, whatever the tests are run from.
SERVICE: dict[str, Any] = {"start_new_session": True}


@contextlib.contextmanager
def streaming(sock: socket.socket, lines: Iterator[bytes]) -> Iterator[Any]:
    """Send, from a thread, one line after another until the block is left, then end properly; yield their digest."""
    digest, over = hashlib.sha256(), threading.Event()

    def send() -> None:
        while not over.wait(0.001):
            data = b"".join(itertools.islice(lines, 20))
            sock.sendall(data)
            digest.update(data)
        if hasattr(sock, "unwrap"):
            sock.unwrap()
        sock.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield digest
    finally:
        over.set()
        thread.join(peers.TIMEOUT)


def numbered(seed: int = 0) -> Iterator[bytes]:
    """Yield lines of any length, no two alike."""
    filler = peers.payload(3000, seed).hex().encode()
    return (b"%d %d %s\n" % (seed, number, filler[: number * 37 % 6000]) for number in itertools.count())


def rotate(program: peers.Program, file: Path, to: Path, ready: Any = Path.exists) -> Path:
    """Move a file that has something away, send SIGHUP, and wait until there is another one."""
    peers.eventually(lambda: file.stat().st_size > 0, "something in the file")
    file.rename(to)
    program.signal(signal.SIGHUP)
    peers.eventually(lambda: ready(file), "the new file")
    return to


def digest_of(files: list[Path]) -> str:
    return peers.sha256(b"".join(file.read_bytes() for file in files))


@pytest.mark.parametrize(
    "options",
    [["--path", "kernel"], ["--path", "block"], ["--append"], ["--delimiter", "\\n"], ["--tls"]],
    ids=["kernel", "block", "append", "delimiter", "tls"],
)
def test_a_stream_goes_on_in_the_new_file(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, options: list[Any]
) -> None:
    tls = options == ["--tls"]
    options = [*options, "--certfile", certificates.server] if tls else options
    file = tmp_path / "log"
    loader, port = bench.listening("load", "-o", *options, "-O", file, **SERVICE)
    sock = peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)
    with streaming(sock, numbered()) as digest:
        old = [rotate(loader, file, tmp_path / f"log.{age}") for age in range(8)]
        peers.eventually(lambda: file.stat().st_size > 0, "something in the last file")
    assert loader.wait() == 0
    assert digest_of([*old, file]) == digest.hexdigest()
    if "--delimiter" in options:
        assert {it.read_bytes()[-1:] for it in [*old, file]} == {b"\n"}
    assert "reopen" not in loader.stderr


def test_logrotate_may_move_the_file_and_send_sighup(bench: peers.Bench, tmp_path: Path) -> None:
    logrotate, file = peers.need("logrotate"), tmp_path / "log"
    loader, port = bench.listening("load", "-o", "-O", file, **SERVICE)
    script = f"kill -HUP {loader.process.pid}"
    text = f"{file} {{\n rotate 9\n nocreate\n postrotate\n {script}\n endscript\n}}\n"
    config = bench.file(text.encode(), "rotation")
    config.chmod(0o644)
    with streaming(peers.connect(port), numbered()) as digest:
        for _ in range(3):
            peers.eventually(lambda: file.stat().st_size > 0, "something in the file")
            rotation = bench.start([logrotate, "--force", "--state", str(tmp_path / "state"), str(config)])
            assert rotation.wait() == 0, rotation.stderr
            peers.eventually(file.exists, "the new file")
    assert loader.wait() == 0
    assert digest_of([tmp_path / "log.3", tmp_path / "log.2", tmp_path / "log.1", file]) == digest.hexdigest()


@pytest.mark.parametrize("path", ["kernel", "block"])
def test_each_connection_goes_on_in_its_own_file(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    options = ["--max-connections", 3, "--path", path]
    loader, port = bench.listening("load", *options, "-O", tmp_path / "log-{number}", **SERVICE)
    files, digests = [tmp_path / f"log-{number}" for number in (1, 2, 3)], []
    with contextlib.ExitStack() as stack:
        for seed, file in enumerate(files):
            digests.append(stack.enter_context(streaming(peers.connect(port), numbered(seed))))
            peers.eventually(lambda file=file: file.exists() and file.stat().st_size > 0, "something in the file")
        for age in (1, 2):
            for file in files:
                file.rename(tmp_path / f"{file.name}.{age}")
            loader.signal(signal.SIGHUP)
            peers.eventually(lambda: all(file.exists() and file.stat().st_size > 0 for file in files), "the new files")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    for file, digest in zip(files, digests, strict=True):
        assert digest_of([tmp_path / f"{file.name}.{age}" for age in (1, 2)] + [file]) == digest.hexdigest()


def test_a_connection_never_goes_on_in_the_file_of_another(bench: peers.Bench, tmp_path: Path) -> None:
    files = [tmp_path / f"log-{number}" for number in (1, 2)]
    loader, port = bench.listening("load", "--max-connections", 2, "-O", tmp_path / "log-{number}", **SERVICE)
    with contextlib.ExitStack() as stack:
        socks = []
        for number, file in enumerate(files):
            socks.append(stack.enter_context(peers.connect(port)))
            socks[-1].sendall(b"%d" % number)
            peers.eventually(lambda file=file: file.exists() and file.stat().st_size == 1, "its byte")
        files[1].rename(tmp_path / "moved")
        files[1].symlink_to(files[0])
        loader.signal(signal.SIGHUP)
        loader.says(f"reopen {files[1]}: another connection is being written there; it goes on in the file that was")
        for sock in socks:
            sock.sendall(b"+")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert (files[0].read_bytes(), (tmp_path / "moved").read_bytes()) == (b"0+", b"1+")


def test_records_of_many_go_on_in_the_new_file_whole(bench: peers.Bench, tmp_path: Path) -> None:
    file = tmp_path / "log"
    loader, port = bench.listening("load", "--max-connections", 4, "-O", file, **SERVICE)
    with contextlib.ExitStack() as stack:
        digests = [stack.enter_context(streaming(peers.connect(port), numbered(seed))) for seed in range(4)]
        peers.eventually(lambda: file.exists() and file.stat().st_size > 0, "something in the file")
        old = [rotate(loader, file, tmp_path / f"log.{age}") for age in range(5)]
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    whole = [it.read_bytes() for it in [*old, file]]
    assert {it[-1:] for it in whole} <= {b"\n", b""}
    lines = b"".join(whole).splitlines(keepends=True)
    for seed, digest in enumerate(digests):
        mine = [line for line in lines if line.startswith(b"%d " % seed)]
        assert peers.sha256(b"".join(mine)) == digest.hexdigest()


def test_each_process_goes_on_in_its_new_file_and_so_does_one_that_takes_its_place(bench: peers.Bench) -> None:
    crew = Crew(bench, **SERVICE)
    with contextlib.ExitStack() as stack:
        for text in ("one", "two"):
            crew.greet(stack, text)
        old = [file.rename(f"{file}.old") for file in crew.files]
        crew.program.signal(signal.SIGHUP)
        peers.eventually(lambda: all(file.exists() for file in crew.files), "the new files")
        for text in ("three", "four"):
            crew.greet(stack, text)
        workers = [crew.worker_of(file) for file in crew.files]
        assert None not in workers
        os.kill(workers[0] or 0, signal.SIGKILL)
        crew.program.says("process 1 was ended by SIGKILL")
        peers.eventually(lambda: crew.worker_of(crew.files[0]) not in (None, workers[0]), "another one")
    assert sorted(line for file in old for line in file.read_bytes().splitlines()) == [b"one", b"two"]
    assert sorted(crew.lines()) == [b"four\n", b"three\n"]
    crew.program.signal(signal.SIGTERM)
    assert crew.program.wait() == 143


@pytest.mark.parametrize("verb", ["load", "save", "relay"])
def test_rows_go_on_in_the_new_stats_file(bench: peers.Bench, tmp_path: Path, verb: str) -> None:
    stats, sink = tmp_path / "stats", peers.free_port()
    if verb == "relay":
        bench.ringmain("load", f"tcp://127.0.0.1:{sink}")
        peers.wait_for_port(sink)
        program, port = bench._listening(
            "relay", "--stats-file", stats, "tcp://127.0.0.1:0", f"127.0.0.1:{sink}", **SERVICE
        )
    else:
        listen = ["--listen", "-I", bench.file(b"x")] if verb == "save" else []
        program, port = bench.listening(verb, *listen, "--stats-file", stats, **SERVICE)
    for name in (stats, tmp_path / "later"):
        with peers.connect(port) as sock:
            if verb != "save":  # which would reset whoever sends it something
                sock.sendall(b"x")
                sock.shutdown(socket.SHUT_WR)
            while sock.recv(100):
                pass
        peers.eventually(lambda: stats.exists() and stats.stat().st_size > 0, "a row")
        if name == stats:
            rotate(program, stats, tmp_path / "old")
    program.signal(signal.SIGTERM)
    assert program.wait() == 143
    for file in (tmp_path / "old", stats):
        assert json.loads(file.read_text())["verdict"] == "ended"


def test_a_file_that_is_still_there_is_not_emptied(bench: peers.Bench, tmp_path: Path) -> None:
    file = tmp_path / "log"
    loader, port = bench.listening("load", "-o", "-O", file, **SERVICE)
    with peers.connect(port) as sock:
        sock.sendall(b"before, ")
        peers.eventually(lambda: file.exists() and file.stat().st_size == 8, "the first bytes")
        loader.hears(signal.SIGHUP)
        loader.signal(signal.SIGUSR1)  # which is handled after it
        loader.says("buffer")
        sock.sendall(b"after")
    assert loader.wait() == 0
    assert file.read_bytes() == b"before, after"


def test_another_file_is_gone_on_with_at_its_end(bench: peers.Bench, tmp_path: Path) -> None:
    file, other = tmp_path / "log", bench.file(b"of somebody else, ", "other")
    loader, port = bench.listening("load", "-o", "-O", file, **SERVICE)
    with peers.connect(port) as sock:
        sock.sendall(b"before")
        peers.eventually(lambda: file.exists() and file.stat().st_size == 6, "the first bytes")
        file.rename(tmp_path / "old")
        other.rename(file)
        loader.hears(signal.SIGHUP)
        loader.signal(signal.SIGUSR1)
        loader.says("buffer")
        sock.sendall(b"after")
    assert loader.wait() == 0
    assert (tmp_path / "old").read_bytes() == b"before"
    assert file.read_bytes() == b"of somebody else, after"


@pytest.mark.parametrize(
    ("obstacle", "why"),
    [(Path.mkdir, "is a directory"), (os.mkfifo, "no such device or address"), (None, "no such file or directory")],
    ids=["folder", "fifo", "gone"],
)
def test_what_cannot_be_opened_is_one_warning_and_the_old_file_goes_on(
    bench: peers.Bench, tmp_path: Path, obstacle: Any, why: str
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file, stats = folder / "log", folder / "stats"
    loader, port = bench.listening("load", "-o", "-O", file, "--stats-file", stats, **SERVICE)
    with peers.connect(port) as sock:
        sock.sendall(b"before, ")
        peers.eventually(lambda: file.exists() and file.stat().st_size == 8, "the first bytes")
        moved = folder.rename(tmp_path / "moved")
        if obstacle is not None:
            folder.mkdir()
            obstacle(file)
        loader.signal(signal.SIGHUP)
        loader.says("reopen")
        sock.sendall(b"after")
    assert loader.wait() == 0
    line = f"ringmain: reopen {file}: {why}; it goes on in the file that was {file}\n"
    assert loader.stderr.count(line) == loader.stderr.count("reopen") == 1
    assert (moved / "log").read_bytes() == b"before, after"


def test_what_the_shell_has_opened_stays_open(bench: peers.Bench, tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("wb") as sink:
        loader, port = bench.listening("load", "-o", stdout=sink, **SERVICE)
    with peers.connect(port) as sock:
        sock.sendall(b"before, ")
        peers.eventually(lambda: file.stat().st_size == 8, "the first bytes")
        loader.signal(signal.SIGHUP)
        sock.sendall(b"after")
    assert loader.wait() == 0
    assert file.read_bytes() == b"before, after"


def test_the_time_in_the_name_is_that_of_the_reopening(bench: peers.Bench, tmp_path: Path) -> None:
    loader, port = bench.listening("load", "-o", "-O", tmp_path / "log-%s", **SERVICE)

    def two_files() -> bool:
        loader.signal(signal.SIGHUP)
        return len(list(tmp_path.glob("log-*"))) > 1

    with streaming(peers.connect(port), numbered()) as digest:
        peers.eventually(two_files, "a file of a later second")
    assert loader.wait() == 0
    assert digest_of(sorted(tmp_path.glob("log-*"))) == digest.hexdigest()


def test_nothing_is_left_open_however_often(bench: peers.Bench, tmp_path: Path) -> None:
    file = tmp_path / "log"
    loader, port = bench.listening("load", "-o", "-O", file, "--stats-file", tmp_path / "stats", **SERVICE)
    with streaming(peers.connect(port), numbered()) as digest:
        old = [rotate(loader, file, tmp_path / "log.000")]
        before = loader.fd_count()
        old += [rotate(loader, file, tmp_path / f"log.{age:03}") for age in range(1, 40)]
        assert loader.fd_count() <= before
    assert loader.wait() == 0
    assert digest_of([*old, file]) == digest.hexdigest()


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside these tests")
@pytest.mark.parametrize("copies", [False, True], ids=["SIGHUP", "copytruncate"])
def test_the_documented_configuration_of_logrotate_rotates(bench: peers.Bench, tmp_path: Path, copies: bool) -> None:
    logrotate, file = peers.need("logrotate"), tmp_path / "log"
    text = documented.block_with(PAGE, "rotate 7")
    loader, port = bench.listening("load", "-o", "-O", file, "--append", **SERVICE)
    text = text.replace("/var/log/events.ndjson", str(file))
    if copies:
        text = text[: text.index("    nocreate")] + "    copytruncate\n}\n"
    else:
        text, count = re.subn(r"systemctl kill .*", f"kill -HUP {loader.process.pid}", text)
        assert count == 1
    config = bench.file(text.encode(), "rotation")
    config.chmod(0o644)
    data, old = peers.payload(3_000_000), [tmp_path / "log.3.gz", tmp_path / "log.2.gz", tmp_path / "log.1"]
    with peers.connect(port) as sock:
        for start in range(0, len(data), 1_000_000):
            sock.sendall(data[start : start + 1_000_000])
            peers.eventually(lambda: file.exists() and file.stat().st_size == 1_000_000, "what was sent")
            rotation = bench.start([logrotate, "--force", "--state", str(tmp_path / "state"), str(config)])
            assert rotation.wait() == 0, rotation.stderr
            peers.eventually(lambda: file.exists() and file.stat().st_size == 0, "the new file")
    assert loader.wait() == 0
    whole = b"".join(gzip.decompress(it.read_bytes()) if it.suffix == ".gz" else it.read_bytes() for it in old)
    assert peers.sha256(whole) == peers.sha256(data)

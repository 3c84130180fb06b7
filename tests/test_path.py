"""Both verbs from the command line by either path, against the same ends: --path changes speed and nothing else."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import peers
import pytest
from streams import connection, drain, flood, pipe, quietly, read, sending, write_all

from ringmain._pump import HAS_SPLICE

pytestmark = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PATHS = ["kernel", "block"]
# What a run says that ended only because its grace was over.
OVERDUE = "stopped with bytes under way"


@pytest.mark.parametrize("verb", ["load", "save"])
def test_pipes_of_users_who_may_not_enlarge_them(bench: peers.Bench, tmp_path: Path, verb: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import fcntl\n_fcntl = fcntl.fcntl\n"
        "def refuse(fd, command, *rest):\n"
        "    if command == fcntl.F_SETPIPE_SZ:\n        raise PermissionError(1, 'Operation not permitted')\n"
        "    return _fcntl(fd, command, *rest)\n"
        "fcntl.fcntl = refuse\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    data = peers.payload(3_000_001)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program, port = bench.listening(verb, "-o", "--path", "kernel", env=environment, **pipes)
    with peers.connect(port) as sock:
        if verb == "load":
            with sending(sock, data):
                assert peers.sha256(read(program.process.stdout, len(data))) == peers.sha256(data)
            sock.shutdown(socket.SHUT_WR)
        else:
            with sending(program.process.stdin, data):
                assert peers.sha256(read(sock, len(data))) == peers.sha256(data)
            program.process.stdin.close()
            program.process.stdin = None
        peers.expect(program, 0)


def test_terminals_go_by_the_block_path(bench: peers.Bench) -> None:
    main, side = pty.openpty()
    tty.setraw(side)
    text = b"one line\nanother\n" * 10
    try:
        peers.expect(bench.ringmain("load", "--path", "kernel", "127.0.0.1:0", stdout=side), 2, "is a terminal")
        peers.expect(bench.ringmain("save", "--path", "kernel", "127.0.0.1:1", stdin=side), 2, "is a terminal")
        flags = fcntl.fcntl(side, fcntl.F_GETFL)
        loader, port = bench.listening("load", "-o", stdout=side)
        with peers.connect(port) as sock:
            sock.sendall(text)
            with open(main, "rb", buffering=0, closefd=False) as screen:
                assert read(screen, len(text)) == text
        peers.expect(loader, 0)
        tty.setcbreak(side)
        attributes = tty.tcgetattr(side)
        attributes[3] |= tty.ICANON
        tty.tcsetattr(side, tty.TCSANOW, attributes)
        saver, port = bench.listening("save", "-o", stdin=side)
        with peers.connect(port) as sock:
            os.write(main, text + b"\x04")
            assert peers.read_all(sock) == text
        peers.expect(saver, 0)
        assert fcntl.fcntl(side, fcntl.F_GETFL) == flags
    finally:
        os.close(main)
        os.close(side)


@pytest.mark.parametrize("path", ["auto", "kernel", "block"])
def test_devices_take_and_give(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    stats = tmp_path / "stats"
    options = ["-o", "--path", path, "--stats-file", stats]
    loader, port = bench.listening("load", *options, "-O", "/dev/null")
    with peers.connect(port) as sock:
        sock.sendall(bytes(3_000_000))
    peers.expect(loader, 0)
    assert json.loads(stats.read_text())["bytes"] == 3_000_000
    saver, port = bench.listening("save", *options, "-I", "/dev/zero")
    with peers.connect(port) as sock:
        assert read(sock, 3_000_000) == bytes(3_000_000)
    peers.expect(saver, 55, "save to 127.0.0.1:")
    if path != "kernel":
        saver, port = bench.listening("save", *options)  # /dev/null
        with peers.connect(port) as sock:
            assert peers.read_all(sock) == b""
        peers.expect(saver, 0)


def test_sockets_as_standard_input_and_output_go_by_the_block_path(bench: peers.Bench) -> None:
    data = peers.payload(2_000_001)
    with connection() as (near, far), connection() as (source, sink):
        peers.expect(bench.ringmain("load", "--path", "kernel", "127.0.0.1:0", stdout=far), 2, "is a socket")
        peers.expect(bench.ringmain("save", "--path", "kernel", "127.0.0.1:1", stdin=sink), 2, "is a socket")
        far.setblocking(True)
        loader, port = bench.listening("load", "-o", stdout=far)
        far.close()
        saver = bench.ringmain("save", f"127.0.0.1:{port}", stdin=sink)
        with sending(source, data):
            assert peers.sha256(read(near, len(data))) == peers.sha256(data)
        source.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        peers.expect(saver, 0)
        peers.expect(loader, 0)


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_process_that_is_stopped_and_continued_loses_nothing(bench: peers.Bench, verb: str) -> None:
    data = peers.payload(1_000_003) * 8
    feed = ["-I", bench.file(data)] if verb == "save" else []
    program, port = bench.listening(verb, "-o", "--path", "kernel", *feed, stdout=subprocess.PIPE)
    state = Path(f"/proc/{program.process.pid}/stat")

    def stands_still() -> bool:  # or has ended: a save does once our kernel has everything
        return program.process.poll() is not None or state.read_text().rpartition(")")[2].split()[0] == "T"

    with peers.connect(port) as sock, sending(sock, data if verb == "load" else b""):
        source = program.process.stdout if verb == "load" else sock
        got = b""
        while len(got) < len(data):
            program.signal(signal.SIGSTOP)
            peers.eventually(stands_still, "a stopped process")
            program.signal(signal.SIGCONT)
            part = read(source, min(1_000_000, len(data) - len(got)))
            assert part
            got += part
        assert peers.sha256(got) == peers.sha256(data)
        sock.shutdown(socket.SHUT_WR)
    peers.expect(program, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["idle", "blocked", "flooded"])
def test_a_signal_ends_a_load(bench: peers.Bench, tmp_path: Path, state: str, number: int) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening(
        "load", "--path", "kernel", "-v", "--linger", "1h", "--stats-file", stats, stdout=subprocess.PIPE
    )
    source = loader.process.stdout
    end = wait = None
    with peers.connect(port) as sock:
        loader.says("connected")
        if state == "idle":
            sock.sendall(b"x")
            assert read(source, 1) == b"x"
        else:
            end = flood(sock)
            assert read(source, 1 << 20) == bytes(1 << 20)
            wait = drain(source) if state == "flooded" else None
        loader.signal(number)
        peers.expect(loader, 128 + number)
        # What has come is handed on first: where nobody takes it, it is given up when nothing has moved for a while.
        assert state == "blocked" or OVERDUE not in loader.stderr
        if end is not None:
            end()
        if wait is not None:
            wait()
    assert json.loads(stats.read_text())["verdict"] == "stopped"


@pytest.mark.parametrize("state", ["idle", "blocked", "flooded"])
def test_a_signal_ends_a_save(bench: peers.Bench, state: str) -> None:
    feed = [] if state == "idle" else ["-I", "/dev/zero"]
    saver, port = bench.listening("save", "-o", "--path", "kernel", "-v", *feed, stdin=subprocess.PIPE)
    with peers.connect(port) as sock:
        saver.says("connected")
        wait = drain(sock) if state == "flooded" else None
        if state == "blocked":
            assert sock.recv(1)
        saver.signal(signal.SIGTERM)
        peers.expect(saver, 143)
        # What was sent gets two seconds at a standstill to arrive.
        assert (OVERDUE in saver.stderr) == (state == "blocked")
        if wait is not None:
            wait()


@pytest.mark.parametrize("path", PATHS)
def test_an_idle_peer_is_timed_out_and_a_stalled_reader_is_not(bench: peers.Bench, path: str) -> None:
    options = ["-o", "--path", path, "--idle-timeout", "3s"]
    loader, port = bench.listening("load", *options, stdout=subprocess.PIPE)
    data = peers.payload(20_000_000)  # more than a ring, a pipe and the kernel's buffers take
    with peers.connect(port) as sock, sending(sock, data):
        time.sleep(4)
        assert loader.process.poll() is None
        assert peers.sha256(read(loader.process.stdout, len(data))) == peers.sha256(data)
        peers.expect(loader, 28, "nothing came for 3 s after 20000000 bytes", "--idle-timeout")
    saver, port = bench.listening("save", *options, stdin=subprocess.PIPE)
    with peers.connect(port) as sock:
        time.sleep(4)  # an idle input is no idle peer
        assert saver.process.poll() is None
        with contextlib.suppress(BrokenPipeError), sending(saver.process.stdin, data[:100]):
            assert read(sock, 100) == data[:100]
        writer = threading.Thread(target=lambda: quietly(write_all, saver.process.stdin, data), daemon=True)
        writer.start()
        peers.expect(saver, 28, "it took nothing for 3 s")
        writer.join(peers.TIMEOUT)
        quietly(saver.process.stdin.close)


@pytest.mark.parametrize("end", ["fin", "reset"])
def test_both_paths_tell_the_same(bench: peers.Bench, tmp_path: Path, end: str) -> None:
    data = peers.payload(100_001)
    told = {}
    for path in PATHS:
        for verb, kind in (("load", "pipe"), ("load", "file"), ("save", "pipe"), ("save", "file")):
            stats = tmp_path / f"stats-{path}-{verb}-{kind}"
            options = ["-o", "--path", path, "--stats-file", stats]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} if kind == "pipe" else {}
            if kind == "file":
                options += ["-O", tmp_path / "got"] if verb == "load" else ["-I", bench.file(data)]
            if end == "reset" and verb == "save":
                options[-1 if kind == "file" else len(options) :] = ["/dev/zero"] if kind == "file" else []
            program, port = bench.listening(verb, *options, **pipes)
            with peers.connect(port) as sock:
                if verb == "load":
                    sock.sendall(data)
                    if kind == "pipe":
                        assert read(program.process.stdout, len(data)) == data
                    else:
                        peers.eventually(lambda: (tmp_path / "got").read_bytes() == data, "the bytes")
                elif end == "reset" and kind == "file":
                    assert sock.recv(1)
                else:
                    write_all(program.process.stdin, data) if kind == "pipe" else None
                    assert peers.sha256(read(sock, len(data))) == peers.sha256(data)
                    if kind == "pipe" and end == "fin":
                        program.process.stdin.close()
                        program.process.stdin = None
                if end == "reset":
                    peers.close_with_reset(sock)
                else:
                    sock.shutdown(socket.SHUT_WR)
                program.wait()
            row = json.loads(stats.read_text())
            if end == "reset" and verb == "save" and kind == "file":
                row["bytes"] = 0  # an endless input; how much of it went out is chance
            error = program.stderr.splitlines()[1:]
            words = [re.sub(r"127\.0\.0\.1:\d+", "PEER", line) for line in error]
            figures = [row[name] for name in ("bytes", "verdict", "tls", "cipher", "refused")]
            told[path, verb, kind] = (program.process.returncode, words, figures, sorted(row))
            assert row["reads"] > 0
            assert row["writes"] > 0
    for verb, kind in {key[1:] for key in told}:
        kernel_told, block_told = told["kernel", verb, kind], told["block", verb, kind]
        if verb == "save" and end == "reset":  # which of the two words for it comes is chance
            kernel_told, block_told = ((code, len(words), *rest) for code, words, *rest in (kernel_told, block_told))
        assert kernel_told == block_told
        assert kernel_told[0] == (0 if end == "fin" else 56 if verb == "load" else 55)


@pytest.mark.parametrize("path", PATHS)
def test_progress_counts_what_moves(bench: peers.Bench, path: str) -> None:
    loader, port = bench.listening("load", "--path", path, "--progress", stdout=subprocess.PIPE)
    saver = bench.ringmain("save", "--path", path, "--progress", f"127.0.0.1:{port}", stdin=subprocess.PIPE)
    saver.process.stdin.write(b"x" * 5000)
    saver.process.stdin.flush()
    assert read(loader.process.stdout, 5000) == b"x" * 5000
    for program in (loader, saver):
        peers.eventually(lambda: re.search(r"^4\.88 KiB  0:00:\d\d  in ", program.stderr, re.M), "progress")  # noqa: B023
    saver.process.stdin.close()
    saver.process.stdin = None
    assert saver.wait() == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_file_is_sent_from_where_it_stands(bench: peers.Bench, path: str) -> None:
    body = peers.payload(1_000_001)
    with bench.file(b"a line\n" + body).open("rb") as source:
        assert os.read(source.fileno(), 7) == b"a line\n"
        saver, port = bench.listening("save", "-o", "--path", path, stdin=source)
        with peers.connect(port) as sock:
            assert peers.sha256(peers.read_all(sock)) == peers.sha256(body)
        peers.expect(saver, 0)
        assert os.lseek(source.fileno(), 0, os.SEEK_CUR) == 7


@pytest.mark.parametrize("path", PATHS)
def test_standard_output_and_its_position_are_left_for_who_comes_next(
    bench: peers.Bench, tmp_path: Path, path: str
) -> None:
    data = peers.payload(1_000_001)
    with (tmp_path / "got").open("wb", buffering=0) as sink:
        sink.write(b"header\n")
        flags = fcntl.fcntl(sink, fcntl.F_GETFL)
        loader, port = bench.listening("load", "-o", "--path", path, stdout=sink)
        with peers.connect(port) as sock:
            sock.sendall(data)
        peers.expect(loader, 0)
        assert fcntl.fcntl(sink, fcntl.F_GETFL) == flags
        sink.write(b"trailer\n")
    assert (tmp_path / "got").read_bytes() == b"header\n" + data + b"trailer\n"


@pytest.mark.parametrize("verb", ["load", "save"])
def test_shared_pipes_keep_their_flags(bench: peers.Bench, verb: str) -> None:
    with pipe() as (source, sink):
        flags = [fcntl.fcntl(end, fcntl.F_GETFL) for end in (source, sink)]
        ours = {"stdout": sink} if verb == "load" else {"stdin": source}
        program, port = bench.listening(verb, "-o", "--path", "kernel", **ours)
        with peers.connect(port) as sock:
            if verb == "load":
                sock.sendall(b"through")
                assert source.read(7) == b"through"
            else:
                sink.write(b"through")
                assert read(sock, 7) == b"through"
                sink.close()
            assert [fcntl.fcntl(end, fcntl.F_GETFL) for end in (source, sink) if not end.closed] == (
                flags if verb == "load" else flags[:1]
            )
        peers.expect(program, 0)


def test_one_client_after_another_goes_by_the_kernel_path(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening("load", "--path", "kernel", "--stats-file", stats, stdout=subprocess.PIPE)
    for number in range(5):
        part = peers.payload(200_000 + number, number)
        with peers.connect(port) as sock, sending(sock, part):
            assert peers.sha256(read(loader.process.stdout, len(part))) == peers.sha256(part)
            if number % 2:
                peers.close_with_reset(sock)
    peers.eventually(lambda: stats.exists() and stats.read_text().count("\n") == 5, "five rows")
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert [row["bytes"] for row in rows] == [200_000 + number for number in range(5)]
    assert [row["verdict"] for row in rows] == ["ended", "reset", "ended", "reset", "ended"]
    peers.eventually(lambda: loader.stderr.count("connection reset by peer") == 2, "a warning of each")


@pytest.mark.parametrize("source", ["/proc/self/cmdline", "empty"])
def test_files_that_sendfile_refuses_and_empty_ones(bench: peers.Bench, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").touch()
    saver, port = bench.listening("save", "-o", "-I", tmp_path / source)  # an absolute path stays as it is
    with peers.connect(port) as sock:
        got = peers.read_all(sock)
    assert got == b"" if source == "empty" else b"ringmain\0save" in got
    peers.expect(saver, 0)

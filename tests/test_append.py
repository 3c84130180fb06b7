"""`load --append`: what a file has stays, and whoever copies and shortens it meanwhile gets no hole."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import peers
import pytest
from crews import Crew

from ringmain.cli.template import Template
from ringmain.errors import UsageError


def send(sock: socket.socket, data: bytes, file: Path, size: int) -> None:
    """Send, and wait until the file has that size."""
    sock.sendall(data)
    peers.eventually(
        lambda: file.exists() and file.stat().st_size == size, lambda: f"{size} bytes, not {file.stat().st_size}"
    )


@pytest.mark.parametrize("path", ["auto", "block"])
def test_what_a_file_has_stays_in_front_of_what_comes(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    file, data = bench.file(b"before\n", "log"), peers.payload(3_000_001)
    for part in (data[:1_000_000], data[1_000_000:]):  # as a service that is started again
        loader, port = bench.listening("load", "-o", "--append", "--path", path, "-O", file)
        peers.send_in_thread(port, part).join()
        assert loader.wait() == 0
    assert peers.sha256(file) == peers.sha256(b"before\n" + data)


def test_without_it_the_file_is_emptied_and_the_help_says_so(bench: peers.Bench) -> None:
    file = bench.file(b"before\n", "log")
    loader, port = bench.listening("load", "-o", "-O", file)
    peers.send_in_thread(port, b"after\n").join()
    assert loader.wait() == 0
    assert file.read_bytes() == b"after\n"
    with (bench.folder / "help").open("w+") as told:
        assert bench.ringmain("load", "--help", stdout=told).wait() == 0
        assert "It is emptied first, unless --append is given" in " ".join((bench.folder / "help").read_text().split())


def test_each_connection_s_own_file_is_appended_to(bench: peers.Bench, tmp_path: Path) -> None:
    (tmp_path / "got-1").write_bytes(b"before\n")
    loader, port = bench.listening("load", "-o", "--append", "-O", tmp_path / "got-{number}")
    peers.send_in_thread(port, b"after\n").join()
    assert loader.wait() == 0
    assert (tmp_path / "got-1").read_bytes() == b"before\nafter\n"


def test_the_kernel_moves_nothing_into_a_file_that_is_appended_to(bench: peers.Bench) -> None:
    """Which is why that goes by blocks: should a kernel learn it, the kernel path may have it."""
    file = bench.file(b"before\n", "log")
    with file.open("ab") as appended, file.open("rb") as source, contextlib.ExitStack() as stack:
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        os.write(writer, b"x")
        with pytest.raises(OSError, match="Invalid argument") as refused:
            os.splice(reader, appended.fileno(), 1)
        assert refused.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="Invalid argument") as refused:
            os.sendfile(appended.fileno(), source.fileno(), 0, 1)
        assert refused.value.errno == errno.EINVAL
    loader = bench.ringmain("load", "--append", "--path", "kernel", "-O", file, "127.0.0.1:0")
    assert loader.wait() == 2
    assert loader.stderr == f"ringmain: --path kernel: {file} is open for appending; leave --path out\n"
    assert file.read_bytes() == b"before\n"


OPEN = "--append: standard output is already open; give --output FILE, or redirect with >>"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], OPEN),
        (["--exec", "cat"], "--append with --exec: the command gets the bytes; leave one of them out"),
        (["--processes", 2, "--max-connections", 2], OPEN),
    ],
    ids=["stdout", "exec", "processes"],
)
def test_appending_needs_a_file(bench: peers.Bench, options: list[str], why: str) -> None:
    loader = bench.ringmain("load", "--append", *options, "127.0.0.1:0")
    assert loader.wait() == 2
    assert loader.stderr == f"ringmain: {why}\n"


@pytest.mark.parametrize("many", [False, True], ids=["one", "merged"])
def test_copying_and_shortening_the_file_leaves_no_hole(bench: peers.Bench, tmp_path: Path, many: bool) -> None:
    file, parts = tmp_path / "log", [peers.payload(700_000, seed).hex().encode() + b"\n" for seed in range(3)]
    options = ["--max-connections", 2] if many else []
    loader, port = bench.listening("load", "--max-record", "2M", *options, "--append", "-O", file, "--delimiter", "\\n")
    copies = []
    with peers.connect(port) as sock:
        for part in parts:
            send(sock, part, file, len(part))  # from its start: no hole in front
            copies.append(shutil.copy(file, tmp_path / f"copy-{len(copies)}"))
            os.truncate(file, 0)
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert [peers.sha256(copy) for copy in copies] == [peers.sha256(part) for part in parts]
    assert file.read_bytes() == b""


def test_logrotate_may_copy_and_truncate(bench: peers.Bench, tmp_path: Path) -> None:
    logrotate, file = peers.need("logrotate"), tmp_path / "log"
    config = bench.file(f"{file} {{\n rotate 9\n copytruncate\n}}\n".encode(), "rotation")
    config.chmod(0o644)
    data = peers.payload(3_000_000)
    loader, port = bench.listening("load", "--append", "-O", file)
    with peers.connect(port) as sock:
        for start in range(0, len(data), 1_000_000):
            send(sock, data[start : start + 1_000_000], file, 1_000_000)
            rotation = bench.start([logrotate, "--force", "--state", str(tmp_path / "state"), str(config)])
            assert rotation.wait() == 0, rotation.stderr
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert peers.sha256(b"".join((tmp_path / f"log.{age}").read_bytes() for age in (3, 2, 1))) == peers.sha256(data)


def test_each_process_appends_and_goes_on_with_a_shortened_file(bench: peers.Bench, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"out-{number}").write_bytes(b"before\n")
    crew = Crew(bench, "--append")
    with contextlib.ExitStack() as stack:
        crew.greet(stack, "first of one")
        sock = crew.greet(stack, "first of the other")
        assert [crew.lines(file)[0] for file in crew.files] == [b"before\n"] * 2
        file = next(it for it in crew.files if b"first of the other\n" in crew.lines(it))
        os.truncate(file, 0)
        send(sock, b"second\n", file, 7)
        send(sock, b"third\n", file, 13)  # now it is noted that the second is whole
        worker = crew.worker_of(file)
        assert worker is not None
        with file.open("ab") as torn:  # as by a write that a death cuts short
            torn.write(b"torn")
        os.kill(worker, signal.SIGKILL)
        crew.program.says("dropped 4 bytes of a record")
    assert file.read_bytes() == b"second\nthird\n"
    crew.program.signal(signal.SIGTERM)
    assert crew.program.wait() == 143


def test_names_tell_the_time_and_a_peer_brings_none(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = time.struct_time((2026, 2, 3, 4, 5, 6, 1, 34, 0))
    monkeypatch.setattr(time, "localtime", lambda: moment)
    template = Template("%Y/{peer}-%Y-%m-%dT%H%M%S-100%%-{{%j}}", "--output")
    assert template.name("[fe80::1%eth0]:80") == "%Y/fe80__1%eth0_80-2026-02-03T040506-100%-{034}"
    assert not Template("%Y-%m-%d-{process}", "--output").varies


@pytest.mark.parametrize("name", ["%Q", "100%", "%{peer}", "%D", "%-d", "% d", "%\n"])
def test_what_is_no_time_is_refused(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"the time code %.* is not known; choose a code of strftime, .* or write %% for a p"
    ):
        Template(name, "--output")


def test_a_run_writes_to_the_file_of_its_day(bench: peers.Bench, tmp_path: Path) -> None:
    loader, port = bench.listening("load", "-o", "-O", tmp_path / "events-%Y%%%s", env={**os.environ, "TZ": "UTC"})
    peers.send_in_thread(port, b"today\n").join()
    assert loader.wait() == 0
    (file,) = tmp_path.glob("events-*")
    year, _, seconds = file.name.removeprefix("events-").partition("%")
    assert year == time.strftime("%Y", time.gmtime(int(seconds)))
    assert file.read_bytes() == b"today\n"

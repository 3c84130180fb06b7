"""The standard descriptors of the command: left as they were found, and whatever they are."""

import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
from pathlib import Path

import peers
import pytest


def test_standard_input_and_output_are_left_as_they_were_found(bench: peers.Bench) -> None:
    ours, theirs = os.pipe()
    feed, source = os.pipe()
    loader, port = bench.listening("load", "-o", stdin=feed, stdout=source)
    saver = bench.ringmain("save", f"127.0.0.1:{port}", stdin=ours)
    os.write(theirs, b"through")
    assert os.read(feed, 100) == b"through"
    for fd in (ours, theirs, feed, source):
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(theirs)
    assert (saver.wait(), loader.wait()) == (0, 0)
    for fd in (ours, feed, source):
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        os.close(fd)


def opening_nothing_again(folder: Path) -> dict[str, str]:
    """Return an environment in which a pipe cannot be opened once more, as if it were another user's."""
    (folder / "sitecustomize.py").write_text(
        "import os\n_open = os.open\n"
        "def refuse(path, *rest, **more):\n"
        "    if str(path).startswith('/proc/self/fd/'):\n        raise PermissionError(13, 'Permission denied')\n"
        "    return _open(path, *rest, **more)\n"
        "os.open = refuse\n"
    )
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["pipe", "pipe of another user", "terminal", "socket"])
def test_whatever_ends_us_no_descriptor_is_left_non_blocking(
    bench: peers.Bench, tmp_path: Path, kind: str, number: int
) -> None:
    environment = opening_nothing_again(tmp_path) if kind == "pipe of another user" else None

    def ends() -> tuple[int, int]:
        if kind.startswith("pipe"):
            return os.pipe()
        if kind == "terminal":
            return pty.openpty()
        one, other = socket.socketpair()
        return one.detach(), other.detach()

    read_end, output = ends()
    input_, write_end = reversed(ends()) if kind == "terminal" else ends()
    try:
        options = ["-v", "--path", "block"]
        loader, port = bench.listening("load", *options, stdout=output, env=environment)
        saver = bench.ringmain("save", *options, f"127.0.0.1:{port}", stdin=input_, env=environment)
        loader.says("connected")
        saver.says("connected")
        os.write(write_end, b"through both\n")
        assert os.read(read_end, 100).startswith(b"through both")
        for program in (saver, loader):
            program.signal(number)
            assert program.wait() == (-9 if number == signal.SIGKILL else 143)
        for fd in (read_end, output, input_, write_end):
            assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    finally:
        for fd in (read_end, output, input_, write_end):
            os.close(fd)


@pytest.mark.parametrize("path", ["auto", "block"])
def test_output_that_is_appended_to_is_appended_to(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    with bench.file(b"before, ", "got").open("ab") as output:
        loader, port = bench.listening("load", "-o", "--path", path, stdout=output)
        with peers.connect(port) as sock:
            sock.sendall(b"after")
        assert loader.wait() == 0, loader.stderr
    assert (tmp_path / "got").read_bytes() == b"before, after"


def test_closed_standard_descriptors_are_nobody_elses(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    for verb, closed, code in (("load", ">&-", 23), ("save", "<&-", 26), ("load", "<&- >&- 2>&-", 23)):
        line = f'exec "$@" {closed}'
        program = bench.start(
            ["sh", "-c", line, "sh", *peers.RINGMAIN, verb, "--stats-file", str(stats), "127.0.0.1:0"],
        )
        assert program.wait() == code, program.stderr
        assert not stats.exists()
    port_file = tmp_path / "port"
    run = [*peers.RINGMAIN, "load", "-o", "-v", "--port-file", str(port_file), "127.0.0.1:0"]
    loader = bench.start(["sh", "-c", 'exec "$@" 2>&-', "sh", *run], stdout=subprocess.PIPE)
    peers.eventually(port_file.exists)
    with peers.connect(int(port_file.read_text())) as sock:
        sock.sendall(b"data only")
    assert loader.process.stdout.read() == b"data only"
    assert loader.wait() == 0


@pytest.mark.parametrize("arguments", [["nics"], ["nics", "--json"], ["--version"], ["load", "--help"]], ids=" ".join)
def test_what_we_print_may_find_no_room_or_no_reader(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run([*peers.RINGMAIN, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 23
    assert re.fullmatch(r"ringmain: write to standard output: no space left on device; .*\n", result.stderr)
    ours, theirs = os.pipe()
    os.close(ours)
    result = subprocess.run([*peers.RINGMAIN, *arguments], stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (result.returncode, result.stderr) == (0, "")


def test_pipes_that_cannot_be_opened_again_work_too(bench: peers.Bench, tmp_path: Path) -> None:
    environment = opening_nothing_again(tmp_path)
    data = peers.payload(3_000_001)
    with bench.file(data).open("rb") as file:
        cat = bench.start(["cat"], stdin=file, stdout=subprocess.PIPE)
    loader, port = bench.listening("load", "-o", stdout=subprocess.PIPE, env=environment)
    bench.ringmain("save", f"127.0.0.1:{port}", stdin=cat.process.stdout, env=environment)
    assert loader.process.stdout is not None
    assert peers.sha256(loader.process.stdout.read()) == peers.sha256(data)
    assert loader.wait() == 0

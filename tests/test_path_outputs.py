"""Outputs that take no more, or are written by others too: by both paths what came before is kept."""

import contextlib
import os
import re
import resource
import subprocess
from pathlib import Path

import peers
import pytest

from ringmain._pump import HAS_SPLICE

pytestmark = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")

PATHS = ["kernel", "block"]


@pytest.mark.parametrize("path", ["auto", "kernel", "block"])
def test_an_append_mode_file_is_appended_to_by_the_block_path(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    data = peers.payload(1_000_001)
    log = bench.file(b"before\n", "log")
    with log.open("ab") as sink:
        if path == "kernel":
            peers.expect(bench.ringmain("load", "--path", path, "127.0.0.1:0", stdout=sink), 2, "appending", "--path")
            assert log.read_bytes() == b"before\n"
            return
        loader, port = bench.listening("load", "-o", "--path", path, stdout=sink)
        with peers.connect(port) as sock:
            sock.sendall(data[:1000])
            peers.eventually(lambda: log.stat().st_size > 1000, "the first bytes")
            os.write(sink.fileno(), b"between")  # by another who appends
            sock.sendall(data[1000:])
        peers.expect(loader, 0)
    assert log.read_bytes() == b"before\n" + data[:1000] + b"between" + data[1000:]


def test_a_file_that_takes_standard_error_too_loses_nothing(bench: peers.Bench, tmp_path: Path) -> None:
    data = peers.payload(5_000_001)
    with (tmp_path / "both").open("wb") as both:
        for path in ("kernel", "auto"):
            port = peers.free_port()
            command = [*peers.RINGMAIN, "load", "-o", "-v", "--gate", "refuse", "--path", path, f"127.0.0.1:{port}"]
            # A Program has a standard error of its own.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=both, stderr=both)
            try:
                if path == "kernel":
                    assert process.wait(peers.TIMEOUT) == 2
                    continue
                peers.wait_for_port(port)
                with peers.connect(port) as sock:
                    for start in range(0, len(data), 1_000_000):
                        sock.sendall(data[start : start + 1_000_000])
                        with contextlib.suppress(OSError), peers.connect(port) as refused:
                            refused.recv(1)  # each of these writes a line
                assert process.wait(peers.TIMEOUT) == 0
            finally:
                process.kill()
                process.wait()
    got = (tmp_path / "both").read_bytes()
    assert got.startswith(b"ringmain: --path kernel: standard output is where standard error goes too")
    lines = re.findall(rb"ringmain: [^\n]*\n|listening on [^\n]*\n", got)
    assert len(got) - sum(map(len, lines)) == len(data)


@pytest.mark.parametrize("path", ["auto", "kernel"])
def test_dev_full_is_full(bench: peers.Bench, path: str) -> None:
    loader, port = bench.listening("load", "--path", path, "-O", "/dev/full")
    with contextlib.suppress(ConnectionResetError), peers.connect(port) as sock:  # it may be reset while it connects
        sock.sendall(b"x")
        loader.wait()
    if path == "kernel":
        peers.expect(loader, 2, "/dev/full cannot be spliced")
    else:
        peers.expect(loader, 23, "/dev/full", "no space left on device")


@pytest.mark.parametrize("path", PATHS)
def test_a_file_at_its_size_limit_keeps_what_came_before(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    data, limit = peers.payload(4_000_000), 2_000_001

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    loader, port = bench.listening("load", "-o", "--path", path, "-O", tmp_path / "got", preexec_fn=limited)
    with peers.connect(port) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        peers.expect(loader, 23, str(tmp_path / "got"), f"file too large: ulimit -f allows {limit} bytes")
    assert (tmp_path / "got").read_bytes() == data[:limit]


@pytest.mark.parametrize("path", PATHS)
def test_a_disk_that_fills_up_keeps_what_came_before(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    data = peers.payload(4_000_000)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "ringmain-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system")
    try:
        loader, port = bench.listening("load", "-o", "--path", path, "-O", disk / "got")
        with peers.connect(port) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(data)
            peers.expect(loader, 23, str(disk / "got"), "no space left on device")
        got = (disk / "got").read_bytes()
        assert 1 << 20 < len(got) < 3 << 20
        assert data.startswith(got)
    finally:
        subprocess.run(["umount", str(disk)], check=True)

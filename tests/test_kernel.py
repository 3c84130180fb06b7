"""The kernel path, and what stands in for it where the system lacks a call."""

import json
import os
import socket
import subprocess
import threading
from pathlib import Path

import peers
import pytest
from conftest import Certificates
from streams import run_pump

from ringmain._counters import Counters
from ringmain._low_water import LowWater
from ringmain._pump import HAS_SPLICE, Pump
from ringmain.flow import path

DATA = peers.payload(5_000_001)


def lacking(folder: Path, *lines: str) -> dict[str, str]:
    """Return an environment in which a program finds these probes switched off."""
    (folder / "sitecustomize.py").write_text("\n".join(["import ringmain.flow.path, ringmain.net.gate", *lines]))
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("kind", ["pipe", "file"])
@pytest.mark.parametrize("splice", [True, False], ids=["splice", "no splice"])
def test_bytes_go_through_blocks_where_there_is_no_splice(
    bench: peers.Bench, tmp_path: Path, kind: str, splice: bool
) -> None:
    environment = None if splice else lacking(tmp_path, "ringmain.flow.path.HAS_SPLICE = False")
    stats = tmp_path / "stats"
    output = ["-O", tmp_path / "got"] if kind == "file" else []
    loader, port = bench.listening(
        "load", "-o", "--stats-file", stats, *output, stdout=subprocess.PIPE, env=environment
    )
    options = ["-I", bench.file(DATA)] if kind == "file" else []
    saver = bench.ringmain("save", *options, f"127.0.0.1:{port}", stdin=subprocess.PIPE, env=environment)
    with saver.process.stdin as stdin:
        thread = threading.Thread(target=lambda: (stdin.write(DATA), stdin.close()) if kind == "pipe" else None)
        thread.start()
        if kind == "pipe":
            assert peers.sha256(loader.process.stdout.read()) == peers.sha256(DATA)
        thread.join()
    assert (saver.wait(), loader.wait()) == (0, 0), saver.stderr + loader.stderr
    if kind == "file":
        assert peers.sha256(tmp_path / "got") == peers.sha256(DATA)
    row = json.loads(stats.read_text())
    assert (row["blocks"] == 0) == (splice and HAS_SPLICE)


@pytest.mark.parametrize("verb", ["load", "save"])
def test_insisting_on_the_kernel_path_where_there_is_none_is_a_usage_error(
    bench: peers.Bench, tmp_path: Path, verb: str
) -> None:
    environment = lacking(tmp_path, "ringmain.flow.path.HAS_SPLICE = False")
    program = bench.ringmain(verb, "--path", "kernel", "127.0.0.1:0", env=environment)
    assert program.wait() == 2
    assert program.stderr == "ringmain: --path kernel: this system has no splice; leave --path out\n"


@pytest.mark.parametrize("way", ["kernel", "block", "tls"])
@pytest.mark.parametrize("linger", ["0", "off", "20ms"])
def test_the_low_water_mark_may_be_left_alone(
    bench: peers.Bench, certificates: Certificates, way: str, linger: str
) -> None:
    options = ["--tls", "--certfile", certificates.server] if way == "tls" else ["--path", way]
    loader, port = bench.listening("load", "-o", "--linger", linger, *options, stdout=subprocess.PIPE)

    def send() -> None:
        with peers.connect_tls(port, certificates.ca) if way == "tls" else peers.connect(port) as sock:
            sock.sendall(DATA)
            if way == "tls":
                sock.unwrap()

    thread = threading.Thread(target=send)
    thread.start()
    assert peers.sha256(loader.process.stdout.read()) == peers.sha256(DATA)
    thread.join()
    assert loader.wait() == 0, loader.stderr


def test_a_pump_goes_on_where_there_is_no_low_water_mark() -> None:
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    ours.setblocking(False)
    low_water = LowWater(read_end, 0.001, 512 << 10)  # no socket, so setting its mark fails
    pump = Pump(ours.fileno(), write_end, Counters(), low_water)
    thread = threading.Thread(target=run_pump, args=[pump])
    thread.start()

    def send() -> None:
        theirs.sendall(DATA)
        theirs.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = bytearray()
    while len(got) < len(DATA):
        got += os.read(read_end, 1 << 20)
    sender.join()
    thread.join()
    assert (pump.verdict, bytes(got) == DATA) == ("ended", True)
    assert (low_water.mark, low_water.linger) == (1, 0)
    for end in (ours, theirs):
        end.close()
    os.close(read_end)
    os.close(write_end)


def test_a_pump_that_is_stopped_ends_at_once_in_every_state() -> None:
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    ours.setblocking(False)
    for state in ("before", "idle", "stalled"):
        pump = Pump(ours.fileno(), write_end, Counters(), LowWater(ours.fileno(), 0.001, 512 << 10))
        if state == "before":
            pump.stop()
        thread = threading.Thread(target=run_pump, args=[pump])
        thread.start()
        if state == "stalled":
            theirs.setblocking(False)
            while not pump.paused:
                try:
                    theirs.send(b"x" * 4096)
                except BlockingIOError:
                    continue
        pump.stop("timed out")
        thread.join(peers.TIMEOUT)
        assert not thread.is_alive()
        assert pump.verdict == ("stopped" if state == "before" else "timed out")
    for end in (ours, theirs):
        end.close()
    os.close(read_end)
    os.close(write_end)


def test_what_cannot_be_spliced_is_refused_before_a_byte_moves(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.sendall(b"still there")
    with (tmp_path / "log").open("ab") as appended:  # splice refuses O_APPEND
        pump = Pump(ours.fileno(), appended.fileno(), Counters(), LowWater(ours.fileno(), 0.001, 65536), through=True)
        run_pump(pump)
    assert pump.refused
    assert ours.recv(100) == b"still there"
    ours.close()
    theirs.close()


def test_the_probe_tells_the_truth() -> None:
    assert path.HAS_SPLICE == HAS_SPLICE == hasattr(os, "splice")

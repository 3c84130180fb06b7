"""The progress line and the last one, as a terminal shows them."""

import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import peers
import pytest
from terminals import Terminal

from ringmain.cli.summary import Blame, Summary

PROGRESS = r"4\.88 KiB  0:00:\d\d  in \S+ \S+/s"
LAST = r"ringmain: 4\.88 KiB in \d+\.\d\d s, \S+ \S+/s"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_progress_is_one_line_whatever_the_width(columns: int) -> None:
    with Terminal(columns) as terminal:
        port = terminal.listening("load", "-o")
        with peers.connect(port) as sock:
            sock.sendall(b"x" * 5000)
            for second in (1, 2):  # it is written over, several times
                terminal.until(lambda second=second: f"0:00:0{second}" in terminal.text)
                first, *progress = terminal.lines
                assert first == f"listening on tcp://127.0.0.1:{port}"
                assert len(progress) == 1
                assert re.match(PROGRESS, progress[0])
                assert progress[0].endswith("%") == (columns > 40)  # else what matters least is left out
        assert terminal.wait() == 0
        assert re.fullmatch(LAST + ".*", "".join(terminal.lines[1:]))


def test_a_line_of_ours_takes_the_place_of_progress() -> None:
    with Terminal(200) as terminal:
        port = terminal.listening("load")
        with peers.connect(port) as sock:
            sock.sendall(b"x" * 5000)
            terminal.until(lambda: re.search(PROGRESS, terminal.text))
            peers.close_with_reset(sock)
        terminal.until(lambda: "ringmain: " in terminal.text and "4.88 KiB  0" in terminal.lines[-1])
        assert [line.split(" ")[0] for line in terminal.lines] == ["listening", "ringmain:", "4.88"]
        terminal.process.send_signal(signal.SIGUSR1)
        terminal.until(lambda: len(terminal.lines) == 4)
        assert [line.split(" ")[0] for line in terminal.lines] == ["listening", "ringmain:", "4.88", "4.88"]
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 130
        assert re.match(LAST, terminal.lines[-1])
        assert len(terminal.lines) == 4


def test_a_line_of_another_process_takes_the_place_of_progress_too(tmp_path: Path) -> None:
    with Terminal(200) as terminal:
        options = ["--processes", 2, "--max-connections", 2, "--output", tmp_path / "got-{process}"]
        port = terminal.listening("load", *options)
        with peers.connect(port) as sock:
            sock.sendall(b"x" * 5000)
            terminal.until(lambda: "  in " in terminal.lines[-1])
            peers.close_with_reset(sock)
        terminal.until(lambda: "ringmain: " in terminal.text and "  in " in terminal.lines[-1])
        assert [line.partition(" ")[0] for line in terminal.lines[:2]] == ["listening", "ringmain:"]
        assert "  in " not in "".join(terminal.lines[:-1])


@pytest.mark.parametrize("writer", [[], ["--exec", "cat"]], ids=["ourselves", "command"])
def test_data_has_the_terminal_for_itself(writer: list[str]) -> None:
    with Terminal(80) as terminal, Terminal(80) as clock:
        port = terminal.listening("load", "-o", *writer, stdout=terminal.fd)
        other = clock.listening("load", "-o")
        with peers.connect(port) as sock, peers.connect(other) as shown:
            shown.sendall(b"x" * 5000)
            sock.sendall(b"one\r\ntwo without an end")
            terminal.until(lambda: "an end" in terminal.text)
            clock.until(lambda: "0:00:01" in clock.text)  # by then there would be progress here too
            terminal.look()
            assert terminal.lines[1:] == ["one", "two without an end"]
            peers.close_with_reset(sock)
        assert terminal.wait() == 56
        assert terminal.lines[1] == "one"
        if not writer:  # whose last byte we know
            assert terminal.lines[2] == "two without an end"
            assert terminal.lines[3].startswith("ringmain: ")
        assert clock.wait() == 0


def test_progress_that_is_asked_for_where_data_is_is_refused_with_a_word() -> None:
    with Terminal(80) as terminal:
        terminal.start("save", "--progress", "--retry", "1", f"127.0.0.1:{peers.free_port()}", stdin=terminal.fd)
        assert terminal.wait() == 7
        assert "".join(terminal.lines).startswith("ringmain: --progress: not shown on a terminal that data comes")


def test_a_file_tells_how_far_it_has_come(bench: peers.Bench) -> None:
    data = peers.payload(32 << 20)
    with Terminal(80) as terminal, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        terminal.start("save", "-I", bench.file(data), f"127.0.0.1:{port}")
        with listener.accept()[0] as sock:
            got = bytearray()
            while len(got) < len(data) // 2:
                got += sock.recv(1 << 20)
            shown = re.compile(r"iB  [5-9]\d%  0:\d\d:\d\d left  0:\d\d:\d\d  in ")
            terminal.until(lambda: shown.search(terminal.text))
            got += peers.read_all(sock)
        assert terminal.wait() == 0
        assert peers.sha256(bytes(got)) == peers.sha256(data)
        assert re.match(r"ringmain: 32\.00 MiB in ", terminal.text)


def last_line(program: peers.Program) -> str:
    assert program.wait() == 0
    return program.stderr.splitlines()[-1]


def test_the_last_line_tells_that_the_peer_was_slow(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "-o", "-v", stdout=subprocess.PIPE)
    with peers.connect(port) as sock:
        sock.sendall(b"x" * 5000)
        time.sleep(3)  # much longer than all the rest takes
    assert re.fullmatch(LAST + ", limited by the peer", last_line(loader))


def test_the_last_line_tells_that_the_reader_was_slow(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "-o", "-v", stdout=subprocess.PIPE)
    size = 0
    with peers.connect(port) as sock:
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                size += sock.send(b"x" * (1 << 20))
        time.sleep(3)
    assert len(loader.process.stdout.read()) == size
    assert last_line(loader).endswith(", limited by whoever reads the output")


@pytest.mark.parametrize("slow", ["the input", "the peer"])
def test_the_last_line_of_a_sender_tells_who_was_slow(bench: peers.Bench, slow: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        saver = bench.ringmain("save", "-v", f"127.0.0.1:{listener.getsockname()[1]}", stdin=subprocess.PIPE)
        with listener.accept()[0] as sock:
            if slow == "the input":
                time.sleep(3)
                saver.process.stdin.write(b"x" * 5000)
                saver.process.stdin.close()
            else:
                saver.process.stdin.write(b"x" * (1 << 20))  # which our kernel takes at once, and the peer's does not
                saver.process.stdin.close()
                time.sleep(3)
            saver.process.stdin = None
            peers.read_all(sock)
        assert last_line(saver).endswith(f", limited by {slow}")


def test_nobody_is_told_a_last_line_who_has_not_asked(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "-o")
    saver = bench.ringmain("save", "-v", "-q", "-I", bench.file(b"x" * 5000), f"127.0.0.1:{port}")
    assert (saver.wait(), loader.wait()) == (0, 0)
    assert (saver.stderr, loader.stderr) == ("", f"listening on tcp://127.0.0.1:{port}\n")


def test_the_processes_of_a_load_have_one_last_line(bench: peers.Bench, tmp_path: Path) -> None:
    options = ["--processes", 2, "--max-connections", 2, "-v", "--output", tmp_path / "got-{process}"]
    loader, port = bench.listening("load", *options)
    for _ in range(2):
        with peers.connect(port) as sock:
            sock.sendall(b"x" * 4999 + b"\n")
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    peers.eventually(lambda: loader.stderr.count("ended after") == 2, lambda: loader.stderr)
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert len(re.findall(r"^ringmain: 2 connections: 9\.77 KiB in .*", loader.stderr, re.MULTILINE)) == 1


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.cpu = 1000.0
        monkeypatch.setattr("ringmain.cli.summary.time.monotonic", lambda: self.now)
        monkeypatch.setattr("ringmain.cli.summary._cpu_seconds", lambda: self.cpu)


def row(seconds: float, size: int = 1 << 20, stalled: float = 0.0) -> dict[str, Any]:
    return {"bytes": size, "seconds": seconds, "stalled_seconds": stalled, "verdict": "ended"}


@pytest.mark.parametrize(
    ("stalled", "cpu", "limit"),
    [(0, 1, "the peer"), (6, 1, "the reader"), (1, 8, "this machine's CPU"), (4, 3, "the reader")],
)
def test_the_limit_is_what_most_of_the_time_went_to(
    monkeypatch: pytest.MonkeyPatch, stalled: float, cpu: float, limit: str
) -> None:
    clock = Clock(monkeypatch)
    summary = Summary()
    clock.now, clock.cpu = clock.now + 10, clock.cpu + cpu
    summary.add(row(10, stalled=stalled))
    line = summary.line(Blame("the reader", "the peer"))
    assert line == f"1.00 MiB in 10.00 s, 102.40 KiB/s, limited by {limit}"


def test_pauses_between_connections_do_not_count_and_side_by_side_ones_count_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    summary = Summary()
    assert summary.line(None) == ""
    for end, seconds in ((1010, 10), (1100, 5), (1106, 2), (1110, 12)):  # the last one holds the one before
        clock.now = float(end)
        summary.add(row(seconds))
    assert summary.line(None) == "4 connections: 4.00 MiB in 25.00 s, 163.84 KiB/s"  # 1000-1010, 1095-1110


def test_of_a_relay_both_ways_are_told_and_the_larger_one_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    summary = Summary()
    clock.now += 10
    source, destination = row(10, size=512), row(10, size=2 << 20, stalled=9)
    summary.add({"source": source, "destination": destination, "seconds": 10, "verdict": "ended"})
    line = summary.line(Blame("the destination", "the source"))
    assert line == "2.00 MiB back and 512 B there in 10.00 s, 204.80 KiB/s, limited by the source"


@pytest.mark.parametrize("options", [["--json"], ["--json-stream"]])
def test_progress_of_a_bench_is_lines_where_there_is_no_terminal(bench: peers.Bench, options: list[str]) -> None:
    _, port = bench.serving_measurements()
    client = bench.ringmain("bench", "--progress", "--time", "1", *options, f"tcp://127.0.0.1:{port}")
    assert client.wait() == 0, client.stderr
    lines = client.stderr.split("\n")
    assert any(re.match(r"\d+\.\d s  \S+ GB/s", line) for line in lines)
    assert all(line.isprintable() for line in lines)

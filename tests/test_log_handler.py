"""What is written to standard error, however many strangers come."""

import contextlib
import io
import json
import logging
import signal
import socket
import threading
import time
from pathlib import Path

import peers
import pytest
from conftest import Certificates

from ringmain import errors
from ringmain.cli import log_handler


def knock(port: int, data: bytes = b"") -> None:
    with contextlib.suppress(OSError), peers.connect(port) as stranger:  # the reset may be faster than connect
        stranger.sendall(data)
        stranger.recv(1)


def test_a_flood_of_refused_strangers_costs_ten_lines_and_one_that_counts_the_others(
    bench: peers.Bench, tmp_path: Path
) -> None:
    loader, port = bench.listening("load", "--allow", "127.0.0.2/32", "--stats-file", tmp_path / "stats")
    for _ in range(35):
        knock(port)
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)):
        pass
    peers.eventually((tmp_path / "stats").exists, "a friend's row")
    loader.signal(signal.SIGTERM)
    loader.wait()
    assert json.loads((tmp_path / "stats").read_text())["refused"] == 35
    assert loader.stderr.count(": refused: not in --allow\n") == 11
    assert loader.stderr.count("25 more like this in the last minute: 127.0.0.1:") == 1


@pytest.mark.parametrize("verb", ["load", "relay"])
def test_each_kind_of_cause_has_lines_of_its_own(bench: peers.Bench, certificates: Certificates, verb: str) -> None:
    if verb == "load":
        program, port = bench.listening("load", "--tls", "--certfile", certificates.server, "--handshake-timeout", "1s")
        what = "TLS handshake with 127.0.0.1:"
    else:
        program, port = bench.relaying("tcp://127.0.0.1:1", "--accept-proxy", "--handshake-timeout", "1s")
        what = "PROXY header from 127.0.0.1:"
    for _ in range(15):
        knock(port, b"GET / HTTP/1.1\r\n\r\n")
    with peers.connect(port):
        program.says("not done within 1 s" if verb == "load" else "none came within 1 s")
    program.signal(signal.SIGTERM)
    program.wait()
    assert program.stderr.count(what) == 12
    assert "5 more like this in the last minute: " in program.stderr


def test_strangers_of_a_bench_server_cost_no_more_lines(bench: peers.Bench) -> None:
    program, port = bench.serving_measurements()
    for _ in range(15):
        knock(port, b"GET / HTTP/1.1\r\n\r\n")
    program.signal(signal.SIGTERM)
    program.wait()
    assert program.stderr.count("not a ringmain bench client") == 11
    assert "5 more like this in the last minute: " in program.stderr


def test_a_minute_that_is_over_is_told_of_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_handler, "MINUTE", 0.2)
    handler = log_handler.LogHandler()
    handler.setStream(io.StringIO())
    log = logging.Logger("strangers")
    log.addHandler(handler)

    def written() -> list[str]:
        return handler.stream.getvalue().splitlines()  # type: ignore[attr-defined]

    def warn(count: int) -> None:
        for number in range(count):
            log.warning("%s", errors.TlsError(f"handshake {number}"))

    warn(log_handler.MOST + 3)
    assert len(written()) == log_handler.MOST
    peers.eventually(lambda: len(written()) > log_handler.MOST, "what was kept back")
    assert written()[-1] == "ringmain: 3 more like this in the last minute: handshake 12"
    warn(2)
    assert written()[-1] == "ringmain: handshake 1"
    time.sleep(0.3)
    handler.close()
    assert len(written()) == log_handler.MOST + 3


def test_where_no_thread_may_start_what_was_kept_back_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refused)
    handler = log_handler.LogHandler()
    handler.setStream(io.StringIO())
    log = logging.Logger("strangers")
    log.addHandler(handler)
    for number in range(log_handler.MOST + 3):
        log.warning("%s", f"refused {number}")
    handler.close()
    assert handler.stream.getvalue().endswith("ringmain: 3 more like this in the last minute: refused 12\n")


def test_what_v_adds_for_each_stranger_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_handler, "SECOND", 1000.0)
    handler = log_handler.LogHandler()
    handler.setStream(io.StringIO())
    log = logging.Logger("strangers", logging.INFO)
    log.addHandler(handler)
    for number in range(log_handler.MOST_VERBOSE + 7):
        log.info("%s: connected%s", f"peer {number}", "")
        log.error("%s", f"end {number}")
    log.info("something else")
    handler.close()
    lines = handler.stream.getvalue().splitlines()
    assert len([line for line in lines if "connected" in line]) == log_handler.MOST_VERBOSE + 1
    assert len([line for line in lines if "end" in line]) == log_handler.MOST_VERBOSE + 7
    assert lines[-2:] == [
        "ringmain: something else",
        "ringmain: 7 more like this in the last second: peer 56: connected",
    ]

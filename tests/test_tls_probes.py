"""Clients of a TLS listener that say nothing: health checks are counted, and nobody is warned of them."""

import contextlib
import json
import signal
import socket
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates


def last_totals(path: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return ([row for row in rows if row.get("event") == "totals"] or [{}])[-1]


def probe(port: int, kind: str) -> None:
    sock = peers.connect(port)
    if kind == "reset":
        peers.close_with_reset(sock)
    else:
        sock.close()


@pytest.mark.parametrize("verb", ["load", "save"])
@pytest.mark.parametrize("interval", ["20ms", "1h"])
def test_empty_probes_are_counted_and_not_warned_of(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, verb: str, interval: str
) -> None:
    stats = tmp_path / "stats"
    options = ["--tls", "--certfile", certificates.server, "--stats-file", stats, "--stats-interval", interval]
    more = ["--listen", "--input", bench.file(b"x" * 10)] if verb == "save" else []
    program, port = bench.listening(verb, *options, *more)
    for kind in ("end", "reset") * 6:
        probe(port, kind)
    if interval == "20ms":
        peers.eventually(lambda: last_totals(stats).get("probes") == 12, "the count of all")
    with peers.connect_tls(port, certificates.ca) as sock:  # which waits for its turn behind them
        sock.sendall(b"served" if verb == "load" else b"")
        sock.unwrap() if verb == "load" else peers.read_all(sock)
    program.signal(signal.SIGTERM)
    assert program.wait() in (0, 143)
    row = last_totals(stats)
    assert (row["probes"], row["accepted"]) == (12, 1), row
    assert program.stderr == f"listening on tcps://127.0.0.1:{port}\n"


def test_verbose_tells_of_each_and_what_is_no_tls_is_warned_of(bench: peers.Bench, certificates: Certificates) -> None:
    loader, port = bench.listening("load", "-v", "--tls", "--certfile", certificates.server)
    probe(port, "end")
    loader.says("closed before a TLS handshake, as health checks do")
    assert "TLS handshake with" not in loader.stderr
    with peers.connect(port) as sock:
        sock.sendall(b"\x16")  # the first byte of a handshake, and no more
        sock.shutdown(socket.SHUT_WR)
        loader.says("the peer closed the connection; does it speak TLS?")


def test_who_says_nothing_and_stays_has_the_time_of_a_handshake(bench: peers.Bench, certificates: Certificates) -> None:
    options = ["--tls", "--certfile", certificates.server, "--handshake-timeout", "200ms"]
    loader, port = bench.listening("load", *options)
    with peers.connect(port) as sock:
        loader.says("not done within 0.2 s; does it speak TLS? else raise --handshake-timeout")
    with peers.connect(port) as sock:
        with contextlib.suppress(ConnectionError):  # its time may be over before it says a word
            sock.sendall(b"\x16")
        peers.eventually(lambda: loader.stderr.count("not done within") == 2, "the second one's end")


def test_several_processes_do_not_warn_of_probes_either(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    options = ["--processes", 2, "--max-connections", 4, "--output", tmp_path / "{process}"]
    loader, port = bench.listening("load", *options, "--tls", "--certfile", certificates.server)
    for kind in ("end", "reset") * 3:
        probe(port, kind)
    for _ in range(2):
        with peers.connect_tls(port, certificates.ca) as sock:
            sock.sendall(b"line\n")
            sock.unwrap()
    peers.eventually(lambda: sum(path.stat().st_size for path in tmp_path.glob("[12]")) == 10, "both lines")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert loader.stderr == f"listening on tcps://127.0.0.1:{port}\n"

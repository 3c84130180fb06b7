"""Where `--metrics` answers: strangers get a proper refusal and keep nobody waiting; a bad address is one line."""

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import peers
import pytest
from scraping import Metrics, answers_at, ask, get

from ringmain.cli import metrics_server

HEAD = b"GET /metrics HTTP/1.1\r\nHost: here\r\n"


@pytest.fixture
def port(bench: peers.Bench, metrics: Metrics) -> int:
    """Give the port of a listener's metrics."""
    bench.listening("load", *metrics.options)
    return metrics.port


def test_nothing_is_imported_unless_it_is_asked_for(bench: peers.Bench, metrics: Metrics) -> None:
    def imported(*options: Any) -> str:
        program = bench.start(
            [sys.executable, "-X", "importtime", *peers.RINGMAIN[1:], "load", *options, "--connect", "127.0.0.1:1"]
        )
        assert program.wait() == 7
        return program.stderr

    for name in ("prometheus_client", "wsgiref", "http.server", "ringmain.cli.metrics"):
        assert name in imported(*metrics.options)
        assert name not in imported()


def test_only_the_path_and_only_reading_is_served(port: int) -> None:
    status, kind, text = get(port)
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert "ringmain_connections_total 0.0" in text.splitlines()
    for path in ("/", "/metrics/", "/metrics.html", "/favicon.ico"):
        assert get(port, path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "HEAD", "FOO"):
        assert get(port, method=method)[0] == 405
    assert get(port, "/metrics?name[]=ringmain_probes_total")[2].splitlines()[2:] == ["ringmain_probes_total 0.0"]


def test_an_answer_may_be_compressed(port: int) -> None:
    head, _, body = ask(port, HEAD + b"Accept-Encoding: gzip\r\n\r\n").partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert b"ringmain_connections_total" in gzip.decompress(body)


REQUESTS = [
    (b"garbage\r\n\r\n", b"400"),
    (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
    (b"GET /metrics HTTP/x\r\n\r\n", b"400"),
    (HEAD + b"no colon here\r\n\r\n", b"200"),
    (HEAD + b"X: y\r\n" * 200 + b"\r\n", b"431"),
    (HEAD + b"X: " + b"y" * 2 * metrics_server.LONGEST + b"\n\n", b"431"),
    (b"x" * (2 * metrics_server.LONGEST + 1), b"431"),
    (b"\x00\xff\x16\x03\x01" * 100 + b"\n\n", b"400"),
    (b"GET /metrics%00%ff?%zz=\xff&&name[]=\xe4 HTTP/1.1\r\nAccept: \xff;q=x\r\nAccept-Encoding: ,;\r\n\r\n", b"404"),
    (
        HEAD + b"Accept: application/openmetrics-text;version=9;q=;;=,\xff/*\r\nAccept-Encoding: ,gzip;q=x;\r\n\r\n",
        b"200",
    ),
    (HEAD.replace(b"metrics", b"metrics?name[]=\xff&%zz&name[]=") + b"\r\n", b"200"),
    (b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"z" * 1_000_000, b"405"),
    (HEAD + b"Content-Length: -1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n", b"200"),
    (HEAD, b"200"),  # cut off, and all that matters is there
    (b"GET /metrics\n\n", b"200"),
    (b"GET /met", b"404"),
    (b"\r\n\r\n", b""),
    (b"", b""),
]


def test_each_request_has_its_answer_and_the_next_one_is_served(bench: peers.Bench, metrics: Metrics) -> None:
    loader, _ = bench.listening("load", *metrics.options)
    for request, status in REQUESTS:
        answer = ask(metrics.port, request)
        assert answer.partition(b"\r\n")[0].split(b" ")[1:2] == ([status] if status else []), (request[:100], answer)
    assert get(metrics.port)[0] == 200
    assert loader.stderr.count("\n") == 1  # where it listens


def test_a_request_that_prometheus_client_fails_at_costs_a_line(bench: peers.Bench, metrics: Metrics) -> None:
    loader, _ = bench.listening("load", *metrics.options)
    for _ in range(15):
        answer = ask(metrics.port, HEAD + b"Accept: application/openmetrics-text; version=zz\r\n\r\n")
        assert answer.split(b" ")[1] in (b"500", b"200"), answer  # not every prometheus-client fails at it
    assert get(metrics.port)[0] == 200
    assert "Traceback" not in loader.stderr
    assert loader.stderr.count("\n") <= 1 + 10  # where it listens, and the most warnings of one kind in a minute


def test_strangers_who_hold_connections_keep_neither_bytes_nor_scrapes_waiting(
    bench: peers.Bench, metrics: Metrics
) -> None:
    out, data = bench.folder / "out", peers.payload(8 << 20)
    loader, port = bench.listening("load", *metrics.options, "-O", out)
    with peers.connect(port) as sock:
        sock.sendall(data)
    metrics.shows(connections_ended_total__ended=1)
    descriptors = loader.fd_count()
    strangers = []
    for number in range(3 * metrics_server.MOST):
        sock = peers.connect(metrics.port)
        if number % 3:
            sock.sendall(HEAD)
        if number % 3 == 1:
            sock.sendall(b"\r\n")  # and reads nothing
        strangers.append(sock)
    try:
        with peers.connect(port) as sock:
            sock.sendall(data)
        metrics.shows(bytes_total__out=2 * len(data), connections_ended_total__ended=2)
        assert loader.fd_count() <= descriptors + metrics_server.MOST
    finally:
        for sock in strangers:
            sock.close()
    assert peers.sha256(out) == peers.sha256(2 * data)
    assert loader.stderr.count("\n") == 1  # where it listens


def test_a_flood_of_scrapes_leaves_the_bytes_whole(bench: peers.Bench, metrics: Metrics) -> None:
    out, data, over = bench.folder / "out", peers.payload(16 << 20), threading.Event()
    _, port = bench.listening("load", *metrics.options, "--path", "block", "-O", out)

    def scrape() -> None:
        while not over.is_set():
            ask(metrics.port, HEAD + b"\r\n")

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with peers.connect(port) as sock:
            sock.sendall(data)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    metrics.shows(bytes_total__out=len(data), connections_ended_total__ended=1)
    assert peers.sha256(out) == peers.sha256(data)


@pytest.mark.parametrize("end", [signal.SIGTERM, None], ids=["signal", "ended"])
def test_the_port_closes_with_the_program(bench: peers.Bench, metrics: Metrics, end: int | None) -> None:
    program, port = bench.listening("load", *metrics.options, *([] if end else ["-o"]))
    with peers.connect(metrics.port) as sock:  # and says nothing
        if end is None:
            peers.connect(port).close()
        else:
            program.signal(end)
        assert program.wait() == (0 if end is None else 143), program.stderr
        assert peers.ends_in_reset(sock) in (True, False)
    with pytest.raises(ConnectionRefusedError):
        peers.connect(metrics.port)


def test_a_unix_socket_will_do(bench: peers.Bench, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    program, _ = bench.listening("load", "--metrics", f"unix:{path}")
    assert "ringmain_connections_total 0.0" in answers_at(str(path)).splitlines()
    program.signal(signal.SIGTERM)
    assert program.wait() == 143
    assert not path.exists()


def test_port_0_says_which_it_took(bench: peers.Bench) -> None:
    program, _ = bench.listening("load", "--metrics", "127.0.0.1:0")
    program.says("metrics at tcp://127.0.0.1:")
    port = int(program.stderr.partition("metrics at tcp://127.0.0.1:")[2].split()[0])
    assert get(port)[0] == 200


def test_the_address_may_come_from_the_environment(bench: peers.Bench, metrics: Metrics) -> None:
    bench.listening("load", env={**os.environ, "RINGMAIN_LOAD_METRICS": metrics.options[1]})
    assert get(metrics.port)[0] == 200


@pytest.mark.parametrize(
    ("address", "code", "line"),
    [
        ("9100", 2, "--metrics 9100: a port without a host; write HOST:PORT, or unix:/path for a UNIX socket"),
        ("127.0.0.1:99999", 2, "--metrics 127.0.0.1:99999: port 99999 is not between 0 and 65535; write HOST:PORT"),
        ("http://127.0.0.1:9100/metrics", 2, "--metrics http://127.0.0.1:9100/metrics: not understood; write"),
        ("tcps://127.0.0.1:9100", 2, "--metrics tcps://127.0.0.1:9100: metrics are served without TLS; write"),
        ("192.0.2.1:9100", 45, "listen on tcp://192.0.2.1:9100: cannot assign requested address; choose an address"),
        ("no-such-host.invalid:9100", 6, "resolve no-such-host.invalid:9100: "),
    ],
)
def test_a_bad_address_is_one_line(bench: peers.Bench, address: str, code: int, line: str) -> None:
    program = bench.ringmain("load", "--metrics", address, "tcp://127.0.0.1:0")
    assert program.wait() == code
    assert program.stderr.startswith(f"ringmain: {line}")
    assert program.stderr.count("\n") == 1


def test_a_port_in_use_is_one_line_and_the_output_is_left_alone(bench: peers.Bench) -> None:
    kept = bench.file(b"kept", "out")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        program = bench.ringmain("load", "-O", kept, "--metrics", address, "tcp://127.0.0.1:0")
        assert program.wait() == 45
    assert program.stderr.startswith(f"ringmain: listen on tcp://{address}: address already in use; stop what listens")
    assert program.stderr.count("\n") == 1
    assert kept.read_bytes() == b"kept"


@pytest.mark.parametrize("verb", ["load", "save", "relay"])
def test_without_the_library_it_says_what_to_install(verb: str) -> None:
    without = "import sys; sys.modules['prometheus_client'] = None; import ringmain.__main__; ringmain.__main__.main()"
    ends = ["tcp://127.0.0.1:1"] * (2 if verb == "relay" else 1)
    command = [sys.executable, "-P", "-c", without, verb, "--metrics", "127.0.0.1:0", *ends]
    done = subprocess.run(command, capture_output=True, text=True, timeout=peers.TIMEOUT, check=False)
    assert done.returncode == 2
    assert done.stderr == "ringmain: --metrics: it needs prometheus-client; pip install 'ringmain[metrics]'\n"

"""When, where and why: what every row of a stats file tells, also of a connection that never began."""

import datetime
import subprocess
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates


def check_times(row: dict[str, Any], since: datetime.datetime) -> None:
    started, ended = (datetime.datetime.fromisoformat(row[name]) for name in ("started", "ended"))
    assert started.utcoffset() == ended.utcoffset() == datetime.timedelta(0)
    tick = datetime.timedelta(milliseconds=2)
    assert since - tick <= started <= ended <= datetime.datetime.now(datetime.UTC)
    assert abs((ended - started).total_seconds() - row["seconds"]) <= tick.total_seconds()


def test_a_row_tells_when_where_and_why(bench: peers.Bench, tmp_path: Path) -> None:
    since = datetime.datetime.now(datetime.UTC)
    stats = tmp_path / "stats"
    loader, port = bench.listening("load", "--stats-file", stats, "--stats-interval", "1h")
    with peers.connect(port) as sock:
        sock.sendall(b"x" * 5000)
    peers.eventually(lambda: len(peers.rows_in(stats)) == 1)
    with peers.connect(port) as sock:
        sock.sendall(b"x" * 5000)
        peers.close_with_reset(sock)
    peers.eventually(lambda: len(peers.rows_in(stats)) == 2)
    loader.signal(15)
    assert loader.wait() == 143
    proper, broken, totals = peers.rows_in(stats)
    for row in (proper, broken, totals):
        check_times(row, since)
    assert proper["endpoint"] == broken["endpoint"] == f"tcp://127.0.0.1:{port}"  # not the port 0 that was asked for
    assert proper["error"] is None
    assert f"ringmain: {broken['error']}\n" in loader.stderr


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_client_whose_handshake_fails_has_a_row(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, verb: str
) -> None:
    since = datetime.datetime.now(datetime.UTC)
    stats = tmp_path / "stats"
    listen = ["--listen"] if verb == "save" else []
    options = ["--tls", "--certfile", certificates.server, "--stats-file", stats]
    program, port = bench.listening(verb, *listen, *options, stdin=subprocess.PIPE)
    with peers.connect(port) as sock:
        name = "{}:{}".format(*sock.getsockname())
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        (row,) = peers.eventually(lambda: peers.rows_in(stats))
    check_times(row, since)
    assert (row["peer"], row["verdict"], row["bytes"], row["tls"]) == (name, "handshake failed", 0, None)
    assert row["endpoint"] == f"tcp://127.0.0.1:{port}"
    assert f"ringmain: {row['error']}\n" in program.stderr
    with peers.connect_tls(port, certificates.ca) as sock:  # whose row has the same fields
        if verb == "load":
            sock.unwrap()
            assert peers.eventually(lambda: peers.rows_in(stats)[1:])[0].keys() == row.keys()


def test_one_of_several_processes_tells_of_a_failed_handshake_too(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    stats = tmp_path / "stats"
    options = ["--processes", 2, "--max-connections", 2, "--output", tmp_path / "got-{process}", "--tls"]
    _, port = bench.listening("load", *options, "--certfile", certificates.server, "--stats-file", stats)
    with peers.connect(port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        (row,) = peers.eventually(lambda: peers.rows_in(stats))
    assert row["verdict"] == "handshake failed"
    assert row["endpoint"] == f"tcp://127.0.0.1:{port}"


def test_each_side_of_a_relay_has_its_endpoint_and_a_client_without_a_header_its_row(
    bench: peers.Bench, tmp_path: Path
) -> None:
    stats = tmp_path / "stats"
    loader, there = bench.listening("load", "-o")
    relay, port = bench.relaying(f"tcp://127.0.0.1:{there}", "--accept-proxy", "--stats-file", stats)
    with peers.connect(port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        (row,) = peers.eventually(lambda: peers.rows_in(stats))
    assert (row["verdict"], row["source"]["endpoint"]) == ("handshake failed", f"tcp://127.0.0.1:{port}")
    assert f"ringmain: {row['error']}\n" in relay.stderr
    assert "destination" not in row
    with peers.connect(port) as sock:
        sock.sendall(b"PROXY UNKNOWN\r\nx")
        sock.shutdown(1)
        assert sock.recv(1) == b""
    row = peers.eventually(lambda: peers.rows_in(stats)[1:])[0]
    assert row["error"] is None
    assert [row[side]["endpoint"] for side in ("source", "destination")] == [
        f"tcp://127.0.0.1:{port}",
        f"tcp://127.0.0.1:{there}",
    ]
    assert loader.wait() == 0


def test_a_server_that_is_not_trusted_has_a_row(bench: peers.Bench, certificates: Certificates, tmp_path: Path) -> None:
    since = datetime.datetime.now(datetime.UTC)
    stats = tmp_path / "stats"
    _, port = bench.listening("load", "--tls", "--certfile", certificates.server)
    url = f"tcps://127.0.0.1:{port}"
    saver = bench.ringmain("save", "--cafile", certificates.stranger_ca, "--stats-file", stats, url)
    assert saver.wait() == 60
    (row,) = peers.rows_in(stats)
    check_times(row, since)
    assert (row["endpoint"], row["peer"], row["verdict"]) == (url, f"127.0.0.1:{port}", "handshake failed")
    assert saver.stderr.endswith(f"ringmain: {row['error']}\n")


def test_a_server_that_says_nothing_of_tls_has_a_row(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    _, port = bench.listening("load")
    options = ["--insecure", "--handshake-timeout", "200ms", "--stats-file", stats]
    saver = bench.ringmain("save", *options, f"tcps://127.0.0.1:{port}")
    assert saver.wait() == 28
    (row,) = peers.rows_in(stats)
    assert (row["peer"], row["verdict"]) == (f"127.0.0.1:{port}", "handshake failed")
    assert saver.stderr.endswith(f"ringmain: {row['error']}\n")


def test_a_connection_that_fails_late_has_one_row(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    stats = tmp_path / "stats"
    options = ["--tls", "--certfile", certificates.server, "--client-ca", certificates.ca]
    _, port = bench.listening("load", *options)
    url = f"tcps://127.0.0.1:{port}"  # of TLS 1.3: the server rejects us after our handshake
    saver = bench.ringmain("save", "--cafile", certificates.ca, "--stats-file", stats, "-I", bench.file(b"x"), url)
    assert saver.wait() in (35, 55, 60)
    (row,) = peers.rows_in(stats)
    assert row["error"] is not None


def test_a_client_that_a_relay_finds_no_destination_for_has_a_row(bench: peers.Bench, tmp_path: Path) -> None:
    since = datetime.datetime.now(datetime.UTC)
    stats = tmp_path / "stats"
    nobody = peers.free_port()
    relay, port = bench.relaying(f"tcp://127.0.0.1:{nobody}", "--stats-file", stats)
    with peers.connect(port) as sock:
        name = "{}:{}".format(*sock.getsockname())
        assert peers.ends_in_reset(sock)
    (row,) = peers.eventually(lambda: peers.rows_in(stats))
    check_times(row, since)
    assert (row["source"]["peer"], row["verdict"]) == (name, "not served")
    assert f"ringmain: {row['error']}\n" in relay.stderr
    assert f"connect to 127.0.0.1:{nobody}" in row["error"]


@pytest.mark.parametrize("many", [[], ["--max-connections", "3"]], ids=["one", "many"])
def test_a_client_that_leaves_or_is_left_before_a_destination_answers_has_a_row(
    bench: peers.Bench, tmp_path: Path, many: list[str]
) -> None:
    stats = tmp_path / "stats"
    nobody = f"tcp://127.0.0.1:{peers.free_port()}"
    relay, port = bench.relaying(nobody, "-v", "--retry", "forever", *many, "--stats-file", stats)
    with peers.connect(port) as sock:
        relay.says("trying again")
        peers.close_with_reset(sock)
    (gone,) = peers.eventually(lambda: peers.rows_in(stats))
    assert gone["verdict"] == "not served"
    assert "the client reset the connection before the other side answered" in gone["error"]
    before = relay.stderr.count("trying again")
    with peers.connect(port):
        peers.eventually(lambda: relay.stderr.count("trying again") > before, "another try")
        relay.signal(15)
        assert relay.wait() == 143
    (_, left) = peers.rows_in(stats)
    assert (left["verdict"], "stopped before the other side answered" in left["error"]) == ("not served", True)

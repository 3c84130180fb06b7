"""`load --output 'dir/{peer}-{number}'`: a file a connection, whatever a peer is called and however many there are."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates

from ringmain.cli.template import Template, file_name_of
from ringmain.errors import UsageError


def test_names_are_made_of_the_last_part_only() -> None:
    template = Template("some/dir{s/{{a}}-{peer}-{number}{", "--output")
    assert template.varies
    assert template.name("127.0.0.1:4000", 7) == "some/dir{s/{a}-127.0.0.1_4000-7{"
    assert not Template("-", "--output").varies
    assert Template("plain{{", "--output").name() == "plain{"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dir/{Peer}", r"the placeholder \{Peer\} is not known; choose \{peer\}, \{number\} or \{process\}"),
        ("dir/{}", r"the placeholder \{\} is not known"),
        ("dir/{peer.__class__}", r"the placeholder \{peer.__class__\} is not known"),
        ("{peer}/{number}", "a folder's name has a placeholder"),
        ("{number}/", "a folder's name has a placeholder"),
    ],
)
def test_other_placeholders_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Template(text, "--output")


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("192.0.2.1:51234", "192.0.2.1_51234"),
        ("[2001:db8::1]:51234", "2001_db8__1_51234"),
        ("[fe80::1%eth0]:51234", "fe80__1%eth0_51234"),
        ("[fe80::1%../../x]:1", "fe80__1%.._.._x_1"),
        ("..", "unknown"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("", "unknown"),
        ("a\0b/c\nd:1", "a_b_c_d_1"),
        ("-rf:1", "rf_1"),
        ("bücher.example:80", "b_cher.example_80"),
        ("x" * 5000, "x" * 100),
    ],
)
def test_a_peer_can_bring_no_path(peer: str, name: str) -> None:
    assert file_name_of(peer) == name


def test_no_two_addresses_have_one_name() -> None:
    assert file_name_of("[fe80::1%2]:80") != file_name_of("[fe80::1:2]:80")


@pytest.fixture(params=["plain", "tls"])
def scheme(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[tuple[list[Any], Any]]:
    """Yield the options of a loader, and how to connect to it."""
    if request.param == "plain":
        yield [], peers.connect
    else:
        yield ["--tls", "--certfile", certificates.server], lambda port: peers.connect_tls(port, certificates.ca)


def send_all(sock: socket.socket, data: bytes) -> None:
    with sock:
        sock.sendall(data)
        if hasattr(sock, "unwrap"):
            sock.unwrap()


@pytest.mark.parametrize("most", [1, 20])
def test_each_of_twenty_connections_has_a_file_of_its_own(
    bench: peers.Bench, tmp_path: Path, scheme: tuple[list[Any], Any], most: int
) -> None:
    options, connect = scheme
    folder, stats = tmp_path / "dumps", tmp_path / "stats"
    folder.mkdir()
    data = {peers.payload(400_000 + number, number) for number in range(20)}
    where = ["-O", folder / "{peer}-{number}.bin", "--stats-file", stats]
    loader, port = bench.listening("load", *options, "--max-connections", most, "--gate", "queue", *where)
    senders = []
    for payload in data:  # with many at once nobody ends before all have begun
        senders.append((connect(port), payload))
        if most == 1:
            send_all(*senders.pop())
    threads = [threading.Thread(target=send_all, args=it) for it in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(peers.TIMEOUT)
    peers.eventually(lambda: stats.exists() and stats.read_text().count("\n") == 20, "the rows")
    files = list(folder.iterdir())
    assert {peers.sha256(it) for it in files} == {peers.sha256(it) for it in data}
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert sorted(it.name.rpartition("-")[0] for it in files) == sorted(file_name_of(row["peer"]) for row in rows)
    assert {it.stem.rpartition("-")[2] for it in files} == {str(number) for number in range(1, 21)}
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert loader.stderr == f"listening on {'tcps' if options else 'tcp'}://127.0.0.1:{port}\n"


def test_an_ipv6_peer_has_a_file(bench: peers.Bench, tmp_path: Path) -> None:
    loader, port = bench.listening("load", "-o", "-O", tmp_path / "{peer}.bin", host="[::1]")
    with peers.connect(port, "::1") as sock:
        name = f"__1_{sock.getsockname()[1]}.bin"
        sock.sendall(b"six")
    assert loader.wait() == 0
    assert (tmp_path / name).read_bytes() == b"six"


def test_a_file_that_exists_is_emptied_first(bench: peers.Bench, tmp_path: Path) -> None:
    (tmp_path / "got-1").write_bytes(b"what was there, and longer")
    loader, port = bench.listening("load", "-o", "-O", tmp_path / "got-{number}")
    peers.send_in_thread(port, b"new").join()
    assert loader.wait() == 0
    assert (tmp_path / "got-1").read_bytes() == b"new"


@pytest.mark.parametrize("most", [1, 2])
def test_a_file_that_cannot_be_opened_costs_its_connection_only(bench: peers.Bench, tmp_path: Path, most: int) -> None:
    (tmp_path / "got-1").mkdir()
    os.mkfifo(tmp_path / "got-2")  # which nobody reads
    loader, port = bench.listening("load", "--max-connections", most, "-O", tmp_path / "got-{number}")
    for _ in range(2):
        assert peers.is_reset(port)
    with peers.connect(port) as sock:
        sock.sendall(b"served")
    peers.eventually(lambda: (tmp_path / "got-3").exists() and (tmp_path / "got-3").read_bytes() == b"served")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert loader.stderr.count("is a directory; choose another --output") == 1
    assert loader.stderr.count("no such device or address; choose another --output") == 1


@pytest.mark.parametrize("most", [1, 2])
def test_a_file_that_cannot_be_written_costs_its_connection_only(bench: peers.Bench, tmp_path: Path, most: int) -> None:
    (tmp_path / "got-1").symlink_to("/dev/full")
    loader, port = bench.listening("load", "--max-connections", most, "-O", tmp_path / "got-{number}")
    assert peers.is_reset(port, b"no room for this")
    with peers.connect(port) as sock:
        sock.sendall(b"served")
    peers.eventually(lambda: (tmp_path / "got-2").exists() and (tmp_path / "got-2").read_bytes() == b"served")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert loader.stderr.count("no space left on device") == 1


def test_the_only_connection_s_failure_is_that_of_the_run(bench: peers.Bench, tmp_path: Path) -> None:
    (tmp_path / "got-1").symlink_to("/dev/full")
    loader, port = bench.listening("load", "-o", "-O", tmp_path / "got-{number}")
    with peers.connect(port) as sock:
        sock.sendall(b"no room for this")
        assert loader.wait() == 23
    assert "got-1: no space left on device" in loader.stderr


def test_two_connections_never_write_to_one_file(bench: peers.Bench, tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"")
    (tmp_path / "2").symlink_to(tmp_path / "1")
    loader, port = bench.listening("load", "--max-connections", 2, "-O", tmp_path / "{number}")
    with peers.connect(port) as first:
        first.sendall(b"first")
        peers.eventually(lambda: (tmp_path / "1").read_bytes() == b"first")
        assert peers.is_reset(port)
        first.sendall(b", and on")
    peers.eventually(lambda: (tmp_path / "1").read_bytes() == b"first, and on")
    loader.says("another connection is being written there")


def test_one_that_stands_still_holds_nobody_up(bench: peers.Bench, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1")
    fifo = os.open(tmp_path / "1", os.O_RDONLY | os.O_NONBLOCK)
    data = peers.payload(3_000_000)
    try:
        loader, port = bench.listening("load", "--max-connections", 2, "-O", tmp_path / "{number}")
        with peers.connect(port) as stuck:
            stuck.setblocking(False)
            sent = 0
            with pytest.raises(BlockingIOError):
                while True:
                    sent += stuck.send(b"x" * 65536)
            peers.send_in_thread(port, data).join()
            other = tmp_path / "2"
            peers.eventually(lambda: other.exists() and other.stat().st_size == len(data), "the other one's file")
            assert peers.sha256(tmp_path / "2") == peers.sha256(data)
        loader.signal(signal.SIGKILL)
    finally:
        os.close(fifo)


@pytest.mark.parametrize("path", ["auto", "block"])
def test_what_was_acknowledged_is_written_after_a_signal(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    where = ["-O", tmp_path / "{number}", "--path", path]
    loader, port = bench.listening("load", "--max-connections", 3, *where)
    socks = [peers.connect(port) for _ in range(3)]
    try:
        for sock in socks:
            sock.sendall(b"acknowledged")
        peers.eventually(lambda: sorted(it.name for it in tmp_path.iterdir() if it.name.isdigit()) == ["1", "2", "3"])
        loader.signal(signal.SIGTERM)
        assert loader.wait() == 143
    finally:
        for sock in socks:
            sock.close()
    assert [(tmp_path / name).read_bytes() for name in "123"] == [b"acknowledged"] * 3


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("missing/{number}", 23, "make files in missing/: no such file or directory; choose another --output"),
        ("file/{number}", 23, "make files in file/: not a directory; choose another --output"),
        ("{who}", 2, "the placeholder {who} is not known; choose {peer}, {number} or {process}"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(
    bench: peers.Bench, tmp_path: Path, output: str, code: int, said: str
) -> None:
    (tmp_path / "file").touch()
    loader = bench.ringmain("load", "-O", output, "127.0.0.1:0", cwd=tmp_path)
    assert loader.wait() == code
    assert said in loader.stderr
    assert "Traceback" not in loader.stderr


def test_the_kernel_path_may_be_insisted_on(bench: peers.Bench, tmp_path: Path) -> None:
    options = ["--path", "kernel", "--max-connections", 2]
    loader, port = bench.listening("load", *options, "-O", tmp_path / "{number}")
    data = [peers.payload(200_000, seed) for seed in range(2)]
    for thread in [peers.send_in_thread(port, it) for it in data]:
        thread.join()
    peers.eventually(lambda: sum(it.stat().st_size for it in tmp_path.glob("[12]")) == 400_000, "both files")
    assert {peers.sha256(it) for it in tmp_path.glob("[12]")} == {peers.sha256(it) for it in data}
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143


def test_a_relay_to_files_does_the_same(bench: peers.Bench, tmp_path: Path) -> None:
    relay, port = bench.relaying(f"{tmp_path}/got-{{number}}", "-o")
    peers.send_in_thread(port, b"relayed").join()
    assert relay.wait() == 0
    assert (tmp_path / "got-1").read_bytes() == b"relayed"
    refused = bench.ringmain("relay", "127.0.0.1:0", f"{tmp_path}/{{who}}")
    assert refused.wait() == 2
    assert f"DESTINATION {tmp_path}/{{who}}: the placeholder {{who}} is not known" in refused.stderr

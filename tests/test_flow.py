"""Back-pressure, half-closed peers, and what goes to the next client."""

import socket
import subprocess
import time
from pathlib import Path

import peers
import pytest
from conftest import Certificates


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_stalled_reader_costs_no_more_than_the_ring_and_loses_nothing(
    bench: peers.Bench, certificates: Certificates, tls: bool
) -> None:
    data = peers.payload(1 << 20) * 64
    options = ["--tls", "--certfile", certificates.server] if tls else []
    loader, port = bench.listening("load", "-o", *options, stdout=subprocess.PIPE)
    sock = peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)
    sent = sock.send(data[:1])
    assert loader.process.stdout is not None
    first = loader.process.stdout.read(1)  # it listens before it has all that it needs
    idle = loader.memory()
    sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        while True:
            sent += sock.send(data[sent : sent + 65536])
    assert sent < 60 << 20  # the sender is what waits
    assert loader.memory() - idle < 12 << 20
    sock.settimeout(peers.TIMEOUT)
    # The rest and the end arrive while the loader is paused.
    import threading

    def finish() -> None:
        sock.sendall(data[sent:])
        if tls:
            sock.unwrap()  # type: ignore[attr-defined]
        sock.close()

    # OpenSSL wants an interrupted write repeated as it was; what timed out above was one record.
    thread = threading.Thread(target=finish)
    thread.start()
    assert peers.sha256(first + loader.process.stdout.read()) == peers.sha256(data)
    thread.join()
    assert loader.wait() == 0, loader.stderr


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_paused_stream_that_gets_data_and_the_end_loses_nothing(
    bench: peers.Bench, certificates: Certificates, tls: bool
) -> None:
    data = peers.payload(9_000_000)  # the ring, a pipe, and something for the kernel to hold
    options = ["--tls", "--certfile", certificates.server] if tls else []
    loader, port = bench.listening("load", "-o", *options, stdout=subprocess.PIPE)
    with peers.connect_tls(port, certificates.ca) if tls else peers.connect(port) as sock:
        sock.sendall(data)
        if tls:
            sock.setblocking(False)
            with pytest.raises(OSError, match="did not complete"):
                sock.unwrap()  # type: ignore[attr-defined]
            socket.socket.shutdown(sock, socket.SHUT_WR)
        else:
            sock.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        assert loader.process.stdout is not None
        assert peers.sha256(loader.process.stdout.read()) == peers.sha256(data)
    assert loader.wait() == 0, loader.stderr


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_save_waits_for_a_peer_that_has_not_read_yet_but_not_for_its_close(
    bench: peers.Bench, certificates: Certificates, tls: bool
) -> None:
    data = peers.payload(20_000_000)
    options = ["--tls", "--certfile", certificates.server] if tls else []
    saver, port = bench.listening("save", "-o", *options, "-I", bench.file(data))
    with peers.connect_tls(port, certificates.ca) if tls else peers.connect(port) as sock:
        sock.sendall(b"chatter that nobody reads" * 1000)
        time.sleep(0.5)
        assert saver.process.poll() is None  # what the peer's kernel has not acknowledged is not left alone
        assert peers.sha256(peers.read_all(sock)) == peers.sha256(data)
        assert saver.wait() == 0, saver.stderr  # while the peer keeps its side open
        sock.close()


@pytest.mark.parametrize("path", ["auto", "block"])
def test_a_connecting_save_ends_with_its_input_although_the_peer_stays(bench: peers.Bench, path: str) -> None:
    data = peers.payload(6_000_001)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with bench.file(data).open("rb") as source:
            cat = bench.start(["cat"], stdin=source, stdout=subprocess.PIPE)
        saver = bench.ringmain("save", "--path", path, url, stdin=cat.process.stdout)
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b"chatter that nobody reads" * 1000)
            peers.eventually(lambda: peers.unread(sock) > 10_000, "bytes that wait")
            assert saver.process.poll() is None  # and it has not reset what was not read yet
            assert peers.sha256(peers.read_all(sock)) == peers.sha256(data)
            assert saver.wait() == 0, saver.stderr
            sock.sendall(b"more")  # this side is still open


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_save_leaves_at_once_when_the_peer_has_everything_and_closes(
    bench: peers.Bench, certificates: Certificates, tls: bool
) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    saver, port = bench.listening("save", "-o", *options, stdin=subprocess.PIPE)
    with peers.connect_tls(port, certificates.ca) if tls else peers.connect(port) as sock:
        saver.process.stdin.write(b"all of it")
        saver.process.stdin.close()
        saver.process.stdin = None
        assert peers.read_all(sock) == b"all of it"
    assert saver.wait() == 0, saver.stderr


def test_a_stream_goes_on_with_the_next_client_where_the_last_one_left(bench: peers.Bench) -> None:
    saver, port = bench.listening("save", "-l", stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    for number in range(5):
        with peers.connect(port) as sock:
            saver.process.stdin.write(b"line %d\n" % number)
            saver.process.stdin.flush()
            assert sock.recv(100) == b"line %d\n" % number
            if number % 2:
                sock.shutdown(socket.SHUT_WR)  # a half-close is no farewell
                for _ in range(2):
                    saver.process.stdin.write(b"and more\n")
                    saver.process.stdin.flush()
                    assert sock.recv(100) == b"and more\n"
    with peers.connect(port) as sock:
        saver.process.stdin.write(b"the last\n")
        saver.process.stdin.close()
        saver.process.stdin = None
        assert peers.read_all(sock) == b"the last\n"
    assert saver.wait() == 0, saver.stderr


def test_a_regular_file_goes_whole_to_every_client(bench: peers.Bench) -> None:
    data = bench.file(peers.payload(3_000_001))
    with data.open("rb") as source:
        saver, port = bench.listening("save", "--listen", stdin=source)
        for _ in range(3):
            with peers.connect(port) as sock:
                assert peers.sha256(peers.read_all(sock)) == peers.sha256(data)
        peers.close_with_reset(peers.connect(port))
        with peers.connect(port) as sock:
            assert peers.sha256(peers.read_all(sock)) == peers.sha256(data)
        assert saver.process.poll() is None
        assert source.tell() == 0  # the position that others share is left alone


def test_clients_one_after_another_are_joined_in_order(bench: peers.Bench, tmp_path: Path) -> None:
    _, port = bench.listening("load", "-k", "-O", tmp_path / "got")
    parts = [peers.payload(100_000 + number, number) for number in range(10)]
    for part in parts:
        with peers.connect(port) as sock:
            sock.sendall(part)
    peers.eventually(lambda: (tmp_path / "got").read_bytes() == b"".join(parts), "all parts")


def test_retry_waits_for_a_listener_that_comes_late(bench: peers.Bench, tmp_path: Path) -> None:
    port, data = peers.free_port(), peers.payload(10_000)
    saver = bench.ringmain("save", "--retry", "forever", "-v", "-I", bench.file(data), f"127.0.0.1:{port}")
    saver.says("trying again")
    loader = bench.ringmain("load", "-o", "-O", tmp_path / "got", f"127.0.0.1:{port}")
    assert (saver.wait(), loader.wait()) == (0, 0)
    assert (tmp_path / "got").read_bytes() == data
    limited = bench.ringmain("save", "--retry", "2", "-v", f"127.0.0.1:{port}")
    assert limited.wait() == 7
    assert limited.stderr.count("trying again") == 2

"""One connection at a time, whatever else knocks."""

import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import peers
import pytest
from conftest import FORGOTTEN, Certificates

from ringmain.net import gate


def read_line(program: peers.Program) -> bytes:
    assert program.process.stdout is not None
    return program.process.stdout.readline()


def test_the_filter_makes_connects_time_out_until_it_is_taken_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        assert gate.hold_back(listener)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.connect(listener.getsockname())
        gate.let_in(listener)
        with peers.connect(listener.getsockname()[1]):
            listener.accept()[0].close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_with_hold_a_second_connect_times_out_and_gets_through_later(
    bench: peers.Bench, certificates: Certificates, tls: bool
) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    loader, port = bench.listening("load", *options, stdout=subprocess.PIPE)

    def connect() -> socket.socket:
        return peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)

    first = connect()
    first.sendall(b"first\n")
    assert read_line(loader) == b"first\n"
    time.sleep(1.2)  # the filter goes on after a second
    with pytest.raises(TimeoutError):
        peers.connect(port, timeout=0.5)
    with socket.socket() as patient:
        patient.setblocking(False)
        patient.connect_ex(("127.0.0.1", port))
        first.sendall(b"more of the first\n")
        assert read_line(loader) == b"more of the first\n"
        if tls:
            first.unwrap()  # type: ignore[attr-defined]
        first.close()
        patient.settimeout(peers.TIMEOUT)
        if tls:
            with connect() as sock:  # its SYN may meet the filter once more, and is sent again
                sock.sendall(b"second\n")
                assert read_line(loader) == b"second\n"
        else:
            peers.eventually(lambda: patient.connect_ex(("127.0.0.1", port)) in (0, 106), "the connection")
            patient.sendall(b"second\n")
            assert read_line(loader) == b"second\n"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["hold", "queue"])
def test_who_came_before_the_filter_waits_and_is_served_next(
    bench: peers.Bench, certificates: Certificates, kind: str, tls: bool
) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    loader, port = bench.listening("load", "--gate", kind, *options, stdout=subprocess.PIPE)
    with peers.connect_tls(port, certificates.ca) if tls else peers.connect(port) as first:
        second = peers.connect(port)
        if not tls:
            second.sendall(b"second\n")
        first.sendall(b"first\n")
        assert read_line(loader) == b"first\n"
        if kind == "queue":
            time.sleep(1.2)
            peers.connect(port).close()  # connects although a client has been served for more than a second
        if tls:
            first.unwrap()  # type: ignore[attr-defined]
        first.close()
        if tls:  # it shakes hands when its turn has come
            second = ssl.create_default_context(cafile=str(certificates.ca)).wrap_socket(
                second, server_hostname="localhost"
            )
            second.sendall(b"second\n")
        assert read_line(loader) == b"second\n"
        second.close()


@FORGOTTEN  # the ssl module forgets a socket that is reset while it wraps it
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_with_refuse_others_are_reset_and_counted(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, tls: bool
) -> None:
    options = ["--gate", "refuse", "-v", "--stats-file", tmp_path / "stats"]
    options += ["--tls", "--certfile", certificates.server] if tls else []
    loader, port = bench.listening("load", *options, stdout=subprocess.PIPE)

    def connect() -> socket.socket:
        return peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)

    with connect() as first:
        first.sendall(b"first\n")
        assert read_line(loader) == b"first\n"
        with pytest.raises(ConnectionResetError), connect() as second:  # the reset may be faster than connect
            second.recv(1)
        loader.says("refused: another client is being served")
        first.sendall(b"still first\n")
        assert read_line(loader) == b"still first\n"
        if tls:
            first.unwrap()  # type: ignore[attr-defined]
    loader.says("ended after")
    with connect() as third:
        third.sendall(b"third\n")
        assert read_line(loader) == b"third\n"
    assert json.loads((tmp_path / "stats").read_text().splitlines()[0])["refused"] == 1


def test_where_no_filter_can_be_attached_hold_is_queue(bench: peers.Bench, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import ringmain.net.gate\nringmain.net.gate.hold_back = lambda sock: False\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    loader, port = bench.listening("load", "-v", stdout=subprocess.PIPE, env=environment)
    with peers.connect(port) as first:
        first.sendall(b"first\n")
        assert read_line(loader) == b"first\n"
        loader.says("other clients wait connected")
        second = peers.connect(port)
        second.sendall(b"second\n")
    assert read_line(loader) == b"second\n"
    second.close()


def test_a_thousand_clients_in_a_row_are_served_at_full_speed_with_flat_descriptors(
    bench: peers.Bench, tmp_path: Path
) -> None:
    loader, port = bench.listening("load", "-O", tmp_path / "got")
    for number in range(1000):
        with peers.connect(port, timeout=0.9) as sock:  # a SYN that met the filter would take a second
            sock.sendall(b"%d\n" % number)
        if number == 10:
            peers.eventually(lambda: (tmp_path / "got").read_bytes().endswith(b"\n10\n"), "the tenth client's line")
            before = loader.fd_count()
    lines = b"".join(b"%d\n" % number for number in range(1000))
    peers.eventually(lambda: (tmp_path / "got").read_bytes() == lines, "every client's line, in order")
    peers.eventually(lambda: loader.fd_count() <= before, "as few descriptors as before")


def test_tls_clients_good_and_bad_leave_no_descriptor_behind(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    loader, port = bench.listening("load", "--tls", "--certfile", certificates.server, "-O", tmp_path / "got")

    def visit() -> None:
        with peers.connect_tls(port, certificates.ca) as sock:
            sock.sendall(b"x")
            sock.unwrap().close()
        with peers.connect(port) as garbage:
            garbage.sendall(b"garbage\r\n\r\n")
            garbage.recv(100)
        with peers.connect_tls(port, certificates.ca) as sock:
            sock.sendall(b"y")  # and no close_notify
        peers.close_with_reset(peers.connect(port))

    visit()
    peers.eventually(lambda: (tmp_path / "got").read_bytes() == b"xy", "two clients' bytes")
    before = loader.fd_count()
    for _ in range(20):
        visit()
    peers.eventually(lambda: (tmp_path / "got").read_bytes() == b"xy" * 21, "every client's bytes, in order")
    peers.eventually(lambda: loader.fd_count() <= before, "as few descriptors as before")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("verb", ["load", "save"])
def test_no_connection_is_left_in_close_wait(
    bench: peers.Bench, certificates: Certificates, verb: str, tls: bool
) -> None:
    side = [] if verb == "load" else ["-l", "-I", bench.file(b"some data")]
    _, port = bench.listening(verb, *side, *(["--tls", "--certfile", certificates.server] if tls else []))
    for number in range(9):
        sock = peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)
        if number % 3 == 0:
            peers.close_with_reset(sock)
            continue
        if verb == "load":
            sock.sendall(b"x")
        elif number % 3 == 1:
            assert sock.recv(100)
        sock.close()
    peers.eventually(lambda: peers.states(port) <= {"LISTEN", "TIME_WAIT"}, "every connection's end")


def test_restart_on_the_same_port_works_at_once(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", stdout=subprocess.PIPE)
    for _ in range(3):
        with peers.connect(port) as sock:
            sock.sendall(b"x\n")
            assert read_line(loader) == b"x\n"
            loader.signal(signal.SIGTERM)  # with the connection open: it is our side that closes first
            assert loader.wait() == 143
        loader = bench.ringmain("load", f"127.0.0.1:{port}", stdout=subprocess.PIPE)
        peers.wait_for_port(port)


def test_bad_clients_are_warned_of_and_do_not_count(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    loader, port = bench.listening(
        "load", "-o", "--tls", "--certfile", certificates.server, "--handshake-timeout", "5s", "-O", tmp_path / "got"
    )
    with peers.connect(port) as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
        loader.says("http request")
    with peers.connect(port):
        loader.says("not done within 5 s")  # silence
    with peers.connect(port) as half:
        half.sendall(b"\x16\x03\x01\x02\x00\x01")  # half a ClientHello
    peers.eventually(lambda: loader.stderr.count("TLS handshake") == 3, "three warnings")
    peers.close_with_reset(peers.connect(port))  # a port scan
    peers.connect(port).close()
    with peers.connect_tls(port, certificates.ca) as sock:
        peers.close_with_reset(sock)  # a handshake and nothing after it
    with peers.connect_tls(port, certificates.ca) as sock:
        sock.sendall(b"the one that counts")
        sock.unwrap().close()
    assert loader.wait() == 0, loader.stderr
    assert (tmp_path / "got").read_bytes() == b"the one that counts"
    assert "Traceback" not in loader.stderr
    assert all("127.0.0.1:" in line or "client" in line for line in loader.stderr.splitlines())


def test_a_plain_listener_survives_resets_and_idle_clients(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "--idle-timeout", "3s", stdout=subprocess.PIPE)
    for _ in range(3):
        sock = peers.connect(port)
        sock.sendall(b"begun\n")
        assert read_line(loader) == b"begun\n"
        peers.close_with_reset(sock)
    with peers.connect(port):
        loader.says("nothing came for 3 s after 0 bytes")
    with peers.connect(port) as sock:
        sock.sendall(b"well\n")
        assert read_line(loader) == b"well\n"
    assert loader.stderr.count("connection reset by peer after 6 bytes") == 3


@pytest.mark.parametrize("verb", ["load", "save"])
def test_with_few_descriptors_left_clients_are_still_served(bench: peers.Bench, tmp_path: Path, verb: str) -> None:
    data = bench.file(b"all there is")
    side = ["-O", tmp_path / "got"] if verb == "load" else ["-l", "-I", data]
    program, port = bench.listening(verb, *side)

    def visit() -> None:
        with peers.connect(port) as sock:
            if verb == "save":
                assert peers.read_all(sock) == data.read_bytes()
            else:
                sock.sendall(data.read_bytes())

    def got(times: int) -> None:
        if verb == "load":
            peers.eventually(lambda: (tmp_path / "got").read_bytes() == times * data.read_bytes(), "all the data")

    if verb == "load":  # which listens before it has all that it needs
        visit()
        got(1)
    numbers = {int(path.name) for path in Path(f"/proc/{program.process.pid}/fd").iterdir()}
    free = next(number for number in range(1000) if number not in numbers)
    limits = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
    for spare in (1, 2, 3):  # the connection itself, and then some of what the kernel path wants
        resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (free + spare, limits[1]))
        visit()
    got(4)
    assert program.process.poll() is None
    assert program.stderr.count("\n") == 1  # where it listens


def test_running_out_of_descriptors_is_waited_out(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", stdout=subprocess.PIPE)
    with peers.connect(port) as sock:
        sock.sendall(b"one\n")
        assert read_line(loader) == b"one\n"
    limits = resource.prlimit(loader.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(loader.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    with peers.connect(port) as sock:
        sock.sendall(b"two\n")
        loader.says("cannot accept a client: too many open files")
        time.sleep(0.3)
        resource.prlimit(loader.process.pid, resource.RLIMIT_NOFILE, limits)
        assert read_line(loader) == b"two\n"
    assert loader.stderr.count("cannot accept") == 1


def test_allow_turns_strangers_away(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "--allow", "127.0.0.2/32", "--allow", "::1/128", stdout=subprocess.PIPE)
    with pytest.raises(ConnectionResetError), peers.connect(port) as stranger:  # the reset may be faster than connect
        stranger.recv(1)
    loader.says("refused: not in --allow")
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) as friend:
        friend.sendall(b"friend\n")
        assert read_line(loader) == b"friend\n"


def test_with_hold_every_address_holds_back(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", host="", stdout=subprocess.PIPE)
    with peers.connect(port, "::1") as first:
        first.sendall(b"first\n")
        assert read_line(loader) == b"first\n"
        time.sleep(1.2)  # the filter goes on after a second
        for host in ("127.0.0.1", "::1"):
            with pytest.raises(TimeoutError):
                peers.connect(port, host, timeout=0.3)
    for host in ("127.0.0.1", "::1"):
        with peers.connect(port, host) as sock:
            sock.sendall(host.encode() + b"\n")
            assert read_line(loader) == host.encode() + b"\n"


def test_several_addresses_still_serve_one_client_in_all(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", host="", stdout=subprocess.PIPE)
    with peers.connect(port, "127.0.0.1") as first, peers.connect(port, "::1") as second:
        second.sendall(b"second\n")
        first.sendall(b"first\n")
        served = {read_line(loader)}
        (second if b"second\n" in served else first).close()
        served.add(read_line(loader))
        assert served == {b"first\n", b"second\n"}

"""How things end: every row of the table of exit codes, in one line and without a traceback."""

import contextlib
import os
import resource
import socket
import subprocess
from pathlib import Path

import peers
import pytest
from conftest import Certificates


def fails(program: peers.Program, code: int, *words: str) -> None:
    """Check the exit code and that the last line, the only one but for notices, names what is expected."""
    assert program.wait() == code, program.stderr
    assert "Traceback" not in program.stderr
    lines = [line for line in program.stderr.splitlines() if not line.startswith("listening on")]
    assert all(line.startswith("ringmain: ") for line in lines), program.stderr
    for word in words:
        assert word in lines[-1]


def test_a_fin_ends_a_single_connection_well_and_half_close_suffices(bench: peers.Bench, tmp_path: Path) -> None:
    loader, port = bench.listening("load", "-o", "-O", tmp_path / "got")
    with peers.connect(port) as sock:
        sock.sendall(b"all of it")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert loader.wait() == 0
    assert (tmp_path / "got").read_bytes() == b"all of it"
    assert loader.stderr.splitlines() == [f"listening on tcp://127.0.0.1:{port}"]


@pytest.mark.parametrize("connecting", [True, False])
def test_tls_without_close_notify_is_truncated(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, connecting: bool
) -> None:
    if connecting:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"tcps://127.0.0.1:{listener.getsockname()[1]}"
            loader = bench.ringmain("load", "-c", "--cafile", certificates.ca, "-O", tmp_path / "got", url)
            raw, _ = listener.accept()
            sock = context.wrap_socket(raw, server_side=True)
    else:
        loader, port = bench.listening("load", "-o", "--tls", "--certfile", certificates.server, "-O", tmp_path / "got")
        sock = peers.connect_tls(port, certificates.ca)
    sock.sendall(b"half of it")
    socket.socket.shutdown(sock, socket.SHUT_WR)  # FIN alone
    fails(loader, 18, "ended without close_notify after 10 bytes")
    sock.close()
    assert (tmp_path / "got").read_bytes() == b"half of it"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_reset_while_loading_comes_after_the_bytes(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, tls: bool
) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    loader, port = bench.listening("load", "-o", *options, "-O", tmp_path / "got")
    sock = peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)
    sock.sendall(b"before")
    peers.eventually(lambda: (tmp_path / "got").read_bytes() == b"before", "the bytes")
    peers.close_with_reset(sock)
    fails(loader, 56, "connection reset by peer after 6 bytes")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_in_a_serving_loop_a_broken_stream_is_a_warning(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, tls: bool
) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    loader, port = bench.listening("load", *options, "-O", tmp_path / "got")

    def send(data: bytes) -> socket.socket:
        before = (tmp_path / "got").read_bytes()
        sock = peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)
        sock.sendall(data)
        peers.eventually(lambda: (tmp_path / "got").read_bytes() == before + data, "the bytes")
        return sock

    peers.close_with_reset(send(b"reset"))
    loader.says("connection reset by peer after 5 bytes")
    if tls:
        send(b"cut short").close()
        loader.says("ended without close_notify after 9 bytes")
    send(b"next").close()
    assert loader.process.poll() is None
    assert loader.stderr.count("ringmain: load from 127.0.0.1:") >= 1 + tls


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_reset_by_the_listener_we_connected_to(bench: peers.Bench, tmp_path: Path, verb: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        options = ["-c", "-O", tmp_path / "got"] if verb == "load" else ["-I", "/dev/zero"]
        program = bench.ringmain(verb, *options, url)
        sock, _ = listener.accept()
        if verb == "load":
            sock.sendall(b"before")
            peers.eventually(lambda: (tmp_path / "got").read_bytes() == b"before", "the bytes")
        else:
            assert sock.recv(100)
        peers.close_with_reset(sock)
    fails(program, 56 if verb == "load" else 55, f"{verb} {'from' if verb == 'load' else 'to'} {url}")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("busy", [True, False], ids=["while sending", "while idle"])
def test_a_reset_while_saving(bench: peers.Bench, certificates: Certificates, tls: bool, busy: bool) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    feed = ["-I", "/dev/zero"] if busy else []
    saver, port = bench.listening("save", "-o", *options, *feed, stdin=subprocess.PIPE)
    if not busy:
        assert saver.process.stdin is not None
        saver.process.stdin.write(b"x")
        saver.process.stdin.flush()
    sock = peers.connect_tls(port, certificates.ca) if tls else peers.connect(port)
    assert sock.recv(1)
    peers.close_with_reset(sock)
    fails(saver, 55, "save to 127.0.0.1:")


@pytest.mark.parametrize("state", ["moving", "idle", "waiting"])
def test_the_reader_of_our_output_may_leave_at_any_time(bench: peers.Bench, state: str) -> None:
    loader, port = bench.listening("load", stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    if state != "waiting":
        sock = peers.connect(port)
        sock.sendall(b"x")
        assert loader.process.stdout.read1(1) == b"x"
    loader.process.stdout.close()
    if state == "moving":
        with contextlib.suppress(ConnectionError):  # it may hear of the reader sooner
            sock.sendall(b"y" * 1000)
    assert loader.wait() == 0
    assert loader.stderr == f"listening on tcp://127.0.0.1:{port}\n"
    if state != "waiting":
        sock.close()


@pytest.mark.parametrize("state", ["moving", "idle", "handshaking", "connecting", "retrying"])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_the_reader_may_leave_in_every_state_and_by_every_path(
    bench: peers.Bench, certificates: Certificates, state: str, kind: str
) -> None:
    ours, theirs = os.pipe() if kind == "pipe" else (sock.detach() for sock in socket.socketpair())
    tls = ["--tls", "--certfile", certificates.server] if state != "idle" else ["--path", "block"]
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, theirs)
        if state == "connecting":
            port = stack.enter_context(peers.full_backlog())
            loader = bench.ringmain("load", "-c", f"127.0.0.1:{port}", "--connect-timeout", "30s", stdout=theirs)
            peers.eventually(lambda: peers.is_connecting(port), "a connect under way")
        elif state == "retrying":
            url = f"127.0.0.1:{peers.free_port()}"
            loader = bench.ringmain("load", "-c", "-v", "--retry", "forever", url, stdout=theirs)
            loader.says("trying again")
        else:
            loader, port = bench.listening("load", "-v", *tls, "--handshake-timeout", "30s", stdout=theirs)
            if state == "moving":
                sock = stack.enter_context(peers.connect_tls(port, certificates.ca))
                sock.sendall(b"x")
            else:
                sock = stack.enter_context(peers.connect(port))
            if state != "handshaking":
                loader.says("connected")
        os.close(ours)
        if state == "moving":
            with contextlib.suppress(OSError):  # when it has noticed before
                sock.sendall(b"y" * 1000)
        assert loader.wait() == 0, loader.stderr
        assert "ringmain: load from" not in loader.stderr


USAGE = {
    "no endpoint": (["load"], "Missing argument"),
    "endpoint": (["load", "non sense"], "write tcp://HOST:PORT"),
    "port": (["save", "tcp://127.0.0.1:99999"], "port 99999"),
    "scheme": (["load", "udp://127.0.0.1:1"], "unknown scheme 'udp'"),
    "option": (["load", "--nonsense", "127.0.0.1:0"], "ringmain load --help"),
    "verb": (["lode", "127.0.0.1:0"], "ringmain --help"),
    "both": (["load", "-c", "-o", "127.0.0.1:0"], "--connect with --listen-once"),
    "tls without certificate": (["load", "tcps://127.0.0.1:0"], "--certfile, a PEM file, or --self-signed"),
    "duration": (["load", "--idle-timeout", "soon", "127.0.0.1:0"], "write 500ms, 5s, 2m or off"),
    "network": (["load", "--allow", "everyone", "127.0.0.1:0"], "192.0.2.0/24"),
    "ciphers": (["load", "--tls", "--self-signed", "--ciphers", "NONE-SUCH", "127.0.0.1:0"], "openssl ciphers"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors_name_the_thing_and_the_remedy(bench: peers.Bench, case: str) -> None:
    arguments, words = USAGE[case]
    fails(bench.ringmain(*arguments), 2, words)


def test_names_refusals_and_addresses_that_fail(bench: peers.Bench) -> None:
    fails(bench.ringmain("save", "tcp://name.invalid:1"), 6, "resolve name.invalid:1: ", "; check the host")
    fails(
        bench.ringmain("save", "-4", "tcp://[::1]:1"),
        6,
        "resolve [::1]:1: address family for hostname not supported; give an address of the f",
    )
    fails(
        bench.ringmain("load", "127.0.0.1:80x"),
        6,
        "resolve 127.0.0.1:80x: no service is called '80x'; give the number of a p",
    )
    port = peers.free_port()
    fails(bench.ringmain("save", f"tcp://127.0.0.1:{port}"), 7, f"127.0.0.1:{port}", "connection refused")
    fails(bench.ringmain("load", "-c", f"tcp://127.0.0.1:{port}"), 7, "connection refused")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(bench.ringmain("load", f"127.0.0.1:{port}"), 45, "address already in use")
    fails(bench.ringmain("load", "192.0.2.77:0"), 45, "ringmain nics")


def test_connecting_times_out(bench: peers.Bench) -> None:
    with peers.full_backlog() as port:
        url = f"tcp://127.0.0.1:{port}"
        fails(bench.ringmain("save", "--connect-timeout", "300ms", url), 28, "no answer within 0.3 s")


def test_handshakes_idle_loads_and_stalled_saves_time_out(bench: peers.Bench, certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"tcps://127.0.0.1:{silent.getsockname()[1]}"
        fails(bench.ringmain("save", "--handshake-timeout", "300ms", url), 28, "TLS handshake", "not done within 0.3 s")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        fails(bench.ringmain("load", "-c", "--idle-timeout", "300ms", url), 28, "nothing came for 0.3 s")
        with Path("/dev/zero").open("rb") as endless:
            saver = bench.ringmain("save", "--idle-timeout", "300ms", url, stdin=endless)
            fails(saver, 28, "it took nothing for 0.3 s")


def test_what_is_not_trusted_is_not_talked_to(bench: peers.Bench, certificates: Certificates) -> None:
    _, port = bench.listening("load", "--tls", "--certfile", certificates.server)
    trust = ["--cafile", certificates.ca]
    url = f"tcps://127.0.0.1:{port}"
    fails(bench.ringmain("save", url), 60, "unable to get local issuer certificate", "--cafile")
    fails(bench.ringmain("save", "--cafile", certificates.stranger_ca, url), 60, "certificate")
    fails(bench.ringmain("save", *trust, "--server-name", "other.example", url), 60, "other.example", "--server-name")
    saver = bench.ringmain("save", *trust, url)
    assert saver.wait() == 0
    assert saver.stderr == ""
    saver = bench.ringmain("save", "--insecure", url)
    assert saver.wait() == 0
    assert "--insecure: the peer's certificate is not verified" in saver.stderr


def test_a_peer_that_does_not_speak_tls_fails_the_handshake(bench: peers.Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        saver = bench.ringmain("save", f"tcps://127.0.0.1:{listener.getsockname()[1]}")
        sock, _ = listener.accept()
        sock.sendall(b"220 mail.example.org ESMTP\r\n")
        fails(saver, 35, "TLS handshake", "wrong version number; does the peer speak TLS?")
        sock.close()
        saver = bench.ringmain("save", f"tcps://127.0.0.1:{listener.getsockname()[1]}")
        sock, _ = listener.accept()
        sock.close()
        fails(saver, 35, "TLS handshake")


def test_client_certificates_are_required_and_verified(bench: peers.Bench, certificates: Certificates) -> None:
    ours = ["--tls", "--certfile", certificates.server, "--client-ca", certificates.ca]
    loader, port = bench.listening("load", *ours, stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    url, trust = f"tcps://127.0.0.1:{port}", ["--cafile", certificates.ca]
    wanted = "alert certificate required; the peer wants a certificate of ours: give one with --certfile"
    for certificate, reason in ((None, wanted), (certificates.stranger, "unknown ca; the peer does not trust our")):
        options = ["--certfile", certificate] if certificate else []
        fails(bench.ringmain("save", *trust, *options, url, stdin=subprocess.PIPE), 35, reason)
    with bench.file(b"welcome").open("rb") as source:
        assert bench.ringmain("save", *trust, "--certfile", certificates.client, url, stdin=source).wait() == 0
    assert loader.process.stdout.read(7) == b"welcome"
    assert loader.stderr.count("ringmain: ") == 2


def test_our_own_files_are_checked_before_a_socket_is_opened(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    missing, garbage = tmp_path / "missing.pem", bench.file(b"garbage", "garbage.pem")
    garbage.chmod(0o600)
    closed = f"tcps://127.0.0.1:{peers.free_port()}"  # were a socket opened first, this would be code 7
    for certificate in (missing, garbage, tmp_path, certificates.ca):
        fails(bench.ringmain("load", "--certfile", certificate, "tcps://127.0.0.1:0"), 58, str(certificate))
        fails(bench.ringmain("save", "--certfile", certificate, closed), 58, str(certificate))
    pair = ["--certfile", certificates.server, "--keyfile", certificates.client]
    fails(bench.ringmain("load", *pair, "tcps://127.0.0.1:0"), 58, "does not belong to the key")
    for authority in (missing, garbage):
        fails(bench.ringmain("save", "--cafile", authority, closed), 77, str(authority))
        options = ["--certfile", certificates.server, "--client-ca", authority]
        fails(bench.ringmain("load", *options, "tcps://127.0.0.1:0"), 77, str(authority))


def test_an_encrypted_key_is_refused_without_asking(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    peers.need("openssl")
    key = tmp_path / "encrypted.pem"
    encrypt = ["openssl", "pkey", "-in", certificates.server, "-aes256", "-passout", "pass:secret", "-out", key]
    subprocess.run(encrypt, check=True)
    loader = bench.ringmain("load", "--certfile", certificates.server, "--keyfile", key, "tcps://127.0.0.1:0")
    fails(loader, 58, str(key), "encrypted")


def test_output_that_fails(bench: peers.Bench, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "file"):
        fails(bench.ringmain("load", "-O", path, "127.0.0.1:0"), 23, str(path))
    loader, port = bench.listening("load", "-O", "/dev/full")
    with peers.connect(port) as sock:
        sock.sendall(b"x")
        fails(loader, 23, "/dev/full", "no space left on device")


@pytest.mark.parametrize("path", ["auto", "block"])
def test_output_that_fails_midway(bench: peers.Bench, tmp_path: Path, path: str) -> None:
    loader, port = bench.listening("load", "--path", path, "-O", tmp_path / "got")
    limits = resource.prlimit(loader.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(loader.process.pid, resource.RLIMIT_FSIZE, (100_000, limits[1]))
    with peers.connect(port) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(b"x" * 200_000)
        fails(loader, 23, str(tmp_path / "got"), "file too large")
    assert (tmp_path / "got").read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("path", ["auto", "block"])
def test_input_that_fails_midway(bench: peers.Bench, path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        saver = bench.ringmain("save", "--path", path, "-I", "/proc/self/mem", url)  # nothing is mapped at address 0
        sock, _ = listener.accept()
        with sock:
            fails(saver, 26, "/proc/self/mem", "input/output error")
            with pytest.raises(ConnectionResetError):  # the peer cannot take it for a regular end
                sock.recv(1)


def test_files_without_permission(bench: peers.Bench, tmp_path: Path) -> None:
    closed = bench.file(b"secret")
    closed.chmod(0)
    command = list(peers.RINGMAIN)
    if os.geteuid() == 0:  # who may open everything, unless that right is given up
        command = [peers.need("setpriv"), "--bounding-set", "-dac_override,-dac_read_search", *command]
    load, save = ["load", "-O", str(closed), "127.0.0.1:0"], ["save", "-I", str(closed), "127.0.0.1:1"]
    fails(bench.start(command + load), 23, str(closed), "permission denied")
    fails(bench.start(command + save), 26, str(closed), "permission denied")
    save = ["save", "--tls", "--certfile", str(closed), "127.0.0.1:1"]
    fails(bench.start(command + save), 58, str(closed), "permission denied")
    fails(bench.start([*command, "save", "--cafile", str(closed), "tcps://127.0.0.1:1"]), 77, str(closed), "denied")


def test_input_that_fails(bench: peers.Bench, tmp_path: Path) -> None:
    closed = f"127.0.0.1:{peers.free_port()}"
    for path in (tmp_path, tmp_path / "missing"):
        fails(bench.ringmain("save", "-I", path, closed), 26, str(path))
    loader = bench.start(["sh", "-c", 'exec "$@" >&-', "sh", *peers.RINGMAIN, "load", "127.0.0.1:0"])
    fails(loader, 23, "standard output", "closed")

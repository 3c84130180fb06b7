"""TLS 1.3 servers that reject our certificate tell of it only after our last byte may have gone out."""

import contextlib
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from streams import server_at

import ringmain
from ringmain import errors

# Who rejects: a contextmanager that listens, requires certificates, and yields its port.
Server = Callable[[peers.Bench, Certificates], Any]


@contextlib.contextmanager
def python_server(_: peers.Bench, certificates: Certificates) -> Iterator[int]:
    """Reject, a little late, as a machine that has other things to do does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.load_verify_locations(certificates.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with server_at() as listener:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                sock.settimeout(peers.TIMEOUT)
                with sock, contextlib.suppress(OSError):
                    peers.eventually(lambda sock=sock: peers.unread(sock) > 0)
                    sock.do_handshake()

        listener.settimeout(None)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(peers.TIMEOUT)


@contextlib.contextmanager
def openssl_server(bench: peers.Bench, certificates: Certificates) -> Iterator[int]:
    port = peers.free_port()
    command = [peers.need("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-Verify", "1", "-tls1_3", "-quiet"]
    command += ["-cert", str(certificates.server), "-CAfile", str(certificates.ca), "-verify_return_error"]
    bench.start(command, stdin=subprocess.PIPE)
    peers.wait_for_port(port)
    yield port


@contextlib.contextmanager
def gnutls_server(bench: peers.Bench, certificates: Certificates) -> Iterator[int]:
    port = peers.free_port()
    command = [peers.need("gnutls-serv"), "--quiet", "--echo", "--require-client-cert", "--verify-client-cert"]
    command += ["--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.3", "-p", str(port)]
    command += ["--x509certfile", str(certificates.server), "--x509keyfile", str(certificates.server)]
    bench.start([*command, "--x509cafile", str(certificates.ca)], stdin=subprocess.PIPE)
    peers.wait_for_port(port)
    yield port


@contextlib.contextmanager
def our_server(bench: peers.Bench, certificates: Certificates) -> Iterator[int]:
    tls = ["--tls", "--certfile", certificates.server, "--client-ca", certificates.ca]
    yield bench.listening("load", *tls)[1]


SERVERS: dict[str, Server] = {
    "python": python_server,
    "openssl": openssl_server,
    "gnutls": gnutls_server,
    "ringmain": our_server,
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("size", [0, 6, 3_000_000])
def test_a_server_that_rejects_our_certificate_is_heard_of_every_time(
    bench: peers.Bench, certificates: Certificates, server: str, size: int
) -> None:
    with SERVERS[server](bench, certificates) as port:
        url, data = f"tcps://127.0.0.1:{port}", b"x" * size
        strangers: list[dict[str, Any]] = [{}] if server == "gnutls" else [{}, {"certfile": str(certificates.stranger)}]
        for number in range(20):
            with (
                pytest.raises(errors.TlsError, match="alert") as caught,
                ringmain.save(url, cafile=str(certificates.ca), **strangers[number % len(strangers)]) as saver,
            ):
                saver.write(data)
            assert caught.value.exit_code == 35
            assert "certfile=" in caught.value.remedy


def test_a_rejection_with_a_reset_behind_it_is_heard_of_though_the_loop_has_not_told_of_either(
    bench: peers.Bench, certificates: Certificates
) -> None:
    with python_server(bench, certificates) as port:
        for _ in range(20):
            with (
                pytest.raises(errors.TlsError, match="alert"),
                ringmain.save(f"tcps://127.0.0.1:{port}", cafile=str(certificates.ca)) as saver,
            ):
                saver.write(b"unread")
                peers.eventually(lambda: peers.established(port) == 0, "the server's reset")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("verb", ["load", "save", "relay", "relay --one-way"])
def test_every_verb_that_connects_ends_with_the_code_of_a_rejection(
    bench: peers.Bench, certificates: Certificates, server: str, verb: str
) -> None:
    with SERVERS[server](bench, certificates) as port:
        url, ca = f"tcps://127.0.0.1:{port}", certificates.ca
        if verb == "load":
            program = bench.ringmain("load", "-c", "--cafile", ca, url)
        elif verb == "save":
            program = bench.ringmain("save", "--cafile", ca, "-I", bench.file(b"x" * 6), url)
        else:
            with server_at() as source:
                origin = f"127.0.0.1:{source.getsockname()[1]}"
                program = bench.ringmain(*verb.split(), "-c", "--destination-cafile", ca, origin, url)
                with source.accept()[0] as sock, contextlib.suppress(ConnectionError):
                    sock.sendall(b"x" * 6)
                    peers.send_no_more(sock)
                    program.wait()
        assert program.wait() == 35, program.stderr
        assert "alert" in program.stderr
        if "alert certificate required" in program.stderr:
            assert f"give one with --{'destination-' * verb.startswith('relay')}certfile\n" in program.stderr


def served(
    certificates: Certificates, serve: Callable[[ssl.SSLSocket], None], *, tickets: int = 0, ask: bool = True
) -> contextlib.AbstractContextManager[int]:
    """Listen, ask for certificates but take whoever comes, and serve one client; yield the port."""

    @contextlib.contextmanager
    def it() -> Iterator[int]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server)
        context.load_verify_locations(certificates.ca)
        context.verify_mode = ssl.CERT_OPTIONAL if ask else ssl.CERT_NONE
        context.num_tickets = tickets

        def run() -> None:
            sock, _ = listener.accept()
            with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
                tls.settimeout(peers.TIMEOUT)
                serve(tls)

        with server_at() as listener:
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            yield listener.getsockname()[1]
            thread.join(peers.TIMEOUT)

    return it()


@pytest.mark.parametrize("answer", ["ticket", "ticket, reset", "not asked", "close_notify", "fin", "bytes", "reset"])
def test_any_answer_is_a_verdict_and_the_peer_may_stay(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Were any of them waited for until the time is over, this would fail: it never is."""
    monkeypatch.setattr("ringmain.net.heard._VERDICT", 1e6)
    left = threading.Event()

    def serve(sock: ssl.SSLSocket) -> None:
        assert peers.read_all(sock) == b"hello!"
        if answer == "close_notify":
            sock.setblocking(False)
            with contextlib.suppress(ssl.SSLWantReadError):
                sock.unwrap()
        elif answer == "fin":
            socket.socket.shutdown(sock, socket.SHUT_WR)
        elif answer == "bytes":
            sock.sendall(b"thanks")
        if answer.endswith("reset"):
            peers.close_with_reset(sock)
        else:
            left.wait(peers.TIMEOUT)

    tickets = 2 if "ticket" in answer else 0
    with served(certificates, serve, tickets=tickets, ask=answer != "not asked") as port:
        url = f"tcps://127.0.0.1:{port}"
        rejected = pytest.raises(errors.SendError) if answer == "reset" else contextlib.nullcontext()
        with rejected, ringmain.save(url, cafile=str(certificates.ca), idle_timeout=20) as saver:
            saver.write(b"hello!")
        left.set()


def test_a_peer_that_says_nothing_is_not_waited_for_for_ever_nor_counts_as_idle(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringmain.net.heard._VERDICT", 1.0)
    left = threading.Event()

    def serve(sock: ssl.SSLSocket) -> None:
        assert peers.read_all(sock) == b"hello!"
        left.wait(peers.TIMEOUT)

    with served(certificates, serve) as port:
        url = f"tcps://127.0.0.1:{port}"
        with ringmain.save(url, cafile=str(certificates.ca), idle_timeout=0.2) as saver:
            saver.write(b"hello!")
        left.set()


def test_a_client_that_resets_after_it_has_read_counts(bench: peers.Bench, certificates: Certificates) -> None:
    for _ in range(10):
        options = ["--tls", "--certfile", certificates.server, "-I", "/dev/zero"]
        saver, port = bench.listening("save", "-o", *options)
        sock = peers.connect_tls(port, certificates.ca)
        assert sock.recv(1)
        peers.close_with_reset(sock)
        assert saver.wait() == 55, saver.stderr
        assert "save to 127.0.0.1:" in saver.stderr


def test_a_tls_client_that_is_lost_leaves_the_next_one_just_what_it_cannot_have(
    certificates: Certificates,
) -> None:
    """The record that the first client had in part goes whole to the second, those it had whole do not."""
    data = peers.payload(6_000_000)
    first: list[bytes] = []
    second: list[bytes] = []
    with ringmain.save("tcps://127.0.0.1:0", listen=True, certfile=str(certificates.server)) as saver:
        port, gone, taken = saver.port, threading.Event(), []
        saver.on_end = lambda outcome: taken.append(outcome.size)  # type: ignore[attr-defined]

        def visit() -> None:
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            raw.connect(("127.0.0.1", port))
            context = ssl.create_default_context(cafile=str(certificates.ca))
            with context.wrap_socket(raw, server_hostname="localhost") as sock:
                for _ in range(40):
                    first.append(sock.recv(1 << 14))
                peers.close_with_reset(sock)
            gone.set()
            with peers.connect_tls(port, certificates.ca) as sock:
                second.append(peers.read_all(sock))

        thread = threading.Thread(target=visit, daemon=True)
        thread.start()
        saver.write(data)
    thread.join(peers.TIMEOUT)
    had, rest = b"".join(first), second[0]
    assert data.startswith(had)
    assert data.endswith(rest)
    assert len(had) <= taken[0] == len(data) - len(rest)


def test_a_client_that_asked_for_small_records_counts_from_its_first_one(
    bench: peers.Bench, certificates: Certificates
) -> None:
    """It has got less than one of our own records when it is lost; the next client gets just the rest."""
    data = peers.payload(3_000_000)
    with ringmain.save("tcps://127.0.0.1:0", listen=True, certfile=str(certificates.server)) as saver:
        taken: list[int] = []
        saver.on_end = lambda outcome: taken.append(outcome.size)  # type: ignore[attr-defined]
        port, first, second = saver.port, [], []
        lost = threading.Event()

        def visit() -> None:
            command = [peers.need("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-maxfraglen", "512"]
            command += ["-quiet", "-CAfile", str(certificates.ca)]
            client = bench.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert client.process.stdout is not None
            first.append(client.process.stdout.read(700))
            client.process.kill()
            client.process.wait()
            lost.set()
            with peers.connect_tls(port, certificates.ca) as sock:
                second.append(peers.read_all(sock))

        thread = threading.Thread(target=visit, daemon=True)
        thread.start()
        saver.write(data[: 1 << 20])  # which the buffers of a kernel may take whole
        assert lost.wait(peers.TIMEOUT)
        saver.write(data[1 << 20 :])
    thread.join(peers.TIMEOUT)
    assert data.startswith(first[0])
    assert taken[0] % 512 == 0
    assert peers.sha256(second[0]) == peers.sha256(data[taken[0] :])


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_tls_peer_that_leaves_properly_in_mid_stream_is_no_matter_of_certificates(
    certificates: Certificates, version: str
) -> None:
    def serve(sock: ssl.SSLSocket) -> None:
        assert sock.recv(1)
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            sock.unwrap()
        sock.close()

    for _ in range(10):
        with served(certificates, serve) as port, pytest.raises(errors.SendError) as caught:
            url = f"tcps://127.0.0.1:{port}"
            options: Any = {"min_tls_version": version, "cafile": str(certificates.ca)}
            with ringmain.save(url, **options) as saver:
                for _ in range(10_000):
                    saver.write(b"x" * 100_000)
        assert "the peer closed the connection" in str(caught.value)


def test_sigterm_ends_a_stuck_tls_save(bench: peers.Bench, certificates: Certificates) -> None:
    stuck = threading.Event()

    def serve(_: ssl.SSLSocket) -> None:
        stuck.wait(peers.TIMEOUT)

    with served(certificates, serve) as port:
        url = f"tcps://127.0.0.1:{port}"
        saver = bench.ringmain("save", "-v", "--cafile", certificates.ca, "-I", "/dev/zero", url)
        saver.says("connected")
        time.sleep(0.5)
        saver.signal(signal.SIGTERM)
        assert saver.wait() == 143, saver.stderr
        stuck.set()
    assert "Traceback" not in saver.stderr
    assert "standard output" not in saver.stderr


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("path", ["auto", "block"])
@pytest.mark.parametrize("source", ["file", "pipe"])
def test_a_file_that_a_signal_cuts_short_never_looks_whole_and_a_stream_ends_well(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, tls: bool, path: str, source: str
) -> None:
    data = peers.payload(1 << 20) * 64
    options = ["--tls", "--certfile", certificates.server] if tls else []
    if source == "file":
        saver, port = bench.listening("save", "-o", *options, "--path", path, "-I", bench.file(data))
    else:
        saver, port = bench.listening("save", "-o", *options, "--path", path, stdin=subprocess.PIPE)
    with peers.connect_tls(port, certificates.ca) if tls else peers.connect(port) as sock:
        if source == "pipe":
            assert saver.process.stdin is not None
            saver.process.stdin.write(data[:1_000_000])
            saver.process.stdin.flush()
        got = bytearray(sock.recv(1000))
        saver.signal(signal.SIGTERM)
        ended = False
        with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
            while chunk := sock.recv(1 << 20):
                got += chunk
                time.sleep(0.001)
            ended = True
    assert saver.wait() == 143, saver.stderr
    assert ended == (source == "pipe")
    assert data.startswith(bytes(got))
    assert len(got) < len(data)

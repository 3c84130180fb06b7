"""TLS beyond moving bytes: alerts, names, authorities, half-close, and slow or rude peers."""

import contextlib
import os
import socket
import ssl
import subprocess
from pathlib import Path

import peers
import pytest
from conftest import Certificates
from handshakes import ByHand, accept, server_context


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_peer_we_do_not_trust_is_told_by_an_alert(
    bench: peers.Bench, certificates: Certificates, listener: socket.socket, version: str
) -> None:
    context = server_context(certificates)
    context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    saver = bench.ringmain(
        "save", "--cafile", certificates.stranger_ca, f"tcps://127.0.0.1:{listener.getsockname()[1]}"
    )
    with pytest.raises(ssl.SSLError, match="alert unknown ca"), accept(listener, context) as sock:
        sock.recv(1)
    assert saver.wait() == 60


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_we_do_not_trust_is_told_by_an_alert(
    bench: peers.Bench, certificates: Certificates, version: str
) -> None:
    options = ["--tls", "--certfile", certificates.server, "--client-ca", certificates.ca]
    loader, port = bench.listening("load", *options)
    with pytest.raises(ssl.SSLError, match="alert"), peers.connect_tls(port, certificates.ca, version=version) as sock:
        sock.recv(1)
    loader.says("peer did not return a certificate; the client has to send one; or leave out --client-ca")
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.load_cert_chain(certificates.stranger)
    context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    with (
        pytest.raises(ssl.SSLError, match="alert unknown ca"),
        context.wrap_socket(peers.connect(port), server_hostname="localhost") as sock,
    ):
        sock.recv(1)
    loader.says("; give its CA with --client-ca")


def test_clients_that_do_not_trust_us_are_warned_of_by_name(bench: peers.Bench, certificates: Certificates) -> None:
    loader, port = bench.listening("load", "--tls", "--certfile", certificates.server)
    with pytest.raises(ssl.SSLCertVerificationError):
        peers.connect_tls(port, certificates.stranger_ca)
    loader.says("unknown ca")
    assert loader.stderr.splitlines()[-1].startswith("ringmain: TLS handshake with 127.0.0.1:")


def test_the_server_is_asked_for_by_the_name_that_is_verified(
    bench: peers.Bench, certificates: Certificates, listener: socket.socket
) -> None:
    asked: list[str | None] = []
    context = server_context(certificates)
    context.sni_callback = lambda *arguments: asked.append(arguments[1])
    port = listener.getsockname()[1]
    trust = ["--cafile", certificates.ca]
    for options in ([f"tcps://localhost:{port}", "-4"], ["--server-name", "localhost", f"tcps://127.0.0.1:{port}"]):
        saver = bench.ringmain("save", *trust, *options)
        with accept(listener, context) as sock:
            assert sock.recv(1) == b""
        assert saver.wait() == 0, saver.stderr
    saver = bench.ringmain("save", *trust, f"tcps://127.0.0.1:{port}")  # an address is no name
    with accept(listener, context):
        assert saver.wait() == 0, saver.stderr
    assert asked == ["localhost", "localhost", None]


def test_without_cafile_the_systems_authorities_are_trusted(bench: peers.Bench, certificates: Certificates) -> None:
    loader, port = bench.listening("load", "-o", "--tls", "--certfile", certificates.server)
    environment = os.environ | {"SSL_CERT_FILE": str(certificates.ca)}
    saver = bench.ringmain("save", f"tcps://127.0.0.1:{port}", env=environment)
    assert (saver.wait(), loader.wait()) == (0, 0), saver.stderr


def test_versions_too_old_for_us_end_the_handshake(
    bench: peers.Bench, certificates: Certificates, listener: socket.socket
) -> None:
    context = server_context(certificates)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    url = f"tcps://127.0.0.1:{listener.getsockname()[1]}"
    saver = bench.ringmain("save", "--cafile", certificates.ca, "--min-tls-version", "1.3", url)
    with pytest.raises(ssl.SSLError):
        accept(listener, context)
    assert saver.wait() == 35
    assert "protocol version" in saver.stderr


@pytest.mark.parametrize("late", [False, True], ids=["before ours", "after ours"])
def test_a_client_that_said_goodbye_still_gets_everything(
    bench: peers.Bench, certificates: Certificates, late: bool
) -> None:
    data = peers.payload(400_000 if late else 2_000_000)  # the first fits into the kernel's buffers
    options = ["--tls", "--certfile", certificates.server, "-I", bench.file(data)]
    saver, port = bench.listening("save", "-o", *options)
    got = bytearray()
    with peers.connect(port) as sock:
        client = ByHand(sock, certificates.ca)
        client.do(client.tls.do_handshake)
        if late:
            peers.eventually(lambda: "FIN_WAIT1" in peers.states(port), "the end of what save sends")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()  # close_notify: we send no more, and go on reading
        client.flush()
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while chunk := client.do(lambda: client.tls.read(1 << 16)):
                got += chunk
    assert peers.sha256(bytes(got)) == peers.sha256(data)
    assert saver.wait() == 0, saver.stderr


def test_a_handshake_and_records_may_come_byte_by_byte(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    loader, port = bench.listening("load", "-o", "--tls", "--certfile", certificates.server, "-O", tmp_path / "got")
    with peers.connect(port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = ByHand(sock, certificates.ca)
        client.do(client.tls.do_handshake, 1)
        client.do(lambda: client.tls.write(b"one by one"), 1)
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.flush(1)
        assert loader.wait() == 0, loader.stderr
    assert (tmp_path / "got").read_bytes() == b"one by one"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_sender_that_just_closes_loses_no_byte(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, version: str
) -> None:
    data = peers.payload(1_000_003)
    loader, port = bench.listening("load", "-o", "--tls", "--certfile", certificates.server, "-O", tmp_path / "got")
    with peers.connect_tls(port, certificates.ca, version=version) as sock:
        sock.sendall(data)  # and reads nothing, no session ticket either
    assert loader.wait() == 18, loader.stderr
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_save_loses_no_tail_at_a_server_that_sends_tickets_and_reads_late(
    bench: peers.Bench, certificates: Certificates, listener: socket.socket, version: str
) -> None:
    data = peers.payload(3_000_001)
    context = server_context(certificates)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    context.num_tickets = 10
    url = f"tcps://127.0.0.1:{listener.getsockname()[1]}"
    saver = bench.ringmain("save", "--cafile", certificates.ca, "-I", bench.file(data), url)
    with accept(listener, context) as sock:
        peers.eventually(lambda: peers.unread(sock) > 10_000, "bytes that wait")
        assert saver.process.poll() is None  # it leaves only when all of it has arrived
        assert peers.sha256(peers.read_all(sock)) == peers.sha256(data)
        assert saver.wait() == 0, saver.stderr  # while this side is still open


def test_a_loader_that_connects_shows_its_certificate(
    bench: peers.Bench, certificates: Certificates, listener: socket.socket
) -> None:
    context = server_context(certificates)
    context.load_verify_locations(certificates.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    trust = ["--cafile", certificates.ca, "--certfile", certificates.client]
    url = f"tcps://127.0.0.1:{listener.getsockname()[1]}"
    loader = bench.ringmain("load", "-c", *trust, url, stdout=subprocess.PIPE)
    with accept(listener, context) as sock:
        assert ("email", "client@example.org") in sock.getpeercert()["subjectAltName"]
        sock.sendall(b"for members")
        sock.unwrap()
    assert loader.process.stdout.read() == b"for members"
    assert loader.wait() == 0, loader.stderr


@pytest.mark.parametrize("verb", ["load", "save"])
def test_keys_may_be_changed_in_the_middle_of_a_stream(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, verb: str
) -> None:
    got = tmp_path / "got"
    options = ["-o", "-v", "--tls", "--certfile", certificates.server, *(["-O", got] if verb == "load" else [])]
    program, port = bench.listening(verb, *options, stdin=subprocess.PIPE)
    command = [peers.need("openssl"), "s_client", "-quiet", "-no_ign_eof", "-connect", f"127.0.0.1:{port}"]
    with (tmp_path / "received").open("wb") as received:
        client = bench.start(command, stdin=subprocess.PIPE, stdout=received)
    if verb == "save":
        got = tmp_path / "received"
    program.says("connected")
    sender = client if verb == "load" else program
    sent = b""
    for line in (b"one\n", b"two\n", b"three\n"):
        client.process.stdin.write(b"K\n")  # s_client's command for a key update that wants one in return
        client.process.stdin.flush()
        peers.eventually(lambda: peers.unread(client.process.stdin) == 0, "the command's reading")
        sender.process.stdin.write(line)
        sender.process.stdin.flush()
        sent += line
        peers.eventually(lambda sent=sent: got.read_bytes() == sent, "the line")
    sender.process.stdin.close()
    assert program.wait() == 0, program.stderr


def test_a_plain_sender_at_a_tls_listener_is_not_told_that_all_arrived(
    bench: peers.Bench, certificates: Certificates
) -> None:
    _, port = bench.listening("load", "--tls", "--certfile", certificates.server)
    path = bench.file(bytes(50 << 20))
    saver = bench.ringmain("save", "-I", path, f"tcp://127.0.0.1:{port}")
    assert saver.wait() == 55, saver.stderr

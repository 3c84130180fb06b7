"""What a failed TLS handshake is told to be mended by, over real certificates and real handshakes."""

import contextlib
import datetime
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
import streams
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import ringmain
from ringmain import errors

Pem = Callable[..., Path]
DAY = datetime.timedelta(days=1)


@pytest.fixture
def self_signed(tmp_path: Path) -> Pem:
    """Make a certificate that signs itself; return the file of it and its key."""

    def make(begins: int = -1, ends: int = 1, usage: Any = None) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now + begins * DAY).not_valid_after(now + ends * DAY)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = tmp_path / "self_signed.pem"
        path.write_bytes(pem + secret)
        path.chmod(0o600)
        return path

    return make


def written(pem: Any, path: Path) -> Path:
    pem.write_to_path(str(path))
    path.chmod(0o600)
    return path


def handshake_with(certfile: Path, setting: Callable[[ssl.SSLContext], None] | None = None, **options: Any) -> str:
    """Save to a server that has this certificate; return what goes wrong, or an empty text."""

    def serve(listener: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certfile)
        if setting is not None:
            setting(context)
        sock, _ = listener.accept()
        with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls_sock:
            tls_sock.recv(1)

    with streams.server_at() as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            options.setdefault("server_name", "localhost")
            with ringmain.save(f"tcps://127.0.0.1:{listener.getsockname()[1]}", **options):
                return ""
        except errors.TlsError as error:
            return str(error)
        finally:
            thread.join(peers.TIMEOUT)


def test_an_expired_certificate_is_not_mended_by_an_option(self_signed: Pem) -> None:
    path = self_signed(-2, -1)
    said = handshake_with(path, cafile=str(path))
    assert "certificate has expired; the peer needs a new one" in said
    assert "cafile=" not in said


def test_one_that_is_not_valid_yet_is_a_matter_of_clocks(self_signed: Pem) -> None:
    path = self_signed(1, 2)
    said = handshake_with(path, cafile=str(path))
    assert "certificate is not yet valid; it is not valid yet: set the clocks" in said


def test_one_for_clients_does_not_serve(self_signed: Pem) -> None:
    path = self_signed(usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    said = handshake_with(path, cafile=str(path))
    assert "; it was not issued for this use" in said


def test_one_that_signs_itself_is_trusted_as_a_file(self_signed: Pem, tmp_path: Path) -> None:
    path = self_signed()
    ca = written(trustme.CA().cert_pem, tmp_path / "ca.pem")
    said = handshake_with(path, cafile=str(ca))
    assert "self-signed certificate; trust this very certificate by giving it with cafile=" in said
    assert handshake_with(path, cafile=str(path)) == ""


def test_a_wrong_name_is_mended_by_a_name_and_an_unknown_authority_by_its_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    path = written(authority.issue_cert("other.example").private_key_and_cert_chain_pem, tmp_path / "server.pem")
    ca = str(written(authority.cert_pem, tmp_path / "ca.pem"))
    stranger = str(written(trustme.CA().cert_pem, tmp_path / "stranger.pem"))
    said = handshake_with(path, cafile=ca)
    assert "not valid for 'localhost'; connect by a name that is in it, or give one with server_name=" in said
    said = handshake_with(path, cafile=ca, server_name="127.0.0.1")
    assert "or give one with server_name=" in said
    assert handshake_with(path, cafile=ca, server_name="other.example") == ""
    said = handshake_with(path, cafile=stranger)
    assert "; give its CA with cafile=, or have" in said


@pytest.mark.parametrize("anchor", ["root", "intermediate", "leaf"])
@pytest.mark.parametrize("sends", ["leaf", "chain"])
def test_any_certificate_of_the_chain_may_be_the_trusted_one(tmp_path: Path, anchor: str, sends: str) -> None:
    root = trustme.CA()
    middle = root.create_child_ca()
    leaf = middle.issue_cert("localhost")
    path = tmp_path / "server.pem"
    chain = leaf.cert_chain_pems if sends == "chain" else leaf.cert_chain_pems[:1]
    path.write_bytes(leaf.private_key_pem.bytes() + b"".join(pem.bytes() for pem in chain))
    anchors = {"root": root.cert_pem, "intermediate": middle.cert_pem, "leaf": leaf.cert_chain_pems[0]}
    ca = written(anchors[anchor], tmp_path / "ca.pem")
    said = handshake_with(path, cafile=str(ca))
    if anchor == "root" and sends == "leaf":
        assert "give its CA with cafile=, or have the peer send its intermediate certificates too" in said
    else:
        assert said == ""


def test_alerts_of_the_peer_are_mended_on_our_side(self_signed: Pem) -> None:
    path = self_signed()

    def only_old_suites(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")

    said = handshake_with(path, only_old_suites, cafile=str(path), min_tls_version="1.3")
    assert "; the peer and we have no TLS version in common: see min_tls_version=" in said
    said = handshake_with(path, only_old_suites, cafile=str(path), ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    assert "; the peer wants a certificate, or other suites: certfile=, ciphers=" in said


def client(
    port: int, ca: Path, certfile: Path | None = None, setting: Callable[[ssl.SSLContext], None] | None = None
) -> None:
    context = ssl.create_default_context(cafile=str(ca))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if certfile is not None:
        context.load_cert_chain(certfile)
    if setting is not None:
        setting(context)
    with (
        contextlib.suppress(OSError),
        context.wrap_socket(peers.connect(port), server_hostname="localhost") as sock,
    ):
        sock.recv(1)


def test_a_listener_tells_what_its_client_has_to_do(
    self_signed: Pem, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    ca = written(authority.cert_pem, tmp_path / "ca.pem")
    server = written(authority.issue_cert("localhost").private_key_and_cert_chain_pem, tmp_path / "server.pem")
    expired = self_signed(-2, -1)
    other = written(trustme.CA().cert_pem, tmp_path / "other.pem")
    options: Any = {"certfile": str(server), "client_ca": str(ca), "idle_timeout": peers.TIMEOUT}

    def knock(port: int) -> None:
        def told(count: int) -> None:  # before the next one knocks: handshakes are side by side
            peers.eventually(lambda: len(caplog.records) == count, "the warning")

        client(port, ca)
        told(1)
        client(port, ca, expired)
        told(2)
        client(port, other)
        told(3)
        client(port, ca, setting=lambda context: context.set_ciphers("DHE-RSA-AES128-SHA"))
        told(4)
        client(port, ca, server)

    with caplog.at_level(logging.WARNING, "ringmain"), ringmain.load("tcps://127.0.0.1:0", **options) as loader:
        thread = threading.Thread(target=knock, args=[loader.port])
        thread.start()
        next(loader.connections())
    thread.join()
    lines = [record.getMessage() for record in caplog.records]
    assert "the client has to send one; or leave out client_ca= to serve all" in lines[0]
    assert "client_ca=" in lines[1] or "expired" in lines[1]
    assert "the peer does not trust our certificate" in lines[2]
    assert "the peer knows none of our cipher suites: see ciphers= and tls13_ciphers=" in lines[3]
    assert len(lines) == 4


@pytest.mark.parametrize("listening", [True, False])
def test_suites_of_tls_1_3_are_chosen_or_refused_in_words(self_signed: Pem, listening: bool) -> None:
    path = str(self_signed())
    suite = "TLS_CHACHA20_POLY1305_SHA256"
    options: Any = {"tls13_ciphers": suite}
    with ringmain.load(
        "tcps://127.0.0.1:0", listen_once=True, certfile=path, **(options if listening else {})
    ) as loader:

        def send() -> None:
            url = f"tcps://localhost:{loader.port}"
            with ringmain.save(url, family=4, cafile=path, **({} if listening else options)) as saver:
                saver.write(b"x")

        thread = threading.Thread(target=send)
        thread.start()
        stream = next(loader.connections())
        assert (stream.tls, stream.cipher) == ("TLSv1.3", suite)
        assert b"".join(bytes(block) for block in stream) == b"x"
    thread.join()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"ciphers": "TLS_AES_128_GCM_SHA256"},
            "it has TLS 1.3 suites: TLS_AES_128_GCM_SHA256; give those with tls13_ciphers=",
        ),
        (
            {"tls13_ciphers": "TLS_AES_128_GCM_SHA256:TLS_NONSENSE"},
            "OpenSSL knows no TLS 1.3 suite 'TLS_NONSENSE'",
        ),
        ({"tls13_ciphers": ""}, "no TLS 1.3 suite ''"),
        ({"tls13_ciphers": "ECDHE-RSA-AES128-GCM-SHA256"}, "no TLS 1.3 suite 'ECDHE-RSA-AES128-GCM-SHA256'"),
    ],
)
def test_suites_that_cannot_be_are_named(options: Any, said: str) -> None:
    with pytest.raises(errors.UsageError, match=said), ringmain.save("tcps://127.0.0.1:1", **options):
        pass

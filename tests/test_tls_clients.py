"""Whose certificates are accepted: revocation lists, fingerprints, optional ones; what is told of them."""

import contextlib
import datetime
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """An authority that can also revoke."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._built(self.name, self.key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
        self.cafile = folder / f"{name}.pem"
        self.cafile.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _built(self, subject: x509.Name, key: Any, *extensions: Any) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str) -> Path:
        """Return the file of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Salt, Pepper"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
        hosts = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        certificate = self._built(x509.Name(attributes), key.public_key(), hosts)
        path = self.folder / f"{name}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        path.chmod(0o600)
        return path

    def revoking(self, *paths: Path, ends: int = 1) -> Path:
        """Return a file of the list of what is revoked."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(NOW - 2 * DAY).next_update(NOW + ends * DAY)
        for path in paths:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
            builder = builder.add_revoked_certificate(revoked)
        path = self.folder / "crl.pem"
        path.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def fingerprint(path: Path) -> str:
    """Return what openssl says of the first certificate in a file."""
    command = [peers.need("openssl"), "x509", "-in", str(path), "-noout", "-fingerprint", "-sha256"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip().partition("=")[2]


def sends(port: int, data: bytes, ca: Path, certfile: Path | None = None) -> bool:
    """Send as a client with or without a certificate; tell whether the server has taken it."""
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # from 3.13 on it wants more of a certificate than these have
    if certfile is not None:
        context.load_cert_chain(certfile)
    with contextlib.suppress(OSError), context.wrap_socket(peers.connect(port), server_hostname="localhost") as sock:
        sock.sendall(data)
        sock.unwrap()
        return True
    return False


@contextlib.contextmanager
def server(certfile: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Listen with a certificate; yield the port, and what each connection has brought."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile)
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    sock.settimeout(peers.TIMEOUT)
                    data = b""
                    with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
                        while chunk := tls.recv(1 << 16):
                            data += chunk
                        tls.unwrap()
                    got.append(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], got
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(peers.TIMEOUT)


def test_a_revoked_client_is_refused_and_the_others_are_served(
    bench: peers.Bench, authority: Authority, tmp_path: Path
) -> None:
    good, bad, ours = (authority.issue(name) for name in ("good", "bad", "server"))
    options = ["-O", tmp_path / "got", "--tls", "--certfile", ours, "--client-ca", authority.cafile]
    loader, port = bench.listening("load", *options, "--crl", authority.revoking(bad))
    sends(port, b"bad", authority.cafile, bad)
    loader.says("certificate revoked; its CA has revoked it: the peer needs a new one")
    assert sends(port, b"good", authority.cafile, good)
    peers.eventually(lambda: (tmp_path / "got").read_bytes() == b"good", "what the other sends")
    assert loader.stderr.count("TLS handshake with") == 1


def test_a_revoked_server_is_refused(bench: peers.Bench, authority: Authority) -> None:
    ours = authority.issue("server")
    with server(ours) as (port, got):
        options = ["--cafile", authority.cafile, "--server-name", "localhost"]
        path = bench.file(b"secret", "secret")
        for revoked, code in ([ours], 60), ([], 0):
            crl = authority.revoking(*revoked)
            saver = bench.ringmain("save", "-I", path, *options, "--crl", crl, f"tcps://127.0.0.1:{port}")
            assert saver.wait() == code, saver.stderr
        peers.eventually(lambda: len(got) == 2, "both connections")
    assert got == [b"", b"secret"]
    assert bench.programs[0].stderr.count("\n") == 1
    assert "certificate revoked" in bench.programs[0].stderr


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("expired", "crl has expired; get a new list for --crl, or set the clock of this machine"),
        ("other", "unable to get certificate crl; add the list of its CA to the file of --crl"),
    ],
)
def test_a_list_that_says_nothing_of_the_peer_refuses_it(
    bench: peers.Bench, authority: Authority, tmp_path: Path, what: str, words: str
) -> None:
    crl = Authority(tmp_path, "other").revoking() if what == "other" else authority.revoking(ends=-1)
    with server(authority.issue("server")) as (port, _):
        options = ["--cafile", authority.cafile, "--server-name", "localhost", "--crl", crl]
        saver = bench.ringmain("save", *options, f"tcps://127.0.0.1:{port}")
        assert saver.wait() == 60
    assert words.lower() in saver.stderr.lower()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("missing", "no such file or directory"),
        ("certificate", "no revocation list in it"),
        ("both", "it holds more than revocation lists"),
        ("damaged", "no list that OpenSSL can read"),
    ],
)
def test_a_file_without_lists_or_with_more_is_one_line(
    bench: peers.Bench, authority: Authority, tmp_path: Path, content: str, why: str
) -> None:
    lists = authority.revoking().read_bytes()
    path = tmp_path / "file"
    if content == "damaged":
        path.write_bytes(lists[:60] + b"\n-----END X509 CRL-----\n")
    elif content != "missing":
        path.write_bytes(authority.cafile.read_bytes() + lists * (content == "both"))
    saver = bench.ringmain("save", "--cafile", authority.cafile, "--crl", path, "tcps://127.0.0.1:1")
    assert saver.wait() == 77
    assert saver.stderr.startswith(f"ringmain: CRL file {path}: {why}; give a PEM file of revocation lists")
    assert saver.stderr.count("\n") == 1


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("form", [str, lambda pin: pin.replace(":", "").lower()], ids=["colons", "plain"])
def test_a_fingerprint_alone_is_enough_to_trust_a_server(
    bench: peers.Bench, certificates: Certificates, form: Callable[[str], str], version: str
) -> None:
    pin = form(fingerprint(certificates.stranger))
    suites = ["--min-tls-version", version]
    with server(certificates.stranger) as (port, got):
        path = bench.file(b"secret", "secret")
        for pins in ([pin], ["ab" * 32, pin]):
            options = [word for it in pins for word in ("--fingerprint", it)]
            saver = bench.ringmain("save", *suites, "-I", path, *options, f"tcps://127.0.0.1:{port}")
            assert saver.wait() == 0, saver.stderr
            assert saver.stderr == ""
        peers.eventually(lambda: len(got) == 2, "both connections")
    assert got == [b"secret"] * 2


@pytest.mark.parametrize("trust", ["nothing", "cafile", "insecure"])
def test_a_server_with_another_fingerprint_gets_no_byte(
    bench: peers.Bench, certificates: Certificates, trust: str
) -> None:
    options = {"nothing": [], "cafile": ["--cafile", certificates.ca], "insecure": ["--insecure"]}[trust]
    with server(certificates.server) as (port, got):
        path = bench.file(b"secret", "secret")
        pin = fingerprint(certificates.stranger)
        saver = bench.ringmain("save", "-I", path, "--fingerprint", pin, *options, f"tcps://127.0.0.1:{port}")
        assert saver.wait() == 60
        peers.eventually(lambda: got, "the connection")
    assert got == [b""]
    shown = fingerprint(certificates.server)
    assert f"its certificate has SHA-256 fingerprint {shown}; it is not in --fingerprint: add it" in saver.stderr
    assert saver.stderr.count("\n") == 1


def test_with_cafile_a_fingerprint_is_asked_for_besides(bench: peers.Bench, certificates: Certificates) -> None:
    with server(certificates.stranger) as (port, got):
        options = ["--cafile", certificates.ca, "--fingerprint", fingerprint(certificates.stranger)]
        saver = bench.ringmain("save", *options, f"tcps://127.0.0.1:{port}")
        assert saver.wait() == 60
        assert "; give its CA with --cafile" in saver.stderr
        peers.eventually(lambda: got, "the connection")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_listener_serves_the_client_with_the_fingerprint_only(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, version: str
) -> None:
    pin = fingerprint(certificates.stranger)
    stats = tmp_path / "stats"
    options = ["-o", "-O", tmp_path / "got", "--stats-file", stats, "--tls", "--certfile", certificates.server]
    loader, port = bench.listening("load", *options, "--fingerprint", pin)
    client = [peers.need("openssl"), "s_client", "-quiet", "-no_ign_eof", f"-tls{version.replace('.', '_')}"]
    client += ["-connect", f"127.0.0.1:{port}"]
    for shown, words in (
        ([], "peer did not return a certificate; the client has to send one"),
        (
            ["-cert", str(certificates.client)],
            f"fingerprint {fingerprint(certificates.client)}; it is not in --fingerprint",
        ),
    ):
        subprocess.run([*client, *shown], input=b"no", capture_output=True, check=False)
        loader.says(words)
    pinned = subprocess.run(
        [*client, "-cert", str(certificates.stranger)], input=b"yes", capture_output=True, check=False
    )
    assert loader.wait() == 0, (loader.stderr, pinned.stderr)
    assert (tmp_path / "got").read_bytes() == b"yes"
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["handshake failed", "handshake failed", "ended"]
    assert [row.get("fingerprint") for row in rows] == [None, None, pin]


def test_a_client_without_a_certificate_is_served_where_that_is_optional(
    bench: peers.Bench, authority: Authority, certificates: Certificates, tmp_path: Path
) -> None:
    stats, got = tmp_path / "stats", tmp_path / "got"
    options = ["-O", got, "--stats-file", stats, "--tls", "--certfile", authority.issue("server")]
    loader, port = bench.listening("load", *options, "--client-ca", authority.cafile, "--client-cert", "optional")
    client = authority.issue("client")
    assert sends(port, b"nobody ", authority.cafile)
    sends(port, b"stranger ", authority.cafile, certificates.stranger)
    loader.says("; give its CA with --client-ca")
    assert sends(port, b"client", authority.cafile, client)
    peers.eventually(lambda: stats.exists() and stats.read_text().count("\n") == 3, "the rows")
    assert got.read_bytes() == b"nobody client"
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    rows = [row for row in rows if row["verdict"] != "handshake failed"]  # the stranger's
    assert len(rows) == 2
    assert "subject" not in rows[0]
    assert "fingerprint" not in rows[0]
    assert rows[1]["subject"] == r"CN=client,O=Salt\, Pepper"
    assert rows[1]["fingerprint"] == fingerprint(client)


def test_rows_of_a_relay_and_of_who_connects_tell_the_servers_certificate(
    bench: peers.Bench, authority: Authority, tmp_path: Path
) -> None:
    stats, ours = tmp_path / "stats", authority.issue("server")
    with server(ours) as (port, got):
        options = ["-o", "--stats-file", stats, "--destination-fingerprint", fingerprint(ours)]
        relay, relay_port = bench.relaying(f"tcps://127.0.0.1:{port}", *options)
        with peers.connect(relay_port) as sock:
            sock.sendall(b"by relay")
            peers.send_no_more(sock)
            assert sock.recv(1) == b""
        assert relay.wait() == 0, relay.stderr
        saver = bench.ringmain("save", "--insecure", "--stats-file", stats, f"tcps://127.0.0.1:{port}")
        assert saver.wait() == 0, saver.stderr
        peers.eventually(lambda: len(got) == 2, "both connections")
    first, second = (json.loads(line) for line in stats.read_text().splitlines())
    assert "subject" not in first["source"]
    for row in (first["destination"], second):
        assert (row["subject"], row["fingerprint"]) == (r"CN=server,O=Salt\, Pepper", fingerprint(ours))
    assert got == [b"by relay", b""]


def test_a_certificate_without_a_subject_is_as_good_as_any(bench: peers.Bench, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    hosts = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName("127.0.0.1")])
    certificate = authority._built(x509.Name([]), key.public_key(), hosts)
    path = tmp_path / "nobody.pem"
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    path.chmod(0o600)
    stats = tmp_path / "stats"
    pin = certificate.fingerprint(hashes.SHA256()).hex()
    with server(path) as (port, got):
        options = ["--fingerprint", pin, "--stats-file", stats, "-I", bench.file(b"secret", "secret")]
        saver = bench.ringmain("save", *options, f"tcps://127.0.0.1:{port}")
        assert saver.wait() == 0, saver.stderr
        peers.eventually(lambda: got, "the connection")
    assert got == [b"secret"]
    assert json.loads(stats.read_text())["subject"] == ""

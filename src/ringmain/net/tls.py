"""Turn settings into an `ssl.SSLContext`, and say which file is at fault when that fails. Touches no socket."""

import logging
import os
import re
import ssl
import stat
from pathlib import Path

from ringmain.errors import CaFileError, CertificateError, UsageError, reason
from ringmain.settings import Settings, keywords_given

log = logging.getLogger("ringmain")


class _Socket(ssl.SSLSocket):
    """Python's, which it leaves open, to nobody, where the peer turns out to be gone while it is being made."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receive, or close the socket that has no session and is broken."""
        try:
            return super().recv(buflen, flags)
        except OSError:
            if self.version() is None:
                self.close()
            raise


def server_context(settings: Settings) -> ssl.SSLContext:
    """Return the context of a listener, which needs a certificate; `client_ca` makes it require one of the client."""
    if settings.certfile is None and not settings.self_signed:
        prefix = settings.prefix
        remedy = f"give {prefix}certfile=, a PEM file, or {prefix}self_signed=True to try it out"
        raise UsageError("TLS listener", "it needs a certificate", remedy)
    why = f"by a listener, which verifies clients with {settings.prefix}client_ca="
    _warn_of_unused(settings, ("cafile", "server_name", "insecure"), why)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Tickets that a sender never reads turn its close() into a reset, and its last bytes are lost.
    context.num_tickets = 0
    if settings.self_signed:
        _load_self_signed(context, settings)
    else:
        _load_own(context, settings)
    if settings.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, settings.client_ca, "client CA file")
    return _finished(context, settings)


def client_context(settings: Settings) -> ssl.SSLContext:
    """Return the context of a connection that we open: verified by `cafile` or the system's authorities."""
    _warn_of_unused(settings, ("client_ca", "self_signed"), "when connecting")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        log.warning(
            "%sinsecure=True: the peer's certificate is not verified, anyone in between can read and change the data",
            settings.prefix,
        )
    elif settings.cafile is not None:
        _load_authorities(context, settings.cafile, "CA file")
    else:
        context.load_default_certs()
    if settings.certfile is not None:
        _load_own(context, settings)
    return _finished(context, settings)


def _warn_of_unused(settings: Settings, names: tuple[str, ...], why: str) -> None:
    if unused := keywords_given(vars(settings), names, settings.prefix):
        log.warning("%s: ignored %s", unused, why)


def _finished(context: ssl.SSLContext, settings: Settings) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if settings.min_tls_version == "1.3" else ssl.TLSVersion.TLSv1_2
    # What is trusted ends the chain, whether it signed itself or not: an intermediate's CA need not be at hand.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.ciphers is not None:
        what = f"{settings.prefix}ciphers={settings.ciphers!r}"
        if later := [name for name in settings.ciphers.split(":") if name.startswith("TLS_")]:
            why = f"{', '.join(later)} belong to TLS 1.3"
            raise UsageError(what, why, f"give those with {settings.prefix}tls13_ciphers=")
        try:
            context.set_ciphers(settings.ciphers)
        except ssl.SSLError as error:
            raise UsageError(what, "OpenSSL knows none of them", "see: openssl ciphers -v") from error
    if settings.tls13_ciphers is not None:
        _choose_tls13(context, settings)
    context.sslsocket_class = _Socket
    return context


def _choose_tls13(context: ssl.SSLContext, settings: Settings) -> None:
    """Allow these suites of TLS 1.3 only. Python has no call for that, its libssl has."""
    from ringmain._libssl import set_ciphersuites

    what = f"{settings.prefix}tls13_ciphers={settings.tls13_ciphers!r}"
    wanted = str(settings.tls13_ciphers).split(":")
    if not set_ciphersuites(context, ":".join(wanted)):
        raise UsageError(what, "this Python's OpenSSL gives no access to them", "leave it out")
    known = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.3"}
    if unknown := [name for name in wanted if name not in known]:
        remedy = "see: openssl ciphers -s -tls1_3"
        raise UsageError(what, f"{', '.join(unknown)}: no suites of TLS 1.3 that OpenSSL knows", remedy)


def _load_authorities(context: ssl.SSLContext, path: str, name: str) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        why = "no certificate in it" if isinstance(error, ssl.SSLError) else reason(error)
        raise CaFileError(f"{name} {path}", why, "give a PEM file of CA certificates") from error


def _load_own(context: ssl.SSLContext, settings: Settings) -> None:
    certfile, keyfile = str(settings.certfile), settings.keyfile or str(settings.certfile)
    for option, path in (("certfile", certfile), ("keyfile", keyfile)):
        try:
            with Path(path).open("rb"):
                mode = Path(path).stat().st_mode
        except OSError as error:
            raise CertificateError(
                f"{settings.prefix}{option}={path}", reason(error), "give a readable PEM file"
            ) from error

    def no_password() -> str:
        raise CertificateError(
            f"key file {keyfile}", "it is encrypted", "decrypt it first: openssl pkey -in ... -out ..."
        )

    try:
        context.load_cert_chain(certfile, keyfile, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why, remedy = f"it does not belong to the key in {keyfile}", "give the pair that was made together"
        elif re.search(rb"-----BEGIN CERTIFICATE", Path(certfile).read_bytes()) is None:
            why, remedy = "no PEM certificate in it", "give a PEM file"
        elif re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY", Path(keyfile).read_bytes()) is None:
            why, remedy = f"no PEM private key in {keyfile}", f"add the key to it, or give {settings.prefix}keyfile="
        else:
            why, remedy = reason(error), "check it with: openssl x509 -in ... -text"
        raise CertificateError(f"certificate {certfile}", why, remedy) from error
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("key file %s: others may read it; run: chmod 600 %s", keyfile, keyfile)


def _load_self_signed(context: ssl.SSLContext, settings: Settings) -> None:
    """Make a key and a certificate for this host in memory, valid for 30 days, and print its fingerprint."""
    import datetime
    import ipaddress
    import socket

    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        what = f"{settings.prefix}self_signed=True"
        raise UsageError(what, "it needs cryptography", "pip install 'ringmain[cli]'") from error

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ringmain self-signed")])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in dict.fromkeys(["localhost", socket.gethostname()])]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # OpenSSL reads key and certificate from files only: an anonymous one in memory is a file that nobody else sees.
    fd = os.memfd_create("ringmain-certificate")
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    # A notice that must be seen to be of any use: at the level of warnings, so that pipes show it too.
    log.warning(
        "self-signed certificate, SHA-256 fingerprint %s", certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    )

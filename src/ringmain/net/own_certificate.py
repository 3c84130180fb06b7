"""Load our own certificate and its key, of files or made for this run, and say what is wrong with them."""

import functools
import logging
import os
import re
import shlex
import ssl
import stat
from pathlib import Path

from ringmain.errors import CertificateError, UsageError, reason
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# The password of an encrypted key. On a command line everybody could read it.
_PASSWORD = "RINGMAIN_KEY_PASSWORD"
_LONGEST_PASSWORD = 1023  # what OpenSSL has room for
# By the name of a pipe: what was read from it, which nobody can read again.
piped_passwords: dict[str, bytes] = {}


def load_own(context: ssl.SSLContext, settings: Settings) -> None:
    """Load `certfile` and `keyfile`; raise CertificateError, and warn where others may read the key."""
    certfile, keyfile = str(settings.certfile), settings.keyfile or str(settings.certfile)
    for option, path in (("certfile", certfile), ("keyfile", keyfile)):
        try:
            with Path(path).open("rb"):
                status = Path(path).stat()
        except OSError as error:
            raise CertificateError(
                f"{settings.prefix}{option}={path}", reason(error), "give a readable PEM file"
            ) from error

    asked = False

    def password() -> bytes:
        nonlocal asked
        asked = True
        return _password(settings, keyfile)

    try:
        context.load_cert_chain(certfile, keyfile, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why, remedy = f"it does not belong to the key in {keyfile}", "give the pair that was made together"
        elif asked:
            what = f"key file {keyfile}"
            raise CertificateError(what, "the password is wrong", _password_remedy(settings)) from error
        elif re.search(rb"-----BEGIN CERTIFICATE", Path(certfile).read_bytes()) is None:
            why, remedy = "no PEM certificate in it", "give a PEM file"
        elif re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY", Path(keyfile).read_bytes()) is None:
            why, remedy = f"no PEM private key in {keyfile}", f"add it there, or give it by {settings.prefix}keyfile="
        else:
            why, remedy = reason(error), "check it with: openssl x509 -in ... -text"
        raise CertificateError(f"certificate {certfile}", why, remedy) from error
    _warn_of_readers("key file", keyfile, status)


def _warn_of_readers(what: str, path: str, status: os.stat_result) -> None:
    # A group may read what is root's: so a service without root is let in to a key, by Debian's group ssl-cert say.
    allowed = stat.S_IRWXU | (stat.S_IRGRP if status.st_uid == 0 else 0)
    if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) & ~allowed & 0o777:
        log.warning("%s %s: others may read it; run: chmod 600 %s", what, path, shlex.quote(path))


def _password(settings: Settings, keyfile: str) -> bytes:
    """Return the password of the key; never ask for it."""
    path = settings.key_password_file
    if path is None:
        line = os.environb.get(_PASSWORD.encode(), b"")
        if not line:
            raise CertificateError(f"key file {keyfile}", "it is encrypted", _password_remedy(settings))
        what = f"password in {_PASSWORD}"
    elif path in piped_passwords:
        return piped_passwords[path]
    else:
        what = f"password file {path}"
        try:
            with Path(path).open("rb") as file:
                status = os.fstat(file.fileno())
                _warn_of_readers("password file", path, status)
                line = file.readline(_LONGEST_PASSWORD + 3).rstrip(b"\r\n")
        except OSError as error:
            raise CertificateError(what, reason(error), "give a readable file") from error
    if not 0 < len(line) <= _LONGEST_PASSWORD:
        why = f"longer than {_LONGEST_PASSWORD} bytes" if line else "its first line is empty"
        raise CertificateError(what, why, "write the password into its first line")
    if path is not None and stat.S_ISFIFO(status.st_mode):
        piped_passwords[path] = line
    return line


def _password_remedy(settings: Settings) -> str:
    return f"give {settings.prefix}key_password_file=, or the password in {_PASSWORD}"


def load_self_signed(context: ssl.SSLContext, settings: Settings, *, silently: bool = False) -> None:
    """Take a key and a certificate for this host that are made in memory, and print its fingerprint.

    They are the same whenever this process asks: who has verified the fingerprint is to find it again.
    """
    try:
        pem, fingerprint = _self_signed()
    except ImportError as error:
        what = f"{settings.prefix}self_signed=True"
        raise UsageError(what, "it needs cryptography", "pip install 'ringmain[cli]'") from error
    fd = self_signed_file()
    try:
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # there is no /proc
        _load(context, pem, settings)
    finally:
        os.close(fd)
    if not silently:
        # A notice that must be seen to be of any use: at the level of warnings, so that pipes show it too.
        log.warning("self-signed certificate, SHA-256 fingerprint %s", fingerprint)


def _load(context: ssl.SSLContext, pem: bytes, settings: Settings) -> None:
    """Take a key and its certificate by a file that has a name for as long as that takes."""
    import tempfile

    try:
        with tempfile.NamedTemporaryFile() as file:  # which nobody else may open
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
    except OSError as error:
        what = f"{settings.prefix}self_signed=True"
        raise CertificateError(what, reason(error), "it needs /proc, or a folder for temporary files") from error


def self_signed_file() -> int:
    """Return a descriptor, which the caller closes, of a file with the certificate and key of `load_self_signed`.

    OpenSSL reads those from files only. This one is in memory, and nobody else's: but a process that inherits it may
    use them too.
    """
    fd = os.memfd_create("ringmain-certificate")
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, _self_signed()[0])
    except BaseException:
        os.close(fd)
        raise
    return fd


@functools.cache
def _self_signed() -> tuple[bytes, str]:
    """Return a key and its certificate, valid for 30 days, as PEM, and the SHA-256 of the certificate."""
    import datetime
    import ipaddress
    import socket

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

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
    return pem, certificate.fingerprint(hashes.SHA256()).hex(":").upper()

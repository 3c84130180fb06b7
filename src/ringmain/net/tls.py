"""Turn settings into an `ssl.SSLContext`, and say which file is at fault when that fails. Touches no socket.

A peer's fingerprint is not OpenSSL's to look at: `peer_certificate` does once the handshake is over.
"""

import hashlib  # noqa: F401 - while there is a descriptor for it: `peer_certificate` needs it for each peer
import logging
import re
import ssl
from collections.abc import Sequence
from pathlib import Path

from ringmain._libssl import require_any_certificate, set_ciphersuites
from ringmain.errors import CaFileError, UsageError, reason
from ringmain.net.own_certificate import load_own, load_self_signed
from ringmain.net.renewable import Renewable
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


def server_context(settings: Settings, *, again: bool = False) -> ssl.SSLContext:
    """Return the context of a listener, which needs a certificate.

    `client_ca` makes it verify the client's, `fingerprint` alone only require one. What the settings deserve a warning
    for is told unless this is done `again`.
    """
    prefix = settings.prefix
    if settings.certfile is None and not settings.self_signed:
        remedy = f"give {prefix}certfile=, a PEM file, or {prefix}self_signed=True to try it out"
        raise UsageError("TLS listener", "it needs a certificate", remedy)
    if settings.self_signed and (asked := keywords_given(vars(settings), ("certfile", "keyfile"), prefix)):
        why = "it makes a certificate of its own"
        raise UsageError(f"{prefix}self_signed=True with {asked}", why, "leave one of them out")
    if settings.tls_auto and (asked := keywords_given(vars(settings), ("client_ca", "fingerprint"), prefix)):
        why = "plain clients, who have no certificate, would be served too"
        raise UsageError(f"{prefix}tls_auto=True with {asked}", why, "leave one of them out")
    if not again:
        why = f"by a listener, which verifies clients with {prefix}client_ca="
        _warn_of_unused(settings, ("cafile", "server_name", "insecure"), why)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Tickets that a sender never reads turn its close() into a reset, and its last bytes are lost.
    context.num_tickets = 0
    if settings.self_signed:
        load_self_signed(context, settings, silently=again)
    else:
        load_own(context, settings)
    _ask_clients(context, settings)
    return _finished(context, settings)


def _ask_clients(context: ssl.SSLContext, settings: Settings) -> None:
    """Ask clients for a certificate, if that is wanted."""
    prefix = settings.prefix
    if settings.client_cert == "optional":
        what, remedy = f"{prefix}client_cert=optional", f"give {prefix}client_ca= too"
        if settings.client_ca is None:
            raise UsageError(what, "clients are not asked for a certificate", remedy)
        if settings.fingerprint:
            raise UsageError(
                what, f"clients without a certificate would pass, despite {prefix}fingerprint=", "leave one of them out"
            )
    if settings.client_ca is not None:
        context.verify_mode = ssl.VerifyMode[f"CERT_{settings.client_cert.upper()}"]
        _load_authorities(context, settings.client_ca, "client CA file")
    elif settings.fingerprint and not require_any_certificate(context):
        why = "this Python's OpenSSL gives no access to a certificate that it does not verify"
        raise UsageError(f"{prefix}fingerprint=", why, f"give {prefix}client_ca= too")
    if settings.crl is not None:
        _load_revoked(context, settings, settings.crl, trust="client_ca" if settings.client_ca is None else None)


def client_context(settings: Settings, *, again: bool = False) -> ssl.SSLContext:
    """Return the context of a connection that we open: verified by `cafile` or the system's authorities.

    A `fingerprint` is enough without `cafile`. What deserves a warning is told unless this is done `again`.
    """
    if settings.tls_auto:
        raise UsageError(f"{settings.prefix}tls_auto=True", "there is nothing to listen at", "leave it out")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    verified = not settings.insecure and (settings.cafile is not None or not settings.fingerprint)
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif settings.cafile is not None:
        _load_authorities(context, settings.cafile, "CA file")
    else:
        context.load_default_certs()
    if settings.crl is not None:
        _load_revoked(context, settings, settings.crl, trust=None if verified else "cafile")
    if not again:
        _warn_of_client(settings)
    if settings.certfile is not None:
        load_own(context, settings)
    return _finished(context, settings)


def renewable_context(settings: Settings, *, listening: bool) -> Renewable:
    """Return either, which may read its files again."""
    make = server_context if listening else client_context
    authorities = settings.client_ca if listening else settings.cafile
    names = (settings.certfile, settings.keyfile, settings.key_password_file, settings.crl, authorities)
    files = [name for name in names if name is not None]
    return Renewable.made_by(lambda again: make(settings, again=again), files)


def _warn_of_client(settings: Settings) -> None:
    others = ["client_cert"] if settings.client_cert == "optional" else []
    _warn_of_unused(settings, ["client_ca", *others, "self_signed"], "when connecting")
    if settings.insecure and not settings.fingerprint:
        log.warning(
            "%sinsecure=True: the peer's certificate is not verified, anyone in between can read and change the data",
            settings.prefix,
        )


def _warn_of_unused(settings: Settings, names: Sequence[str], why: str) -> None:
    if unused := keywords_given(vars(settings), names, settings.prefix):
        log.warning("%s: ignored %s", unused, why)


def _finished(context: ssl.SSLContext, settings: Settings) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if settings.min_tls_version == "1.3" else ssl.TLSVersion.TLSv1_2
    # What is trusted ends the chain, whether it signed itself or not: an intermediate's CA need not be at hand.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.alpn:
        context.set_alpn_protocols(settings.alpn)
    if settings.ciphers is not None:
        what = f"{settings.prefix}ciphers={settings.ciphers!r}"
        if later := [name for name in settings.ciphers.split(":") if name.startswith("TLS_")]:
            why = f"it has TLS 1.3 suites: {', '.join(later)}"
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
    what = f"{settings.prefix}tls13_ciphers={settings.tls13_ciphers!r}"
    wanted = str(settings.tls13_ciphers).split(":")
    if not set_ciphersuites(context, ":".join(wanted)):
        raise UsageError(what, "this Python's OpenSSL gives no access to them", "leave it out")
    known = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.3"}
    if unknown := [name for name in wanted if name not in known]:
        remedy = "see: openssl ciphers -s -tls1_3"
        raise UsageError(what, f"OpenSSL knows no TLS 1.3 suite {', '.join(map(repr, unknown))}", remedy)


def _load_revoked(context: ssl.SSLContext, settings: Settings, path: str, *, trust: str | None) -> None:
    """Load revocation lists; where nobody is verified name the keyword of those to `trust` for that.

    Certificates in that file are refused: OpenSSL would trust them as authorities.
    """
    if trust is not None:
        why, prefix = "revocation lists need a CA that verifies the peer", settings.prefix
        raise UsageError(f"{prefix}crl=", why, f"give {prefix}{trust}= too{', not insecure=True' * settings.insecure}")
    what, remedy = f"CRL file {path}", "give a PEM file of revocation lists"
    try:
        kinds = set(re.findall(rb"-----BEGIN ([A-Z0-9 ]+)-----", Path(path).read_bytes()))
        if b"X509 CRL" not in kinds:
            raise CaFileError(what, "no revocation list in it", remedy)
        if len(kinds) > 1:
            raise CaFileError(what, "it holds more than revocation lists", f"{remedy} only")
        context.load_verify_locations(path)
    except OSError as error:
        why = "no list that OpenSSL can read" if isinstance(error, ssl.SSLError) else reason(error)
        raise CaFileError(what, why, remedy) from error
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _load_authorities(context: ssl.SSLContext, path: str, name: str) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        why = "no certificate in it" if isinstance(error, ssl.SSLError) else reason(error)
        raise CaFileError(f"{name} {path}", why, "give a PEM file of CA certificates") from error

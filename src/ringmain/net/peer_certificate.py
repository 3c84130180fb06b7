"""The certificate that a peer has shown: whose it is, and whether the peer is the one that was asked for."""

import ssl

from ringmain.errors import TlsError, UntrustedError
from ringmain.outcome import Certificate
from ringmain.settings import Settings

# Characters. A stranger may write what it likes into one.
_LONGEST_SUBJECT = 1000


def certificate_of(sock: ssl.SSLSocket) -> Certificate | None:
    """Return the certificate of a handshaken peer, verified or not; None where it has shown none."""
    import hashlib  # here, since plain connections need none

    encoded = sock.getpeercert(binary_form=True)
    if not encoded:
        return None
    return Certificate(_subject_of(sock)[:_LONGEST_SUBJECT], hashlib.sha256(encoded).digest().hex(":").upper())


def _subject_of(sock: ssl.SSLSocket) -> str:
    """Return the subject in OpenSSL's words, which the ssl module has only where it prints a certificate.

    `getpeercert()` tells nothing of one that was not verified.
    """
    try:
        first = repr(sock._sslobj.get_unverified_chain()[0])  # type: ignore[attr-defined]
    except (AttributeError, IndexError, TypeError, ValueError, ssl.SSLError):  # the last where the subject is empty
        return ""
    return first.partition("'")[2].rpartition("'")[0]


def check_peer(sock: ssl.SSLSocket, settings: Settings, what: str) -> None:
    """Look at what OpenSSL does not insist on, before a byte is exchanged; raise TlsError, with `what` failed.

    The peer must have one of the fingerprints, and have agreed on an application protocol, where any are asked for.
    """
    prefix = settings.prefix
    if settings.fingerprint:
        shown = certificate_of(sock)
        if shown is None or shown.fingerprint not in settings.fingerprint:
            why = f"its certificate has SHA-256 fingerprint {shown.fingerprint if shown else 'none'}"
            remedy = f"it is not in {prefix}fingerprint=: add it if you trust the peer"
            raise UntrustedError(what, why, remedy)
    if settings.alpn and sock.selected_alpn_protocol() is None:
        names = ", ".join(settings.alpn)
        why = "it has not agreed on an application protocol (ALPN)"
        raise TlsError(what, why, f"the peer must know one of {prefix}alpn=: {names}")

"""The certificate that a peer has shown: whose it is, and whether it is the one that was asked for."""

import hashlib
import ssl

from ringmain.errors import UntrustedError
from ringmain.outcome import Certificate
from ringmain.settings import Settings

# Characters. A stranger may write what it likes into one.
_LONGEST_SUBJECT = 1000


def certificate_of(sock: ssl.SSLSocket) -> Certificate | None:
    """Return the certificate of a handshaken peer, verified or not; None where it has shown none."""
    encoded = sock.getpeercert(binary_form=True)
    if not encoded:
        return None
    return Certificate(_subject_of(sock)[:_LONGEST_SUBJECT], hashlib.sha256(encoded).digest().hex(":").upper())


def _subject_of(sock: ssl.SSLSocket) -> str:
    """Return the subject in OpenSSL's words, which the ssl module has only where it prints a certificate.

    `getpeercert()` tells nothing of one that was not verified.
    """
    try:
        first = sock._sslobj.get_unverified_chain()[0]  # type: ignore[attr-defined]
    except (AttributeError, IndexError, TypeError):
        return ""
    return repr(first).partition("'")[2].rpartition("'")[0]


def check_peer(sock: ssl.SSLSocket, settings: Settings, what: str) -> None:
    """Raise UntrustedError, with `what` failed, unless the peer has one of the fingerprints, if any are asked for."""
    if not settings.fingerprint:
        return
    shown = certificate_of(sock)
    if shown is None or shown.fingerprint not in settings.fingerprint:
        why = f"its certificate has SHA-256 fingerprint {shown.fingerprint if shown else 'none'}"
        remedy = f"which {settings.prefix}fingerprint= does not have: give that if it is to be trusted"
        raise UntrustedError(what, why, remedy)

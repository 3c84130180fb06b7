"""What the errors of a connection mean."""

import ssl

from ringmain.errors import RingmainError, SendError, TlsError, reason


def was_alerted(error: BaseException | None) -> bool:
    """Tell whether OpenSSL has written an alert because of an error: it does when what it reads makes no sense."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def failure_of(error: OSError, what: str) -> RingmainError:
    """Return what a failure of the connection means to who sends; an alert comes from a peer that rejects us."""
    why = reason(error)
    if isinstance(error, ConnectionAbortedError):  # our own doing has no words in the C library
        why = error.strerror or why
    elif isinstance(error, ssl.SSLZeroReturnError):
        why = "the peer closed the connection"
    failed: RingmainError = SendError(what, why, "what was sent may not have arrived")
    if was_alerted(error):
        failed = TlsError(what, why, "does the peer accept our certificate and settings?")
    failed.__cause__ = error
    return failed

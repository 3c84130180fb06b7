"""What the errors of a connection mean."""

import ssl

from ringmain.errors import RingmainError, SendError, TlsError, reason


def was_alerted(error: BaseException | None) -> bool:
    """Tell whether OpenSSL has written an alert because of an error: it does when what it reads makes no sense."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def failure_of(error: OSError, what: str) -> RingmainError:
    """Return what a failure of the connection means to who sends; an alert comes from a peer that rejects us."""
    why = "the peer closed the connection" if isinstance(error, ssl.SSLZeroReturnError) else reason(error)
    failed: RingmainError = SendError(what, why, "what was sent may not have arrived")
    if was_alerted(error):
        failed = TlsError(what, why, "does the peer accept our certificate and settings?")
    failed.__cause__ = error
    return failed


def has_hole(what: str) -> SendError:
    """Return the error of a stream that nothing more may be sent on."""
    why = "an earlier write, or the end, was cancelled half-way, so the stream has a hole"
    return SendError(what, why, "connect again, and do not cancel that")

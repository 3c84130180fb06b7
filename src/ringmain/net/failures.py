"""What becomes of a connection that breaks: what its errors mean to who sends and who receives.

Above all a reset that we get; those that we give: closing.
"""

import ssl

from ringmain.errors import ReceiveError, RingmainError, SendError, TimedOutError, TlsError, TruncatedError, reason
from ringmain.net.remedies import remedy_for_words
from ringmain.outcome import Verdict

_LOST = "what arrived may not be all that was sent"


def was_alerted(error: BaseException | None) -> bool:
    """Tell whether OpenSSL has written an alert because of an error: it does when what it reads makes no sense."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def loss_of(verdict: Verdict, cause: BaseException | None, what: str, size: int) -> RingmainError | None:
    """Return what a verdict means to who has received so many bytes before it, or None where all is well.

    A time-out without a cause is one of ours: who has set it words it.
    """
    failed: RingmainError | None = None
    if verdict is Verdict.TRUNCATED:
        words = None if cause is None or isinstance(cause, ssl.SSLEOFError) else reason(cause)
        why = words or "it ended without close_notify"
        failed = TruncatedError(what, f"{why} after {size} bytes", _LOST)
        if size == 0 and "alert" in why:  # a TLS 1.3 server has seen our certificate, or that there is none
            failed = TlsError(what, why, remedy_for_words(why))
    elif verdict is Verdict.RESET:
        failed = reset_of(cause or ConnectionResetError(), what, size)
    elif verdict is Verdict.TIMED_OUT and cause is not None:
        failed = vanished_of(cause, what, size)
    if failed is not None:
        failed.__cause__ = cause
    return failed


def reset_of(cause: BaseException, what: str, size: int) -> ReceiveError:
    """Return what a reset, or another error of the socket, means to who has received so many bytes before it."""
    return ReceiveError(what, f"{reason(cause)} after {size} bytes", _LOST)


def vanished_of(cause: BaseException, what: str, size: int) -> TimedOutError:
    """Return what it means to who has received so many bytes that the peer answers nothing any more."""
    failed = TimedOutError(what, f"{reason(cause)} after {size} bytes", "is the peer still alive?", limit="keepalive")
    failed.__cause__ = cause
    return failed


def failure_of(error: OSError, what: str) -> RingmainError:
    """Return what a failure of the connection means to who sends; an alert comes from a peer that rejects us."""
    why = "the peer closed the connection" if isinstance(error, ssl.SSLZeroReturnError) else reason(error)
    failed: RingmainError = SendError(what, why, "what was sent may not have arrived")
    if was_alerted(error):
        failed = TlsError(what, why, remedy_for_words(why) or "does the peer accept our certificate and settings?")
    failed.__cause__ = error
    return failed


def has_hole(what: str) -> SendError:
    """Return the error of a stream that nothing more may be sent on."""
    why = "an earlier write, or the end, was cancelled half-way, so the stream has a hole"
    return SendError(what, why, "connect again, and do not cancel that")

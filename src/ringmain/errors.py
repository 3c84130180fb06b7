"""One tree of exceptions. Each carries the exit code that the command line ends with.

What is lost with a connection is an OSError too, so that code written for sockets hears of it: ConnectionError or
TimeoutError. Lines name an option as Python's keyword with its `=`; the command line turns that into its flag.
"""

import errno
import os

# Who a URL is for, in a line of ours; what names a file may have an @ of its own.
_USER = r"(?<!unix)(?<!file)(:/+)\S*@"


class RingmainError(Exception):
    """Say in one line what failed, why, and what to do about it.

    The parts are kept as `what`, `why` and `remedy`; an empty one is left out of the line, which is `printable`.
    `errno` is the number that the system gave for the cause, or None.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        self.what, self.why, self.remedy = what, why, remedy
        line = f"{what}: {why}" if why else what
        super().__init__(printable(f"{line}; {remedy}" if remedy else line))

    @property
    def errno(self) -> int | None:
        """The system's number of the cause, as `errno.ECONNREFUSED`."""
        return _number(self.__cause__)


class UsageError(RingmainError, ValueError):
    """Arguments that make no sense, alone or together, or that ask for a library which is not installed."""

    exit_code = 2


class ResolveError(RingmainError):
    """A host or service name has no address."""

    exit_code = 6


class ConnectError(RingmainError, ConnectionError):  # type: ignore[override]  # of errno
    """The peer refused, or no route leads there."""

    exit_code = 7


class ParseError(RingmainError):
    """What arrived is not what a feed, or `framing=`, was told to expect.

    `connection` is the peer that sent it, as "192.0.2.1:51234"; `offset` is how many bytes of its stream lie before the
    record at fault. The parser's own error is the `__cause__`.
    """

    exit_code = 8

    def __init__(self, connection: str, offset: int, why: str, remedy: str = "") -> None:
        self.connection, self.offset = connection, offset
        super().__init__(f"the record at offset {offset} from {connection}", why, remedy)


class TruncatedError(RingmainError):
    """A TLS stream ended without close_notify, or broke, or a stream ended within a frame: bytes may be missing."""

    exit_code = 18


class OutputError(RingmainError):
    """What arrived could not be written."""

    exit_code = 23


class InputError(RingmainError):
    """What was to be sent could not be read."""

    exit_code = 26


class TimedOutError(RingmainError, TimeoutError):
    """Connecting, the handshake, or an idle peer took too long.

    `limit` is the keyword of the time that was over: "connect_timeout", "handshake_timeout", "idle_timeout",
    "keepalive", or "" where there is none to choose.
    """

    exit_code = 28

    def __init__(self, what: str, why: str = "", remedy: str = "", *, limit: str = "") -> None:
        self.limit = limit
        if limit:
            remedy = f"{remedy} else raise {limit}=" if remedy else f"raise {limit}="
        super().__init__(what, why, remedy)

    @property
    def errno(self) -> int:  # type: ignore[override]  # OSError lets it be set
        """The system's number of a time-out, whoever kept the time."""
        return errno.ETIMEDOUT


class TlsError(RingmainError):
    """The TLS handshake failed."""

    exit_code = 35


class BindError(RingmainError):
    """The address cannot be listened at."""

    exit_code = 45


class SendError(RingmainError, ConnectionError):  # type: ignore[override]  # of errno
    """The connection broke while bytes were sent."""

    exit_code = 55


class ReceiveError(RingmainError, ConnectionError):  # type: ignore[override]  # of errno
    """The connection was reset while bytes were received."""

    exit_code = 56


class CertificateError(RingmainError):
    """Our own certificate, its key, or the password of that cannot be used."""

    exit_code = 58


class UntrustedError(TlsError):
    """The peer's certificate is not trusted, is revoked, names another host, or is none of `fingerprint`."""

    exit_code = 60


class RecordTooLongError(RingmainError):
    """A record has no delimiter within `max_record` bytes, or says that it is longer."""

    exit_code = 63


class DeniedError(RingmainError):
    """A server does not know who we say we are, or does not let them do this."""

    exit_code = 67


class CaFileError(RingmainError):
    """The file of certificate authorities, or of what they have revoked, cannot be used."""

    exit_code = 77


class NotFoundError(RingmainError):
    """A server does not have the stream that was asked for, or no streams at all."""

    exit_code = 78


class BlocksHeldError(RingmainError):
    """The consumer holds every block of the ring and waits for another."""


def printable(text: str) -> str:
    r"""Return a text as one line that a terminal only shows: what would control it is escaped, as \x1b or \u202e.

    What a peer says ends up in lines of ours. Whoever prints one calls this, wherever its parts come from. Where a URL
    has a user and a password, dots stand for both: a URL may be what somebody gave as the name of a file.
    """
    if "@" in text:
        import re  # which takes longer to import than all else that `import ringmain` does

        text = re.sub(_USER, r"\1...@", text)
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)


def reason(error: BaseException) -> str:
    """Return the plain words of an exception: the system's text for an OSError, OpenSSL's for an SSLError."""
    if isinstance(error, RingmainError):
        return error.why or error.what
    if type(error).__name__ == "SSLEOFError":
        return "the peer closed the connection"
    openssl_words = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    if isinstance(openssl_words, str):
        return openssl_words.lower().replace("_", " ").rstrip(".")
    if isinstance(error, ConnectionAbortedError) and error.strerror:  # our own doing has no words in the C library
        return error.strerror
    # uvloop words some errors its own way; the C library's words for the number are the same everywhere.
    if number := _number(error):
        return _decapitalized(os.strerror(number)) + (_size_limit() if number == errno.EFBIG else "")
    if isinstance(error, OSError) and error.errno and error.strerror:  # a socket.gaierror, whose numbers mean nothing
        return _decapitalized(error.strerror)
    return _decapitalized(str(error) or type(error).__name__)


def _size_limit() -> str:
    """Return which limit of the size of a file was met; nothing where it is the file system's."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return "" if limit == resource.RLIM_INFINITY else f": ulimit -f allows {limit} bytes"


def _number(error: BaseException | None) -> int | None:
    """Return the system's number of an error. The ssl module's are OpenSSL's, a failed look-up's are negative.

    asyncio raises some of them bare, as where a peer ends a handshake.
    """
    if type(error) is ConnectionResetError and not error.args:
        return errno.ECONNRESET
    if isinstance(error, OSError) and type(error).__module__ != "ssl" and error.errno and error.errno > 0:
        return error.errno
    return None


def _decapitalized(words: str) -> str:
    return words if words[1:2].isupper() else words[0].lower() + words[1:]

"""What became of a connection, for all who tell it: `on_end`, the log, the stats file and the peers of tests.

Exit codes are not here: the command ends with the `exit_code` of the error (`errors`).
"""

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ringmain._counters import Counters
from ringmain.errors import RingmainError, TimedOutError, TlsError, TruncatedError, UntrustedError

# What stands in a row for a verdict where a client was accepted, and never served: its TLS handshake, or its PROXY
# header, was none; or it left before its turn, a relay could not reach the other side for it, this system had no room.
FAILED_HANDSHAKE = "handshake failed"
NOT_SERVED = "not served"
# And where nobody knows any more what it has brought.
PROCESS_DIED = "process died"


class Verdict(enum.StrEnum):
    """How a connection ended. All that came before it was handed over."""

    ENDED = "ended"  # properly
    TRUNCATED = "truncated"  # TLS without close_notify, or broken, or within a frame: bytes may be missing
    RESET = "reset"
    TIMED_OUT = "timed out"  # it stood still for `idle_timeout`
    STOPPED = "stopped"  # by this side

    @classmethod
    def of(cls, error: RingmainError) -> "Verdict":
        """Return how a connection ended that an error has ended."""
        return next((verdict for kind, verdict in _VERDICTS if isinstance(error, kind)), cls.RESET)


_VERDICTS = ((TimedOutError, Verdict.TIMED_OUT), (TruncatedError, Verdict.TRUNCATED))


class Cause(enum.StrEnum):
    """Why a client was not served."""

    NOT_ALLOWED = "not allowed"  # it is not in `allow`
    BUSY = "busy"  # all places were taken
    SILENT = "silent"  # it said nothing while others waited
    PROBE = "probe"  # it ended before a byte of a TLS handshake, as health checks do
    # What came of its TLS handshake, or of its PROXY header.
    UNTRUSTED = "untrusted"  # its certificate
    TIMED_OUT = "timed out"
    TLS = "tls"
    OTHER = "other"  # the connection broke, or there was no header

    @classmethod
    def of(cls, error: Exception) -> "Cause":
        """Return why a client is not served whose handshake ended in an error."""
        return next((cause for kind, cause in _CAUSES if isinstance(error, kind)), cls.OTHER)


_CAUSES = ((UntrustedError, Cause.UNTRUSTED), (TimedOutError, Cause.TIMED_OUT), (TlsError, Cause.TLS))


class Unserved(Counter[Cause]):
    """How many clients were not served, by cause."""

    @property
    def refused(self) -> int:
        """How many were turned away, whatever they would have said."""
        return self[Cause.NOT_ALLOWED] + self[Cause.BUSY]

    @property
    def probes(self) -> int:
        """How many ended before a byte of a TLS handshake."""
        return self[Cause.PROBE]


class State(enum.StrEnum):
    """How far one direction of a relay has come."""

    RUNNING = "running"
    ENDING = "ending"  # the end is being passed on
    ENDED = "ended"

    @property
    def next(self) -> "State":
        """The state that follows, the only one that may."""
        return _NEXT[self]


_NEXT = {State.RUNNING: State.ENDING, State.ENDING: State.ENDED}


_SUMMED = (
    *("bytes_in", "bytes_out", "reads", "writes", "blocks", "stalls", "stalled_seconds"),
    *("skipped_records", "skipped_bytes", "dropped_bytes"),
)


def total(all_counters: Iterable[Counters]) -> Counters:
    """Return the sums of counters; their times are none of its own."""
    summed = Counters()
    for counters in all_counters:
        for name in _SUMMED:
            setattr(summed, name, getattr(summed, name) + getattr(counters, name))
    return summed


class Credentials(NamedTuple):
    """The process at the other end of a UNIX socket, and its user and group."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"unix:pid={self.pid},uid={self.uid},gid={self.gid}"


class Certificate(NamedTuple):
    """Whose a certificate is, as RFC 2253 writes it ("CN=client,O=Example"), and its SHA-256 ("AB:CD:...").

    The subject is "" where Python's ssl module does not tell it, and 1,000 characters long at most.
    """

    subject: str
    fingerprint: str


@dataclass(frozen=True)
class Outcome:
    """What became of one connection, in a relay of one side.

    `size` are the bytes that it was there for: those received by a loader, sent by a saver, and in a relay those that
    this side sent and the other was given. `state` is that of a side's own direction in a relay, if it has one.
    """

    peer: str
    tls: str | None
    cipher: str | None
    counters: Counters
    size: int
    verdict: Verdict
    error: RingmainError | None = None
    state: State | None = None
    proxy: str | None = None  # the address that a PROXY header came from
    credentials: Credentials | None = None  # of the peer of a UNIX socket
    certificate: Certificate | None = None  # that the peer has shown, verified or not

    def __str__(self) -> str:
        return f"{self.peer}: {self.verdict} after {self.size} bytes"


@dataclass(frozen=True)
class RelayOutcome:
    """What became of the two connections of one relay, and how many seconds it took.

    Where a lost destination is dialled again it is the last one of that.
    """

    source: Outcome
    destination: Outcome
    seconds: float
    verdict: Verdict
    error: RingmainError | None = None
    reconnects: int = 0  # how many connections to the destination followed the first

    def __str__(self) -> str:
        sizes = " and ".join(f"{end.size} bytes" for end in (self.source, self.destination) if end.state)
        return f"{self.source.peer} to {self.destination.peer}: {self.verdict} after {sizes}"

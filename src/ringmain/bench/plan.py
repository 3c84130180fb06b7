"""What is to be measured, as both ends know it."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from ringmain.endpoint import Endpoint
from ringmain.errors import UsageError

# What either end takes on for the other, whoever that is.
MAX_PARALLEL = 128
MAX_MESSAGE = 64 << 20
MAX_SECONDS = 86_400.0
# A measurement of so many bytes may take the time that they take at this many a second.
_LEAST_RATE = 10_000
# How long everything else may take, in seconds: to say what comes next, to start processes, to send the rest. It is
# generous because a loaded machine is no broken one. Keepalive finds out who is gone, and who stands still makes room
# for the next client of a server (`server.STANDSTILL`).
PATIENCE = 60.0
# How often the figures are read while it runs, at least; and once a second.
_LOOKS = 10
_KINDS: dict[str, tuple[type, ...]] = {
    "seconds": (int, float, type(None)),
    "size": (int, type(None)),
    "omit": (int, float),
    "parallel": (int,),
    "message_size": (int,),
    "rate": (int, type(None)),
}


def interval_for(seconds: float | None) -> float:
    """Return how often to read the figures of what takes so many seconds, if that is known."""
    return 1.0 if seconds is None else min(1.0, seconds / _LOOKS)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One measurement, in seconds and bytes.

    It lasts `seconds`, or until `size` bytes were sent, after a warm-up of `omit` seconds that is left out. `size` and
    `rate` (bytes a second, None: as fast as it goes) are those of all `parallel` streams together. Each has a
    connection, and at both ends a process of its own with `processes`, else an even share of the processes that its
    end takes. The client sends, or with `reverse` the server. The sender's writes are of `message_size` bytes.
    `through` is what the client's end reads from or writes to: blocks in memory, or a pipe. `engine` is what moves the
    bytes: ringmain, or for comparison Python's own sockets. `apart` gives the processes of each end half of the
    machine's cores: for both ends on one machine.
    """

    seconds: float | None = 10.0
    size: int | None = None
    omit: float = 0.0
    parallel: int = 1
    processes: bool = False
    message_size: int = 1 << 20
    rate: int | None = None
    reverse: bool = False
    through: Literal["blocks", "pipe"] = "blocks"
    engine: Literal["ringmain", "reference"] = "ringmain"
    apart: bool = False

    def __post_init__(self) -> None:
        # Each process has a message of its own.
        longest = max(1 << 20, MAX_MESSAGE // max(1, self.parallel)) if self.processes else MAX_MESSAGE
        limits = (
            ("parallel", self.parallel, 1, MAX_PARALLEL, "streams"),
            ("message_size", self.message_size, 1, longest, "bytes"),
            ("omit", self.omit, 0, MAX_SECONDS, "seconds"),
            ("time", self.seconds, 0.001, MAX_SECONDS, "seconds"),
            ("bytes", self.size, self.parallel, 1 << 62, "bytes"),
            ("limit", self.rate, self.parallel, 1 << 62, "bytes a second"),
        )
        for name, value, least, most, unit in limits:
            if value is not None and not least <= value <= most:
                raise UsageError(
                    f"{name}={_words(value)}", "out of range", f"give {_words(least)} to {_words(most)} {unit}"
                )
        if (self.seconds is None) == (self.size is None):
            raise UsageError("seconds and size", "each says when the measurement ends", "give one of them")

    @property
    def interval(self) -> float:
        """How often the figures are read while it runs, in seconds."""
        return interval_for(self.seconds)

    @property
    def limit(self) -> float:
        """How long the whole may take at most, in seconds."""
        seconds = self.seconds
        if seconds is None:
            seconds = min(MAX_SECONDS, (self.size or 0) / min(self.rate or _LEAST_RATE, _LEAST_RATE))
        return self.omit + seconds + PATIENCE

    def share(self, position: int, count: int = 1) -> Self:
        """Return the plan of one of the parallel streams, or of so many from there on."""

        def part(total: int | None) -> int | None:
            if total is None:
                return None
            more = total % self.parallel
            return total // self.parallel * count + min(more, position + count) - min(more, position)

        return dataclasses.replace(self, size=part(self.size), rate=part(self.rate), parallel=count)

    def at_server(self) -> Self:
        """Return the plan of the server's end."""
        return dataclasses.replace(self, through="blocks")

    def message(self) -> dict[str, Any]:
        """Return what goes to the other end."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, message: object) -> Self:
        """Return the plan that came from the other end; raise UsageError if it is none, or asks too much."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(message, dict) or message.keys() != names:
            raise UsageError("plan", "not understood", "use the same version of ringmain at both ends")
        for name, value in message.items():
            kinds = _KINDS.get(name)
            if kinds is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise UsageError(f"plan: {name}", "not a number", "use the same version of ringmain at both ends")
        known = message["through"] in ("blocks", "pipe") and message["engine"] in ("ringmain", "reference")
        if not known or not all(isinstance(message[name], bool) for name in ("apart", "processes", "reverse")):
            raise UsageError("plan", "not understood", "use the same version of ringmain at both ends")
        return cls(**message)


def measured_at(text: str, default_port: str = "") -> Endpoint:
    """Return an endpoint that is to be measured; raise UsageError for a UNIX socket, of which TCP has no figures."""
    endpoint = Endpoint.parse(text, default_port)
    if endpoint.path or endpoint.handed_over:
        why = "it measures TCP and TLS only, no UNIX sockets and no sockets of systemd"
        raise UsageError(f"bench {endpoint}", why, "give HOST:PORT")
    return endpoint


def _words(value: float) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value) if abs(value) < 1 << 63 else "beyond all numbers"

"""What a plain `with` gives of what goes into a log."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ringmain._counters import Counters
from ringmain.endpoint import LogEndpoint
from ringmain.outcome import Outcome, RelayOutcome

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BlockingLogSaver(Protocol):
    """A saver into a log in a plain `with`: the same, without `await`."""

    endpoint: LogEndpoint
    counters: Counters
    on_end: Callable[[Outcome], None] | None

    @property
    def stored(self) -> int:
        """How many bytes the stream has acknowledged."""

    @property
    def fullness(self) -> float:
        """The part of what may be unacknowledged that is, from 0 to 1."""

    def write(self, buffer: "Buffer") -> None:
        """Put the whole records that a buffer completes into the stream."""

    def reload_certificates(self) -> None:
        """Read certificates, CA files and credentials again, for the next connection; raise what is wrong with one."""


class BlockingLogRelayer(Protocol):
    """A relayer into a log in a plain `with`: the same, without `await`."""

    on_end: Callable[[RelayOutcome], None] | None

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at."""

    @property
    def port(self) -> int:
        """The port listened at."""

    @property
    def refused(self) -> int:
        """How many clients were turned away."""

    @property
    def moved(self) -> tuple[int, int]:
        """How many bytes of the present connections have come, and how many the stream has acknowledged."""

    @property
    def fullness(self) -> float:
        """The part of what may be unacknowledged that is, from 0 to 1."""

    def serve(self) -> None:
        """Relay for one client after another, or many at once, until none is to come."""

    def reload_certificates(self) -> None:
        """Read certificate, key and CA files again; raise what is wrong with one, and go on with what was read."""

    def stop(self) -> bool:
        """Serve no other client, and end `serve`; to be called from another thread, or a signal's handler."""

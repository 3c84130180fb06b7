"""What a plain `with` gives of what goes into a log."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ringmain._counters import Counters
from ringmain.endpoint import LogEndpoint
from ringmain.outcome import Outcome, RelayOutcome
from ringmain.plain import BlockingListener

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


class BlockingLogRelayer(BlockingListener, Protocol):
    """A relayer into a log in a plain `with`: the same, without `await`."""

    on_end: Callable[[RelayOutcome], None] | None

    @property
    def moved(self) -> tuple[int, int]:
        """How many bytes of the present connections have come, and how many the stream has acknowledged."""

    @property
    def fullness(self) -> float:
        """The part of what may be unacknowledged that is, from 0 to 1."""

    def serve(self) -> None:
        """Relay for one client after another, or many at once, until none is to come."""

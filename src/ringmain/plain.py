"""What a saver and a relayer are in a plain `with`: the same, without `await`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ringmain._counters import Counters
from ringmain.endpoint import Endpoint
from ringmain.outcome import Outcome, RelayOutcome
from ringmain.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BlockingListener(Protocol):
    """What savers and relayers have in common that may listen."""

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, those of a relay's source first; empty where nothing is listened at."""

    @property
    def port(self) -> int:
        """The port listened at, the source's where both ends of a relay listen."""

    @property
    def refused(self) -> int:
        """How many clients were turned away."""

    def reload_certificates(self) -> None:
        """Read certificate, key and CA files again; raise what is wrong with one, and go on with what was read."""

    def stop(self) -> bool:
        """Serve no other client, and end a relay's `serve`; for other threads and handlers of signals too.

        False when there is no connection.
        """


class BlockingSaver(BlockingListener, Protocol):
    """A saver in a plain `with`: the same, without `await`."""

    endpoint: Endpoint
    settings: Settings
    listening: bool
    listen_once: bool
    on_end: Callable[[Outcome], None] | None

    @property
    def connections(self) -> int:
        """How many connections are being served."""

    @property
    def try_number(self) -> int:
        """Which try to connect again is under way or comes next; 0 while there is a connection, or is to be none."""

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two; of many the bytes of all together."""

    @property
    def unacknowledged_bytes(self) -> int:
        """How many of the bytes sent are not known to be with the present peer's kernel yet."""

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1."""

    def write(self, buffer: "Buffer") -> None:
        """Send all of a buffer; return when the kernel has it."""

    def wait_for_peer(self) -> None:
        """Return once there is a peer to write to that has what a lost one never got."""

    def end_connection(self) -> None:
        """End the connection being served properly."""

    def break_off(self, *, at_once: bool = False) -> None:
        """Reset the peer, if there is one, once it has all that was written, or `at_once`."""

    def close(self) -> None:
        """End the connection properly, as leaving the `with` by its end does."""

    def abort(self) -> None:
        """Reset all peers, as leaving the `with` by an exception does."""


class BlockingRelayer(BlockingListener, Protocol):
    """A relayer in a plain `with`: the same, without `await`."""

    on_end: Callable[[RelayOutcome], None] | None

    @property
    def counters(self) -> list[Counters]:
        """The counters of the present connection, or of all: there, and, unless it is one-way, back. Else empty."""

    @property
    def taken(self) -> list[int]:
        """How many bytes of the present connections were acknowledged: there, and, unless it is one-way, back."""

    @property
    def fullness(self) -> float:
        """The part of what lies between the peers that is filled, from 0 to 1, in the fullest direction."""

    @property
    def waiting_for(self) -> list[tuple[str, int]]:
        """The addresses that `reconnect` has no connection to at the moment, each with the number of the next try."""

    def serve(self, path: str = "auto") -> None:
        """Relay for one client after another, or many at once, until none is to come. path: auto, kernel, block."""

    def close(self) -> None:
        """Reset both peers of each present connection and listen no more, as leaving the `with` does."""

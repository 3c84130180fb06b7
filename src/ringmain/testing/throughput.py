"""How fast the caller's own receiver or sender is, against a peer in another process."""

import random
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ringmain.errors import UsageError
from ringmain.testing.peer import Peer, Peers

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Enough of them for start-up effects to vanish, and still below a second for any receiver worth a measurement.
_SIZE = 256 << 20
_ROUNDS = 5


class Round(NamedTuple):
    """One transfer of `size` bytes: wall time, and the CPU time of all threads of the caller's process."""

    size: int
    seconds: float
    cpu_seconds: float

    @property
    def gb_per_second(self) -> float:
        """Gigabytes (10^9 bytes) a second."""
        return self.size / 1e9 / self.seconds

    @property
    def cpu_seconds_per_gb(self) -> float:
        """CPU seconds, user and system, for each gigabyte."""
        return self.cpu_seconds / (self.size / 1e9)


class Measurement(NamedTuple):
    """All rounds but the first, which warms up; the figures are their medians. Its string says them in one line."""

    rounds: tuple[Round, ...]

    @property
    def gb_per_second(self) -> float:
        """Gigabytes (10^9 bytes) a second."""
        return statistics.median(each.gb_per_second for each in self.rounds)

    @property
    def cpu_seconds_per_gb(self) -> float:
        """CPU seconds of the caller's process, user and system, for each gigabyte."""
        return statistics.median(each.cpu_seconds_per_gb for each in self.rounds)

    def __str__(self) -> str:
        speeds = [each.gb_per_second for each in self.rounds]
        return (
            f"{self.gb_per_second:.3g} GB/s ({min(speeds):.3g} to {max(speeds):.3g}),"
            f" {self.cpu_seconds_per_gb:.3g} CPU s/GB, {len(speeds)} x {self.rounds[0].size / 1e6:g} MB"
        )


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture."""

    extra_info: dict[str, Any]

    def pedantic(
        self, target: Callable[[], None], *, setup: Callable[[], None], rounds: int, warmup_rounds: int
    ) -> Any:
        """Call setup and target, `warmup_rounds` and then `rounds` times, and time target. Once, if it is disabled."""


class Throughput:
    """Measures one transfer in a test, by `receive` or by `send`; `measurement` keeps what came out."""

    measurement: Measurement | None = None

    def __init__(self, peers: Peers, benchmark: Benchmark | None = None) -> None:
        self._peers = peers
        self._benchmark = benchmark
        self._used = False

    def __repr__(self) -> str:
        return f"<Throughput {self.measurement or 'not measured'}>"

    def receive(
        self,
        receiver: Callable[[Peer], int],
        payload: "Buffer | None" = None,
        *,
        size: int = _SIZE,
        rounds: int = _ROUNDS,
        tls: bool = False,
    ) -> Measurement:
        """Measure `receiver(peer)`, which connects to `peer`, receives all that comes, and returns how many bytes.

        The clock runs from the call to the return. Raise AssertionError unless the receiver got every byte and the
        connection ended properly.

        payload (1 MiB of random bytes): what the peer sends, again and again
        size (256 MiB): bytes that it sends a round, or what more it takes to end with a whole payload
        rounds (5): how often, after one that warms up
        tls (False): under TLS
        """
        self._once()
        payload = random.Random(0).randbytes(1 << 20) if payload is None else memoryview(payload).tobytes()
        if len(payload) == 0 or size < 1:
            raise UsageError("a throughput without bytes", "there is nothing to measure", "give payload and size")
        peer = self._peers.saver(payload, times=-(-size // len(payload)), tls=tls)
        return self._measure(_Transfers(receiver, peer, sending=False), rounds)

    def send(self, sender: Callable[[Peer], int], *, rounds: int = _ROUNDS, tls: bool = False) -> Measurement:
        """Measure `sender(peer)`, which connects to `peer`, sends, closes, and returns how many bytes it has sent.

        The clock runs from the call until the peer has received the end. Raise AssertionError unless the peer got every
        byte and the connection ended properly.

        rounds (5): how often, after one that warms up
        tls (False): under TLS
        """
        self._once()
        peer = self._peers.loader(tls=tls, digest=False)
        return self._measure(_Transfers(sender, peer, sending=True), rounds)

    def _once(self) -> None:
        if self._used:
            raise UsageError("a second measurement in a test", "results are kept by test", "write another test")
        self._used = True

    def _measure(self, transfers: "_Transfers", rounds: int) -> Measurement:
        if self._benchmark is not None:
            self._benchmark.pedantic(transfers.run, setup=transfers.settle, rounds=rounds, warmup_rounds=1)
        else:
            for _ in range(1 + rounds):
                transfers.settle()
                transfers.run()
        transfers.settle()
        # Where pytest-benchmark is disabled it asks for one round only, and after its rounds it may profile some.
        done = transfers.rounds[1 : 1 + rounds] or transfers.rounds
        self.measurement = Measurement(tuple(done))
        if self._benchmark is not None:
            self._benchmark.extra_info.update(
                {
                    "size": done[0].size,
                    "GB/s": self.measurement.gb_per_second,
                    "CPU s/GB": self.measurement.cpu_seconds_per_gb,
                }
            )
        return self.measurement


class _Transfers:
    """The transfers between a function under test and a peer, and what they took."""

    def __init__(self, function: Callable[[Peer], int], peer: Peer, *, sending: bool) -> None:
        self._function = function
        self._peer = peer
        self._sending = sending
        self._settled = 0
        self.rounds: list[Round] = []

    def run(self) -> None:
        """Make one and measure it."""
        cpu_before, before = time.process_time(), time.perf_counter()
        size = self._function(self._peer)
        if self._sending:
            self._until_ended(len(self.rounds) + 1)
        seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
        self.rounds.append(Round(size, seconds, cpu_seconds))

    def settle(self) -> None:
        """Wait for the end of all that were made and check what has become of them; this is not measured."""
        self._until_ended(len(self.rounds))
        for position in range(self._settled, len(self.rounds)):
            self._check(position)
        self._settled = len(self.rounds)

    def _until_ended(self, count: int) -> None:
        while len(self._peer.connections) < count:
            self._peer.wait()

    def _check(self, position: int) -> None:
        size, connection = self.rounds[position].size, self._peer.connections[position]
        verb, done = ("received", "sent") if not self._sending else ("sent", "received")
        where = f"transfer {position}: "
        if connection.verdict != "ended":
            raise AssertionError(where + f"{connection.verdict}: {connection.error}")
        if size != connection.size or size == 0:
            raise AssertionError(where + f"{self._function!r} {verb} {size!r} bytes, the peer {done} {connection.size}")

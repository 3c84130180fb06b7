"""Read the counters of streams and the CPU time of this process while they run; tell what a window of it brought."""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ringmain._counters import Counters
from ringmain.bench.tcp_info import TcpInfo, of_sender, read_congestion, read_sender, tcp_info

# How much before its time a timer may fire.
_EARLY = 0.005
_COUNTED = ("reads", "writes", "blocks", "stalls", "stalled_seconds")
# What one end of a measurement tells the other: a number each, the last two a size for each stream.
FIGURES = ("seconds", "user", "system", *_COUNTED, "sizes", "totals")
# And what its kernel tells, where it does: of each stream that sends, and what governs their windows.
OF_TCP = ("tcp", "congestion")
_MOST = 1 << 62


class Sample(NamedTuple):
    """What was known at one time: seconds since the start, CPU seconds, bytes of each stream, and other counters.

    `cpu` is exact, and without the helpers; `user` and `system` are the kernel's estimates for all threads. `tcp` is
    what the kernel tells of each stream that sends.
    """

    at: float
    cpu: float
    user: float
    system: float
    sizes: list[int]
    counted: list[float]
    tcp: list[TcpInfo | None]


class Meter:
    """Measures what the streams of one process do. Threads that only stand in for someone else's program are left out.

    `sending`: the bytes that count are those that leave. `socks` are the sockets of the streams, in their order, which
    the kernel is asked about whenever the counters are read: once a second, or ten times where it is over sooner.
    """

    def __init__(self, interval: float, omit: float, *, sending: bool) -> None:
        self.counters: list[Counters] = []
        # The CPU seconds of each helping thread so far.
        self.helpers: list[Callable[[], float]] = []
        self.socks: list[socket.socket] = []
        self.on_interval: Callable[[dict[str, Any]], None] = lambda _: None
        self._samples: list[Sample] = []
        self._intervals: list[dict[str, Any]] = []
        self._loop = asyncio.get_running_loop()
        self._interval = interval
        self._omit = omit
        self._sending = sending
        self._started = 0.0
        self._round = -1  # of the sample that is due next, after the warm-up
        self._timer: asyncio.TimerHandle | None = None
        self._ended: list[bool] = []
        self._tcp: list[TcpInfo | None] = []

    def start(self, streams: int) -> None:
        """Begin; `streams` of them each call `end` once their last byte has moved."""
        self._ended = [False] * streams
        self._tcp = [None] * len(self.socks)
        self._started = time.monotonic()
        self._take()
        self._wait()

    def end(self, position: int) -> None:
        """Hear that a stream has moved its last byte; the last of them ends the measurement."""
        self._look(position)
        self._ended[position] = True
        if all(self._ended):
            self.close()
            self._take()

    def close(self) -> None:
        """Take no more samples."""
        if self._timer is not None:
            self._timer.cancel()

    def side(self) -> dict[str, Any]:
        """Return the figures of what came after the warm-up: one of the two sides of a measurement, or a part of it."""
        start = next((at for at, it in enumerate(self._samples[:-1]) if not self._is_warm_up(it)), 0)
        first, later = self._samples[start], self._samples[start + 1 :]
        last = self._samples[-1]
        counted = dict(zip(_COUNTED, (b - a for a, b in zip(first.counted, last.counted, strict=True)), strict=True))
        user, system = split(max(0.0, last.cpu - first.cpu), last.user - first.user, last.system - first.system)
        looks = [[it.tcp[at] for it in later] for at in range(len(first.tcp))]
        return {
            "seconds": last.at - first.at,
            "sizes": [after - before for before, after in zip(first.sizes, last.sizes, strict=True)],
            "totals": last.sizes,
            "user": user,
            "system": system,
            **counted,
            "tcp": [of_sender(before, list(filter(None, it))) for before, it in zip(first.tcp, looks, strict=True)],
            "intervals": self._intervals,
        }

    def _is_warm_up(self, sample: Sample) -> bool:
        return sample.at < self._omit - _EARLY

    def _take(self) -> None:
        for position in range(len(self.socks)):
            self._look(position)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        sample = Sample(
            time.monotonic() - self._started,
            time.process_time() - sum(helper() for helper in self.helpers),
            usage.ru_utime,
            usage.ru_stime,
            [it.bytes_out if self._sending else it.bytes_in for it in self.counters],
            [sum(getattr(it, name) for it in self.counters) for name in _COUNTED],
            list(self._tcp),
        )
        if self._samples:
            before = self._samples[-1]
            interval = {
                "start": before.at,
                "end": sample.at,
                "sizes": [b - a for a, b in zip(before.sizes, sample.sizes, strict=True)],
                "omitted": self._is_warm_up(before),
                "tcp": [now and now.since(then) for then, now in zip(before.tcp, sample.tcp, strict=True)],
            }
            self._intervals.append(interval)
            self.on_interval(interval)
        self._samples.append(sample)

    def _look(self, position: int) -> None:
        """Ask the kernel about a stream; of one that has ended, what it told then stays."""
        if position < len(self.socks) and not self._ended[position]:
            self._tcp[position] = tcp_info(self.socks[position]) or self._tcp[position]

    def _wait(self) -> None:
        """Take the next sample when it is due: at the end of the warm-up, and each interval from there."""
        late = time.monotonic() - self._started - self._omit
        self._round = max(self._round + 1, int(late / self._interval) + 1 if late > 0 else 0)
        self._timer = self._loop.call_later(self._round * self._interval - late, self._tick)

    def _tick(self) -> None:
        self._take()
        self._wait()


def read_side(message: object, streams: int) -> dict[str, Any]:
    """Return the `FIGURES` of the other end, which has so many streams; raise ValueError if it tells none, or others.

    What the numbers are is its word; that they can be reckoned with is made sure here.
    """
    if not isinstance(message, dict):
        raise ValueError("no figures")
    side = {name: message.get(name) for name in FIGURES}
    lists = [side["sizes"], side["totals"]]
    if not all(isinstance(it, list) and len(it) == streams and all(map(_is_size, it)) for it in lists):
        raise ValueError("no sizes")
    if not all(_is_size(side[name]) for name in ("reads", "writes", "blocks", "stalls")):
        raise ValueError("no counts")
    others = [side[name] for name in FIGURES[:-2]]
    if not all(isinstance(it, int | float) and not isinstance(it, bool) and 0 <= it < _MOST for it in others):
        raise ValueError("no figures")
    told = message.get("tcp") or []
    if not isinstance(told, list) or len(told) not in (0, streams):
        raise ValueError("not of each stream")
    tcp = [read_sender(it, _MOST) for it in told]
    return {**side, "tcp": tcp, "congestion": read_congestion(message.get("congestion"))}


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def split(cpu: float, user: float, system: float) -> tuple[float, float]:
    """Return exact CPU seconds as those of the program and of the kernel, in the proportion of two estimates."""
    # The quotient comes first: at most 1 once rounded, where `cpu * user / user` may round to more than `cpu`.
    share = user / max(user + system, 1e-9)
    return cpu * share, cpu - cpu * share


def joined(sides: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several processes as one side's."""
    if len(sides) == 1:
        return sides[0]
    count = max(len(it["intervals"]) for it in sides)
    intervals = [joined_interval([_interval(it, position) for it in sides]) for position in range(count)]
    return {
        **{name: sum(it[name] for it in sides) for name in ("user", "system", *_COUNTED)},
        "seconds": max(it["seconds"] for it in sides),
        "sizes": [size for it in sides for size in it["sizes"]],
        "totals": [size for it in sides for size in it["totals"]],
        "tcp": [stream for it in sides for stream in it["tcp"]],
        "congestion": sides[0]["congestion"],
        "intervals": intervals,
    }


def joined_interval(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the same interval of several processes as one."""
    longest: dict[str, Any] = max(parts, key=len)
    tcp = [stream for part in parts for stream in part.get("tcp") or [None] * len(part["sizes"])]
    return {**longest, "sizes": [size for part in parts for size in part["sizes"]], "tcp": tcp}


def _interval(it: dict[str, Any], position: int) -> dict[str, Any]:
    """Return an interval of a process, which may have ended before."""
    intervals = it["intervals"]
    return dict(intervals[position]) if position < len(intervals) else {"sizes": [0] * len(it["sizes"])}

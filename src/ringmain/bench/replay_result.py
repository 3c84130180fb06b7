"""What became of a load test of someone else's program: figures of one end, as JSON and as a table."""

import socket
from typing import Any

from ringmain._counters import Counters
from ringmain.bench.meter import Meter
from ringmain.bench.result import about, connected_of, described, interval_of, span, tls_of, work_of
from ringmain.bench.rounds import figures_from
from ringmain.bench.streams import OnInterval
from ringmain.bench.tcp_info import congestion
from ringmain.errors import RingmainError
from ringmain.net.link import Link
from ringmain.outcome import Verdict


class Figures:
    """What is found in a test over one connection, while it runs and afterwards. `stream` describes the connection.

    `acknowledged` is how many bytes of what was sent the peer is known to have, None if that is not known.
    """

    def __init__(self, stream: dict[str, Any], on_interval: OnInterval) -> None:
        self.verdict = Verdict.STOPPED
        self.error: RingmainError | None = None
        self.records = 0
        self.acknowledged: int | None = None
        self.acknowledged_records: int | None = None
        self._about = about()
        self._stream = stream
        self._sock: socket.socket | None = None
        self._congestion: str | None = None
        self._on_interval = on_interval

    def measured(self, counters: Counters, interval: float, *, sending: bool) -> Meter:
        """Begin to measure."""
        self._sending = sending
        self._meter = Meter(interval, 0.0, sending=sending)
        self._meter.counters.append(counters)
        self._meter.socks = [self._sock] if sending and self._sock is not None else []
        self._meter.on_interval = lambda it: self._on_interval(interval_of(it, sending))
        self._meter.start(1)
        return self._meter

    def fail(self, error: RingmainError) -> None:
        """Note how the test has failed."""
        self.verdict, self.error = Verdict.of(error), error

    def figures(self) -> dict[str, float]:
        """Return what is compared with a baseline."""
        side = self._meter.side()
        size = sum(side["sizes"])
        received = self.acknowledged if self._sending and self.acknowledged is not None else size
        return figures_from(received, side["seconds"], side["user"] + side["system"], size)

    def whole(self, **options: Any) -> dict[str, Any]:
        """Return everything as one object; `options` are those of the test."""
        side = self._meter.side()
        size, seconds = sum(side["sizes"]), side["seconds"]

        def total(size: int, records: int) -> dict[str, Any]:
            per_second = records / max(seconds, 1e-9)
            return {**span(0, seconds, size, self._sending), "records": records, "records_per_second": per_second}

        sums = {"sum_sent" if self._sending else "sum_received": total(size, self.records)}
        if self._sending:
            sums["sum_sent"] |= next(iter(side["tcp"]), None) or {}
        if self._sending and self.acknowledged is not None and self.acknowledged_records is not None:
            sums["sum_received"] = total(self.acknowledged, self.acknowledged_records)
        host = work_of(side)
        whose = "sender" if self._sending else "receiver"
        return {
            "start": {
                **self._about,
                "connected": connected_of([self._stream]),
                "tls": tls_of(self._stream),
                "test_start": {"protocol": "TCP", "num_streams": 1, "reverse": int(not self._sending), **options},
            },
            "intervals": [interval_of(it, self._sending) for it in side["intervals"]],
            "end": {
                **sums,
                "cpu_utilization_percent": {
                    f"host_{kind}": 100 * host[f"cpu_{kind}_seconds"] / max(seconds, 1e-9)
                    for kind in ("total", "user", "system")
                },
                "host": host,
                **({f"{whose}_tcp_congestion": self._congestion} if self._congestion is not None else {}),
            },
            "verdict": self.verdict,
            **({} if self.error is None else {"error": str(self.error)}),
        }


class Test(Figures):
    """A load test over one connection. What its peer's kernel has is unknown under TLS, if the connection broke."""

    def __init__(self, link: Link, on_interval: OnInterval) -> None:
        super().__init__(described(link), on_interval)
        self.link = link
        self._sock = link.sock
        self._congestion = congestion(link.sock)

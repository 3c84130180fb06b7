"""A relay into a stream, its clients, and what is in the stream then, read by nats-py."""

import hashlib
import itertools
import random
import socket
import threading
from typing import Any, NamedTuple

import peers
from brokers import Broker, Cluster
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy


def relaying(
    bench: peers.Bench,
    broker: Broker | Cluster,
    *arguments: object,
    subject: str = "events",
    scheme: str = "tcp",
    user: str = "",
) -> tuple[peers.Program, int]:
    """Start a relay into the log; return it and the port that it listens at."""
    port_file = bench.folder / f"port {len(bench.programs)}"
    there = broker.url(subject, user)
    relay = bench.ringmain("relay", "--port-file", port_file, *arguments, f"{scheme}://127.0.0.1:0", there)

    def port() -> int | None:
        assert relay.process.poll() is None, relay.stderr
        return int(port_file.read_text()) if port_file.exists() and port_file.read_text() else None

    return relay, peers.eventually(port, "a port")


def send(port: int, data: bytes) -> None:
    """Send all, end properly, and wait for the proper end that tells that all is stored."""
    with peers.connect(port) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


class Sender(threading.Thread):
    """A client of a relay: sends lines until it is told that it is enough, and waits for the proper end.

    rate: at most so many bytes a second; most: it is enough then. `size` and `sha256` are of what it has sent.
    """

    def __init__(self, port: int, seed: int, *, rate: float, most: int = 1 << 40) -> None:
        super().__init__(daemon=True)
        self.enough = threading.Event()
        self.ended: str | None = None  # how: "properly", or else what went wrong
        self.size = 0
        self._sum = hashlib.sha256()
        self._port = port
        self._lines = [lines(64 << 10, 100 * seed + number) for number in range(8)]
        self._pause = (64 << 10) / rate
        self._most = most
        self.start()

    def run(self) -> None:
        try:
            with peers.connect(self._port) as client:
                for data in itertools.cycle(self._lines):
                    client.sendall(data)
                    self._sum.update(data)
                    self.size += len(data)
                    if self.size >= self._most or self.enough.wait(self._pause):
                        break
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            self.ended = "properly"
        except Exception as error:
            self.ended = repr(error)

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()

    def until_ended(self) -> None:
        """Wait for its end, which has to be a proper one."""
        peers.eventually(lambda: self.ended is not None, f"the end of a client that has sent {self.size} bytes")
        assert self.ended == "properly", self.ended


def lines(size: int, seed: int = 1) -> bytes:
    """Return so many bytes of lines of any length, the same for the same seed."""
    chance = random.Random(seed)
    data = bytearray()
    while len(data) < size:
        data += chance.randbytes(chance.choice([0, 10, 100, 1000, 20_000])).replace(b"\n", b"_") + b"\n"
    return bytes(data[: size - 1]) + b"\n"


class Logged(NamedTuple):
    """What a stream has of one connection."""

    peer: str
    messages: list[bytes]
    verdicts: list[tuple[str, int]]

    @property
    def data(self) -> bytes:
        return b"".join(self.messages)


class Log(NamedTuple):
    """What a stream has: connections by their names, and the subjects of all messages."""

    connections: dict[str, Logged]
    subjects: set[str]


def read_log(broker: Broker | Cluster, stream: str = "EVENTS", *, gaps: bool = False, **options: Any) -> Log:
    """Return all that a stream has; fail where a message is there twice, or not where it belongs in its connection.

    gaps: where records were left out. The other options are those of nats-py's to connect.
    """

    async def work(js: Any) -> Log:
        log, ids = Log({}, set()), set()
        due = (await js.stream_info(stream)).state.messages
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
        subscription = await js.pull_subscribe("", stream=stream, config=config)
        while due:
            for message in await subscription.fetch(min(due, 50), timeout=30):
                due -= 1
                _enter(log, message, gaps)
                assert message.headers["Nats-Msg-Id"] not in ids
                ids.add(message.headers["Nats-Msg-Id"])
        return log

    return broker.run(work, **options)


def _enter(log: Log, message: Any, gaps: bool) -> None:
    headers = message.headers
    connection = log.connections.setdefault(headers["Ringmain-Connection"], Logged(headers["Ringmain-Peer"], [], []))
    assert not connection.verdicts
    assert headers["Nats-Msg-Id"] == f"{headers['Ringmain-Connection']}:{headers['Ringmain-Offset']}"
    assert headers["Ringmain-Peer"] == connection.peer
    log.subjects.add(message.subject)
    if "Ringmain-Verdict" in headers:
        assert message.data == b""
        connection.verdicts.append((headers["Ringmain-Verdict"], int(headers["Ringmain-Bytes"])))
        assert sum(map(len, connection.messages)) == int(headers["Ringmain-Bytes"])
    else:
        at = sum(map(len, connection.messages))
        assert int(headers["Ringmain-Offset"]) == at or gaps, (headers, at, message.metadata)
        connection.messages.append(message.data)

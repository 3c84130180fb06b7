"""What ringmain has put into a stream, read by nats-py: messages, and the connections that they are of."""

import random
from typing import Any, NamedTuple

from brokers import Broker
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy


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


def read_log(broker: Broker, stream: str = "EVENTS", *, gaps: bool = False) -> Log:
    """Return all that a stream has; fail where a message is there twice, or not where it belongs in its connection.

    gaps: where records were left out.
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

    return broker.run(work)


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

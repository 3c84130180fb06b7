"""The consumer of a stream that is wanted: found by its name, or made."""

import re
from dataclasses import dataclass
from typing import Any

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from ringmain.engines.nats_server import NatsServer
from ringmain.errors import NotFoundError, RingmainError, UsageError

_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]+")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be read of a stream, by the consumer of that name; None is all."""

    stream: str
    consumer: str
    from_sequence: int | None = None
    until_sequence: int | None = None
    filter: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for what no server would take."""
        if not _NAME.fullmatch(self.stream):
            remedy = "write the stream's name after the host, and subjects as filter="
            raise UsageError(f"stream {self.stream!r}", "not a stream name", remedy)
        if not _NAME.fullmatch(self.consumer):
            raise UsageError(
                f"consumer={self.consumer!r}", "not a consumer name", "use no blanks and none of . * > / \\"
            )
        for name in ("from_sequence", "until_sequence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1 << 64:
                raise UsageError(
                    f"{name}={value}", "not a sequence number", "give at least 1, which is the first message"
                )
        if self.from_sequence and self.until_sequence and self.from_sequence > self.until_sequence:
            what = f"from_sequence={self.from_sequence} with until_sequence={self.until_sequence}"
            raise UsageError(what, "no message is between them", "raise until_sequence=")
        if self.filter is not None and not re.fullmatch(r"[^\s\x00-\x1f\x7f]+", self.filter):
            raise UsageError(f"filter={self.filter!r}", "not a subject", "write one as events.eu or events.>")


async def consumer_of(server: NatsServer, jetstream: Any, wanted: Wanted, what: str) -> Any:
    """Return what the server tells of the consumer, made if there is none; raise RingmainError.

    One that others have made, and read from another place, is none that is wanted.
    """
    await server.ask(jetstream.stream_info(wanted.stream), what)
    try:
        info = await server.ask(jetstream.consumer_info(wanted.stream, wanted.consumer), what)
    except NotFoundError:
        return await _made(server, jetstream, wanted, what)
    _check(info.config, wanted, f"consumer {wanted.consumer} of {what}")
    return info


async def _made(server: NatsServer, jetstream: Any, wanted: Wanted, what: str) -> Any:
    start = wanted.from_sequence
    config = ConsumerConfig(
        name=wanted.consumer,
        durable_name=wanted.consumer,
        deliver_policy=DeliverPolicy.ALL if start is None else DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        filter_subject=wanted.filter,
    )
    try:
        return await server.ask(jetstream.add_consumer(wanted.stream, config), what)
    except RingmainError as error:
        if type(error) is not RingmainError:
            raise
        remedy = "see filter=, or make one yourself: nats consumer add"
        raise UsageError(f"consumer {wanted.consumer} of {what}", error.why, remedy) from error


def _check(config: Any, wanted: Wanted, what: str) -> None:
    """Raise UsageError where a consumer that is there is another than the one that is wanted."""
    if config.deliver_subject or config.ack_policy != AckPolicy.EXPLICIT:
        why = "it is not a pull consumer with explicit acknowledgement"
        raise UsageError(what, why, "choose another consumer=")
    if wanted.until_sequence is not None and (config.max_deliver or -1) > 0:
        why = f"it delivers a message {config.max_deliver} times at most, and looking at it counts"
        raise UsageError(
            f"until_sequence= with {what}", why, "make it without max_deliver, or leave until_sequence= out"
        )
    for name, ours, theirs in (
        ("from_sequence", wanted.from_sequence, config.opt_start_seq),
        ("filter", wanted.filter, config.filter_subject),
    ):
        if ours is not None and ours != theirs:
            why = f"it was made {f'with {name}={theirs}' if theirs else f'without {name}='}"
            raise UsageError(what, why, f"choose another consumer=, or leave {name}= out")

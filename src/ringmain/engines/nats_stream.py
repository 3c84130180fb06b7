"""The stream that takes what is published: looked for, or made for a trial; what it bears."""

import logging
import re
from typing import Any, NamedTuple

import nats.js.errors
from nats.js.api import StorageType, StreamConfig

from ringmain.engines.nats_server import NatsServer
from ringmain.errors import NotFoundError, RingmainError, UsageError
from ringmain.net.backoff import Backoff

log = logging.getLogger("ringmain")

# What the headers of a message take at most, which count for the server's max_payload too.
HEADERS = 1024
# How often a stream is asked for that is only just being made.
_TRIES = 10
_STREAM_SHAPE = re.compile(r"(?P<name>[A-Za-z0-9_-]+)(?::(?P<replicas>[1-5]))?")
_PLACEHOLDERS = ("{peer}", "{connection}")


class Stream(NamedTuple):
    """A stream: what subjects it takes, how many bytes a message may have, how many seconds it remembers ids for.

    chains: whether each message may name the one that must be the last before it, since one server alone compares
    them, and no other stream has some of them. It must be in no cluster: there the stream may get replicas at any time,
    and nats-server 2.15 takes a message that is refused by its replicas for a fault of the disk, and ends the stream.
    """

    name: str
    subjects: tuple[str, ...]
    max_message: int
    duplicate_window: float
    chains: bool


def check_subject(subject: str) -> None:
    """Raise UsageError for a subject that nothing can be published to."""
    what = f"subject {subject!r}"
    rest = subject
    for placeholder in _PLACEHOLDERS:
        rest = rest.replace(placeholder, "x")
    if re.search(r"[{}]", rest):
        raise UsageError(what, "braces are for {peer} and {connection} only", "choose one of these")
    if not all(rest.split(".")):
        raise UsageError(what, "it has an empty part", "write it as events.edge")
    if re.search(r"[*>\s]", rest):
        raise UsageError(what, "it has a wildcard", "write the subject itself, with {peer} or {connection}")


def check_stream(text: str) -> tuple[str, int]:
    """Return the name and the replicas of a stream that is to be made; raise UsageError."""
    match = _STREAM_SHAPE.fullmatch(text)
    if match is None:
        raise UsageError(f"create_stream={text}", "not understood", "write EVENTS, or EVENTS:3 for three replicas")
    return match["name"], int(match["replicas"] or 1)


def pattern_of(subject: str) -> str:
    """Return a subject with the wildcard for what differs between connections."""
    return ".".join("*" if any(it in part for it in _PLACEHOLDERS) else part for part in subject.split("."))


def takes(stream: Stream, subject: str) -> bool:
    """Tell whether a stream takes a subject, which may have * for a part."""
    return any(_covers(it.split("."), subject.split(".")) for it in stream.subjects)


def _covers(pattern: list[str], subject: list[str]) -> bool:
    for number, part in enumerate(pattern):
        if part == ">":
            return len(subject) > number
        if number == len(subject) or part not in ("*", subject[number]):
            return False
    return len(pattern) == len(subject)


async def open_stream(server: NatsServer, create: str | None) -> Stream:
    """Return the stream that takes the endpoint's subject, which `create` may make; raise what is wrong with it.

    Of one with {peer} or {connection} it may be a part only.
    """
    pattern = pattern_of(server.endpoint.name)
    try:
        return await Backoff(1.0).keep_trying(lambda: stream_for(server, pattern), _is_being_made, _TRIES)
    except NotFoundError as error:
        if create is None or error.__cause__ is not None:
            raise
    name, replicas = check_stream(create)
    config = StreamConfig(name=name, subjects=[pattern], storage=StorageType.FILE, num_replicas=replicas)
    await server.ask(server.client.jetstream().add_stream(config), f"make the stream {name} at {server.endpoint}")
    log.warning(
        "made the stream %s for %s, with file storage and %d replica%s: for trials only, it keeps all messages",
        *(name, pattern, replicas, "s" if replicas > 1 else ""),
    )
    return await Backoff(1.0).keep_trying(lambda: stream_for(server, pattern), _is_being_made, _TRIES)


def _is_being_made(error: RingmainError) -> bool:
    """Tell whether a stream is listed already, and its servers know nothing of it yet."""
    return isinstance(error, NotFoundError) and isinstance(error.__cause__, nats.js.errors.NotFoundError)


async def stream_for(server: NatsServer, subject: str) -> Stream:
    """Return a stream that takes a subject; raise NotFoundError, with no cause where the servers say that none does."""
    what = f"a stream for {subject} at {server.endpoint}"
    context = server.client.jetstream()

    async def find() -> str | None:
        try:
            return str(await context.find_stream_name_by_subject(subject))
        except nats.js.errors.NotFoundError:
            return None

    name = await server.ask(find(), what)
    if name is None:
        remedy = f"make one (nats stream add EVENTS --subjects '{subject}'), have another take that too"
        raise NotFoundError(what, "there is none", f"{remedy} (nats stream edit), or for a trial give create_stream=")
    what = f"stream {name} at {server.endpoint}"
    info = await server.ask(context.stream_info(name), what)
    config = info.config
    if config.no_ack:
        why = "it acknowledges nothing (no_ack)"
        raise UsageError(what, why, f"turn that on: nats stream edit {name} --ack")
    stream = Stream(
        name, tuple(config.subjects or ()), _room_in(server, config, what), config.duplicate_window, chains=False
    )
    alone = info.cluster is None or info.cluster.name is None
    return stream._replace(chains=alone and takes(stream, pattern_of(server.endpoint.name)))


def _room_in(server: NatsServer, config: Any, what: str) -> int:
    most = int(server.client.max_payload)
    if config.max_msg_size is not None and config.max_msg_size > 0:
        most = min(most, config.max_msg_size)
    if most <= HEADERS:
        why = f"its messages have {most} bytes at most, and our headers may need {HEADERS}"
        raise UsageError(
            what, why, f"raise that: nats stream edit {config.name} --max-msg-size, or the server's max_payload"
        )
    return most - HEADERS

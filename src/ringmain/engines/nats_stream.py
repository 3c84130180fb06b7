"""The stream that takes what is published: looked for, or made for a trial; what it bears."""

import logging
import re
from typing import NamedTuple

import nats.js.errors
from nats.js.api import StorageType, StreamConfig

from ringmain.engines.nats_server import NatsServer
from ringmain.errors import NotFoundError, UsageError

log = logging.getLogger("ringmain")

# What the headers of a message take at most, which count for the server's max_payload too.
HEADERS = 1024
_STREAM_SHAPE = re.compile(r"(?P<name>[A-Za-z0-9_-]+)(?::(?P<replicas>[1-5]))?")
_PLACEHOLDERS = ("{peer}", "{connection}")


class Stream(NamedTuple):
    """A stream: how many bytes a message may have, and for how many seconds it remembers the ids of messages."""

    name: str
    max_message: int
    duplicate_window: float


def check_subject(subject: str) -> None:
    """Raise UsageError for a subject that nothing can be published to."""
    what = f"subject {subject!r}"
    rest = subject
    for placeholder in _PLACEHOLDERS:
        rest = rest.replace(placeholder, "x")
    if re.search(r"[{}]", rest):
        raise UsageError(what, "only {peer} and {connection} stand in braces", "choose one of these")
    if not all(rest.split(".")):
        raise UsageError(what, "an empty part", "write it as events.edge")
    if re.search(r"[*>\s]", rest):
        raise UsageError(what, "it has a wildcard", "write the subject itself, with {peer} or {connection}")


def check_stream(text: str) -> tuple[str, int]:
    """Return the name and the replicas of a stream that is to be made; raise UsageError."""
    match = _STREAM_SHAPE.fullmatch(text)
    if match is None:
        raise UsageError(f"create_stream={text}", "not understood", "write EVENTS, or EVENTS:3 for three replicas")
    return match["name"], int(match["replicas"] or 1)


def _pattern(subject: str) -> str:
    """Return a subject with the wildcard for what differs between connections."""
    return ".".join("*" if any(it in part for it in _PLACEHOLDERS) else part for part in subject.split("."))


async def open_stream(server: NatsServer, create: str | None) -> Stream:
    """Return the stream that takes the endpoint's subject, which `create` may make; raise what is wrong with it."""
    pattern = _pattern(server.endpoint.name)
    what = f"a stream for {pattern} at {server.endpoint}"
    context = server.client.jetstream()

    async def find() -> str | None:
        try:
            return str(await context.find_stream_name_by_subject(pattern))
        except nats.js.errors.NotFoundError:
            return None

    name = await server.ask(find(), what)
    if name is None:
        if create is None:
            remedy = f"make one (nats stream add EVENTS --subjects {pattern}), or for a trial give create_stream="
            raise NotFoundError(what, "there is none", remedy)
        name, replicas = check_stream(create)
        config = StreamConfig(name=name, subjects=[pattern], storage=StorageType.FILE, num_replicas=replicas)
        await server.ask(context.add_stream(config), f"make the stream {name} at {server.endpoint}")
        log.warning(
            "made the stream %s for %s, with file storage and %d replica%s: fit for a trial, it keeps all for ever",
            *(name, pattern, replicas, "s" if replicas > 1 else ""),
        )
    info = await server.ask(context.stream_info(name), f"stream {name} at {server.endpoint}")
    return Stream(name, _room_in(server, info.config.max_msg_size), info.config.duplicate_window)


def _room_in(server: NatsServer, max_msg_size: int | None) -> int:
    most = server.client.max_payload
    if max_msg_size is not None and max_msg_size > 0:
        most = min(most, max_msg_size)
    return int(most) - HEADERS

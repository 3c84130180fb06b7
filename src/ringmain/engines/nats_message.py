"""One message of a stream, and what ringmain has written beside its bytes."""

import re
from typing import Any, NamedTuple

from ringmain.outcome import Verdict


class Message:
    """One message: its bytes, its place in the stream, and when the server takes it for lost."""

    __slots__ = ("data", "due", "headers", "raw", "sequence", "subject")

    def __init__(self, raw: Any, due: float) -> None:
        self.raw = raw
        self.data: bytes = raw.data
        self.subject: str = raw.subject
        self.headers: dict[str, str] = raw.headers or {}
        self.sequence: int = raw.metadata.sequence.stream
        self.due = due


class Tag(NamedTuple):
    """Where a block comes from: the message's subject and sequence, and what `ringmain` wrote beside it.

    `connection` tells the connections of all ringmains apart, `peer` is its client, and `offset` bytes of what it sent
    lie before the block. Of a message that somebody else has published they are "", "" and 0.

    An empty block with a `verdict` ("ended", "truncated", "reset", "timed out" or "stopped") tells how the connection
    has ended, and that `size` bytes of it are in the stream; others who share the consumer may still have some of them.
    """

    subject: str
    sequence: int
    peer: str
    connection: str
    offset: int
    verdict: str = ""
    size: int = 0


def tag_of(message: Message) -> Tag:
    """Return what a message tells of its bytes. A stranger may have written anything there."""
    headers = message.headers
    connection, offset = headers.get("Ringmain-Connection", ""), _number(headers.get("Ringmain-Offset", ""))
    if not connection or offset is None:
        return Tag(message.subject, message.sequence, "", "", 0)
    verdict, size = headers.get("Ringmain-Verdict", ""), _number(headers.get("Ringmain-Bytes", ""))
    if message.data or verdict not in list(Verdict) or size is None:
        verdict, size = "", 0
    return Tag(message.subject, message.sequence, headers.get("Ringmain-Peer", ""), connection, offset, verdict, size)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,19}", text) else None

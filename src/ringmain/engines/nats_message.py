"""One message of a stream, and what ringmain has written beside its bytes."""

import re
from typing import Any, NamedTuple


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
    """

    subject: str
    sequence: int
    peer: str
    connection: str
    offset: int


def tag_of(message: Message) -> Tag:
    """Return what a message tells of its bytes. A stranger may have written anything there."""
    headers = message.headers
    connection, offset = headers.get("Ringmain-Connection", ""), headers.get("Ringmain-Offset", "")
    if not (connection and re.fullmatch("[0-9]{1,19}", offset)):
        return Tag(message.subject, message.sequence, "", "", 0)
    return Tag(message.subject, message.sequence, headers.get("Ringmain-Peer", ""), connection, int(offset))

"""Framings in plain Python: how content is framed, and where frames end, to compare with."""

import re
import struct
from typing import NamedTuple

DELIMITERS = {"nul": b"\0", "crlf": b"\r\n"}
LENGTHS = {
    f"length:{struct.calcsize(code)}{order}": sign + code
    for code in "BHIQ"
    for order, sign in (("be", ">"), ("le", "<"))
}
KINDS = ["octet-counting", *LENGTHS, *DELIMITERS]


class Frame(NamedTuple):
    """What came of one record: what stands in front of its content, that, and what ends it."""

    head: bytes
    content: bytes
    tail: bytes = b""

    def __bytes__(self) -> bytes:
        return b"".join(self)


class Cut(NamedTuple):
    """What is in a stream, and how it ends: whole, unfinished, bad or long, which is told at an offset."""

    frames: list[Frame]
    long: list[Frame]
    end: str = "whole"
    offset: int = 0


def framed(kind: str, content: bytes) -> bytes:
    """Return the content as a frame. Syslog's octet counting knows no empty ones; "<" begins a line there."""
    if kind in DELIMITERS:
        return content + DELIMITERS[kind]
    if kind in LENGTHS:
        return struct.pack(LENGTHS[kind], len(content)) + content
    return content + b"\n" if content.startswith(b"<") and b"\n" not in content else b"%d %b" % (len(content), content)


def cut(kind: str, data: bytes, max_record: int = 64 << 20, *, skips: bool = False) -> Cut:
    """Return what a loader makes of a stream that ends properly."""
    frames: list[Frame] = []
    long: list[Frame] = []
    at = 0
    while at < len(data):
        head, size, tail = _head(kind, data, at)
        if size < 0:
            return Cut(frames, long, "bad" if size == BAD else "unfinished", at)
        end = at + len(head) + size
        frame = Frame(head, data[at + len(head) : end - len(tail)], data[end - len(tail) : end])
        if len(head) + size > max_record or (not head and not tail and size >= max_record):
            if not skips:
                return Cut(frames, long, "long", at)
            long.append(frame)
        elif end <= len(data):
            frames.append(frame)
        if end > len(data):
            return Cut(frames, long, "unfinished", at)
        at = end
    return Cut(frames, long)


SHORT, BAD = -1, -2


def _head(kind: str, data: bytes, at: int) -> tuple[bytes, int, bytes]:
    """Return what stands in front of a frame, how much follows, and what that ends with."""
    delimiter = DELIMITERS.get(kind, b"\n" if kind == "octet-counting" and data[at : at + 1] == b"<" else b"")
    if delimiter:
        end = data.find(delimiter, at)
        return (b"", len(data) - at, b"") if end < 0 else (b"", end + len(delimiter) - at, delimiter)
    if kind in LENGTHS:
        head = data[at : at + struct.calcsize(LENGTHS[kind])]
        if len(head) < struct.calcsize(LENGTHS[kind]):
            return b"", SHORT, b""
        [size] = struct.unpack(LENGTHS[kind], head)
        return head, BAD if size >= (1 << 63) - 8 else size, b""
    if match := re.match(rb"([1-9][0-9]{0,9}) ", data[at : at + 11]):
        return match[0], int(match[1]), b""
    return b"", SHORT if re.fullmatch(rb"[1-9][0-9]{0,9}", data[at : at + 11]) else BAD, b""

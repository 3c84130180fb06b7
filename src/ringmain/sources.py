"""What `ringmain.load` is: a loader of the connections of an endpoint, or of a log."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack, get_overloads, overload

from ringmain.endpoint import Endpoint, is_log
from ringmain.flow.blocks import Flow, flow_for
from ringmain.keywords import documented
from ringmain.settings import (
    BLOCK_SIZE,
    LINGER,
    LONG_RECORDS,
    Framing,
    LogOptions,
    Options,
    Settings,
    check_kind,
    settings_for,
)

if TYPE_CHECKING:
    from ringmain.engines.nats_loader import LogLoader
    from ringmain.loader import Loader


@overload
def load(
    url: str,
    *,
    consumer: str,
    from_sequence: int | None = None,
    until_sequence: int | None = None,
    filter: str | None = None,
    credentials: str | None = None,
    delimiter: bytes = b"",
    framing: Framing | None = None,
    ring_size: int | None = None,
    **options: Unpack[LogOptions],
) -> "LogLoader": ...


@overload
def load(
    url: str,
    *,
    connect: bool = False,
    listen_once: bool = False,
    delimiter: bytes = b"",
    framing: Framing | None = None,
    ring_size: int | None = None,
    block_size: int = BLOCK_SIZE,
    max_record: int | None = None,
    long_records: Literal["raise", "skip"] = LONG_RECORDS,
    min_block: int = 1,
    linger: float = LINGER,
    copy: bool = False,
    max_connections: int = 1,
    receive_buffer: int | None = None,
    **options: Unpack[Options],
) -> "Loader": ...


@documented(Options)
def load(url: str, **options: Any) -> "Loader | LogLoader":
    r"""Receive from the endpoint `url`: listen there and serve one client after another, or `connect` to it.

    async with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
        async for block in loader:
            parse(block)

    It works with plain `with` and `for` too; an event loop that runs in this thread then stands still. A block is a
    read-only memoryview that owns its memory: keep it as long as you like. Once you release it (or let it go), the
    memory is received into again.

    Leaving the `with`, or `aclose()`, ends a connection properly (close_notify under TLS, FIN). Leaving it by an
    exception, or `abort()`, resets the peer. `loader.stop()` ends the iteration. A loader is opened once. Raises a
    `RingmainError` when the endpoint is malformed or cannot be opened, and, where there is only one connection, when
    that ends in any way but a proper end. A listener logs a warning and serves the next client.

    No block holds bytes of two connections; `loader.connections()` tells them apart. With `max_connections` above 1
    that many clients are served at once, and their records are merged: a block has whole records of any of them, those
    of each in order. `loader.tagged()` tells whose they are, `loader.connections()` hands out each connection by
    itself. If a connection ends properly, its last record is completed with a delimiter. A record that is cut off, or a
    frame, is dropped with a warning; an error of a connection is a warning too.

    With a `delimiter` every block ends at one, except the last of a connection. With `framing` every block holds whole
    frames as they came, and none is handed out in part: a connection that ends within one raises TruncatedError, one
    that sends something else raises ParseError. A record longer than a block makes it grow, up to `max_record`. A
    longer one ends the stream with RecordTooLongError once all before it was taken, or with `long_records="skip"` is
    skipped: the blocks around it stay whole and in order, `counters` has `skipped_records` and `skipped_bytes`, and
    the first one of a connection costs a warning. `loader.records()` iterates over single records.

    All blocks, those that you keep included, never have more than `ring_size` bytes, and with a `delimiter` or
    `framing` `max_record` more. A consumer that keeps as many and waits for more gets BlocksHeldError. A `for` keeps
    its last block while it waits: release it before (`with block:`) where two records may be longer than that. Merged
    records are handed out once they fill half a block, or `linger` seconds after the block before was ready, or
    once any connection has ended: one that comes alone is handed out at once.

    A `nats://host:4222/STREAM`, or `tls://`, is a stream of NATS JetStream (pip install 'ringmain[nats]'). Separate
    several servers by commas, and write user:password@ or token@ before the first. Each message is one block. It is
    acknowledged when the next one is asked for, and when the `with` is left properly. When that is left by an
    exception, all messages that are not acknowledged are given back; those of a process that was killed come again
    after 30 seconds, the consumer's ack_wait. So each message comes at least once. `tagged()` gives (tag, block) with
    the subject, sequence, peer, connection and offset; with an empty block it tells how a connection has ended, which
    is left out elsewhere. It takes the keywords `consumer` to `credentials`, `ring_size`, those of
    `ringmain.LogOptions`, and `delimiter` and `framing`: these tell where `records()` and feeds find records, and check
    nothing.

    The keywords, with their defaults:

    connect (False): connect to the endpoint instead of listening there, and end after that connection
    listen_once (False): end after the first connection
    max_connections (1): how many clients are served at once
    delimiter (b""): 1 to 16 bytes at which every block ends; of many connections b"\n" if there is no framing
    framing (None): "octet-counting" is syslog's (RFC 6587; a "<" in place of the count begins a line),
        "length:4be" a length of 1, 2, 4 or 8 bytes, highest first or "le", that counts what follows it; "nul" and
        "crlf" are delimiters
    ring_size (8 MiB, or 8 blocks): bytes that may wait before the peer has to. Of a NATS stream it is raised to two of
        its largest messages, and blocks that you keep do not count
    block_size (1 MiB): bytes of a block
    max_record (64 MiB, of many connections 1 MiB): bytes of the longest record, including its delimiter or size
    long_records ("raise"): what happens to a longer record; "skip" skips it
    min_block (1): bytes that a block has at least, unless `linger` passes or the connection ends
    linger (0.001): seconds that a byte may wait for others while data floods in, which saves much CPU; 0 is off
    copy (False): give copies of blocks, for those who keep many
    receive_buffer (None): size of each connection's receive buffer in the kernel (SO_RCVBUF); None lets it choose
    consumer (required for a NATS stream): the durable consumer; all readers of the same name share its messages
    from_sequence (None): the sequence number where a new consumer begins; None is the first message
    until_sequence (None): end the iteration once all readers are done with all messages up to there; None is never
    filter (None): a new consumer gets the messages of this subject only
    credentials (None): a file with a JWT and its seed, read once
    """
    if not is_log(url):
        return load_connections(url, **options)
    from ringmain.engines import nats_loader

    return nats_loader.load(url, **options)


_OF_CONNECTIONS = get_overloads(load)[-1]
_FLOW = inspect.signature(flow_for).parameters.keys() - {"merges", "small"}


def load_connections(url: str, **options: Any) -> "Loader":
    """Do what `load` does for an endpoint that is no log."""
    return asked_for(url, **options).loader()


class Asked(NamedTuple):
    """What `load` is asked for, with everything that can be checked before it listens: of that a loader is made."""

    endpoint: Endpoint
    settings: Settings
    flow: Flow
    new_flow: Callable[..., Flow]
    connect: bool
    listen_once: bool

    def loader(self) -> "Loader":
        """Import what serves connections, and return what does."""
        from ringmain.loader import Loader

        return Loader(*self)


def asked_for(url: str, *, connect: bool = False, listen_once: bool = False, **options: Any) -> Asked:
    """Check the keywords of `load_connections`; raise UsageError."""
    flow = {name: options.pop(name) for name in _FLOW & options.keys()}
    settings = settings_for(_OF_CONNECTIONS, Options, options)
    check_kind("connect", connect, bool)
    check_kind("listen_once", listen_once, bool)
    settings.check_count(connect=connect, listen_once=listen_once)
    new_flow = functools.partial(flow_for, **flow)
    merges = settings.max_connections > 1
    return Asked(Endpoint.parse(url), settings, new_flow(merges=merges), new_flow, connect, listen_once)

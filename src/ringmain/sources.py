"""What `ringmain.load` is: a loader of the connections of an endpoint, or of a log."""

from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from ringmain import loader
from ringmain.endpoint import is_log
from ringmain.loader import Loader
from ringmain.settings import BLOCK_SIZE, LINGER, LONG_RECORDS, Framing, LogOptions, Options

if TYPE_CHECKING:
    from ringmain.engines.nats_loader import LogLoader


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
) -> Loader: ...


def load(url: str, **options: Any) -> "Loader | LogLoader":
    r"""Receive from the endpoint `url`: listen there and serve one client after another, or with `connect` dial it.

    async with ringmain.load("tcp://127.0.0.1:8000", delimiter=b"\n") as loader:
        async for block in loader:
            parse(block)

    The same with plain `with` and `for`; an event loop that runs in this thread stands still meanwhile. A block is a
    read-only memoryview that owns its memory: keep it as long as you like, release it (or let it go) and the memory is
    received into again. With `copy` it is a copy instead, for those who keep many.

    With `max_connections` that many clients are served at once, and their records are merged: a block has whole records
    of any of them, those of each in order. `loader.tagged()` tells whose they are, `loader.connections()` hands out
    each connection by itself. The last record of a connection that ends properly is completed with a delimiter; one
    that is cut off, or a frame, is dropped and warned of, as is an error of a connection.

    Else no block holds bytes of two connections; `loader.connections()` tells them apart. With a `delimiter` of 1 to 16
    bytes (b"\n" where many are merged) every block ends at one, except the last of a connection. `framing` is for
    records that say how long they are: "octet-counting" is syslog's (RFC 6587; where a "<" stands instead of the count
    a line begins), "length:4be" a length of 1, 2, 4 or 8 bytes, highest first or "le", that counts what follows it;
    "nul" and "crlf" are delimiters. Every block then holds whole frames as they came, and none is handed out in part: a
    connection that ends within one raises TruncatedError, one that sends what no frame begins with ParseError.

    A record longer than a block makes it grow, up to `max_record` bytes (64 MiB; of many 1 MiB), all included. A longer
    one ends the stream with RecordTooLongError once all before it was taken, or with `long_records="skip"` is left out:
    the blocks around it stay whole and in order, `counters` tells of `skipped_records` and `skipped_bytes`, and the
    first of a connection is warned of.

    `ring_size` bytes (8 MiB, or as much as 8 blocks need) wait at most, in blocks of `block_size`; then the peer waits.
    With a `delimiter` or `framing` one record may be added to that: all blocks, those that you keep included, never
    have more than `ring_size` + `max_record` bytes. A consumer that keeps as many and waits for more gets
    BlocksHeldError. A `for` keeps its last block while it waits: release it before (`with block:`) where two records
    may be longer than that. The kernel has as much of each connection as it likes, or `receive_buffer` (SO_RCVBUF).

    While data floods in, a byte may wait up to `linger` seconds for others to be read with it, which saves much CPU; 0
    switches that off. A block has at least `min_block` bytes, unless `linger` passes or the connection ends. Merged
    records are handed out once they fill half a block, or `linger` seconds after the block before was to be had, or
    once any connection has ended: one that comes alone is handed out at once.

    Leaving the block ends a connection properly (close_notify under TLS, FIN); left by an exception it resets the peer.
    `loader.stop()` ends the iteration.

    A `nats://host:4222/STREAM`, or `tls://`, is a stream of NATS JetStream (pip install 'ringmain[nats]'); commas
    stand between several servers, user:password@ or token@ before the first. `consumer` names who reads: all who give
    the same name share the messages. Each message is one block, which is acknowledged when the next one is asked for,
    and when the block is left properly; left by an exception, all that is not acknowledged is given back, and what a
    process that is killed had comes again once the consumer's time for it is over (ack_wait, 30 seconds): each message
    comes at least once. `tagged()` gives (tag, block) with the subject, sequence, peer, connection and offset. A
    consumer that is new begins at `from_sequence`, and has the messages of the subject `filter` only. With
    `until_sequence` the iteration ends once everybody is done with all up to there. `ring_size` bytes wait here at
    most, or two of the largest messages; blocks that you keep are not among them. `delimiter` and `framing` tell where
    `records()` and feeds find records, and check nothing. `credentials` is a file with a JWT and its seed, read once.
    The other keywords are those of `ringmain.LogOptions`.

    `listen_once` ends after the first connection, `connect` implies it. For the other keywords see `ringmain.Options`.
    Raises a `RingmainError` when the endpoint is malformed or cannot be opened, and, where there is but one
    connection, when that ends in any way but a proper end. A listener logs a warning and serves the next client.
    """
    if not is_log(url):
        return loader.load(url, **options)
    from ringmain.engines import nats_loader

    return nats_loader.load(url, **options)

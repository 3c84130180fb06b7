"""What `ringmain.save` and `ringmain.relay` are: bytes to an endpoint, or records into a log."""

from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from ringmain import relayer, saver
from ringmain.endpoint import is_log
from ringmain.keywords import documented
from ringmain.relayer import Relayer
from ringmain.saver import Saver
from ringmain.settings import (
    LINGER,
    LONG_RECORDS,
    MAX_IN_FLIGHT,
    MESSAGE_SIZE,
    ConnectionOptions,
    Framing,
    Options,
    Settings,
    TlsSettings,
)

if TYPE_CHECKING:
    from ringmain.engines.nats_relay import LogRelayer
    from ringmain.engines.nats_save import LogSaver


@overload
def save(
    url: str,
    *,
    listen: bool = False,
    listen_once: bool = False,
    max_connections: int = Settings.max_connections,
    slow: Literal["wait", "drop"] = Settings.slow,
    client_buffer: int = Settings.client_buffer,
    reconnect: bool = False,
    delimiter: bytes = b"",
    **options: Unpack[Options],
) -> Saver: ...


@overload
def save(
    url: str,
    *,
    peer: str,
    credentials: str | None = None,
    create_stream: str | None = None,
    delimiter: bytes = b"",
    framing: Framing | None = None,
    long_records: Literal["raise", "skip"] = LONG_RECORDS,
    message_size: int = MESSAGE_SIZE,
    max_in_flight: int = MAX_IN_FLIGHT,
    **options: Unpack[Options],
) -> "LogSaver": ...


@documented(Options)
def save(url: str, **options: Any) -> "Saver | LogSaver":
    r"""Send to the endpoint `url`: connect to it, or with `listen` wait for clients there, one at a time.

    async with ringmain.save("tcp://127.0.0.1:8000") as saver:
        await saver.write(buffer)

    It works without `async` and `await` too; an event loop that runs in this thread then stands still. Leaving the
    `with`, or `aclose()`, sends FIN (and close_notify under TLS) and waits until the peer's kernel has acknowledged
    every byte, and until a TLS 1.3 server that asks for our certificate has answered: with its first record, its end or
    an alert, 5 s at most. Leaving it by an exception, or `abort()`, resets the peer, so that a part never looks like
    the whole; so does leaving it while another task still writes, which raises SendError. A saver is opened once. A
    listener whose client leaves logs a warning and goes on with the next client where the last one left. Raises a
    `RingmainError` on malformed arguments, when the endpoint cannot be opened, and when its only connection breaks.

    Of many clients (`max_connections`) each gets all that is written from the first `write` on that begins after it was
    let in, once and in order. One that is lost costs a warning, which says how much is known not to have reached it:
    nobody else gets that. A write waits for a client where there is none, and again if all who had a part of it are
    lost. With `slow="wait"` it returns when the kernel has all for every client. With "drop" it returns when up to
    `client_buffer` bytes are due to each. A client that has no room for more is reset with a warning as soon as another
    one has taken all; while everybody is behind, the write waits. What is due is kept once for all: `client_buffer`
    bytes, or 1 MiB if that is more.

    With `reconnect` the loss of a connection is a warning, and the saver connects again: for ever, after pauses that
    grow from 100 ms to 30 s, or `retry` times in a row if that is given. The new connection begins with what the
    peer's kernel is not known to have acknowledged. So bytes may come twice, and none is left out except those that
    the peer's kernel had and its program did not read. The first connection is made as without `reconnect`. A failed
    handshake ends the saver, unless the peer is lost within it.

    A `nats://host:4222/SUBJECT`, or `tls://`, is where a stream of NATS JetStream takes messages (pip install
    'ringmain[nats]'). Separate several servers by commas, and write user:password@ or token@ before the first. A
    `write` publishes the records that it completes. It takes the keywords `peer` to `max_in_flight`, `delimiter`, and
    those of `ringmain.Options`. Leaving the `with` completes the last record, stores an empty message that tells of the
    end, and returns once the stream has all, each record once and in order. Leaving it by an exception gives up what is
    not acknowledged, and no message tells of the end. The stream must exist.

    The keywords, with their defaults:

    listen (False): wait for clients at the endpoint instead of connecting to it
    listen_once (False): do that and end after the first client; losing it is an error
    max_connections (1): how many clients a listener serves at once
    slow ("wait"): with many clients, a slow one makes all wait; with "drop" it is reset
    client_buffer (16 MiB): bytes that may be due to a client before "drop" does so
    reconnect (False): connect again after a loss
    delimiter (b""): 1 to 16 bytes at which records end. After a loss `reconnect` goes on with a whole record, which may
        have come in part or whole before. To a NATS stream it is b"\n" if there is no framing
    peer (required by type checkers for a NATS stream): the sender that messages name, and that replaces {peer} in the
        subject; "" is the name of this machine
    credentials (None): a file with a JWT and its seed
    create_stream (None): "NAME", or "NAME:3" with replicas: create this stream, for a trial
    framing (None): how records tell where they end, as of `ringmain.load`
    long_records ("raise"): what happens to a record that is too large for a message; "skip" skips it
    message_size (256 KiB): bytes of a message, unless one record is longer
    max_in_flight (16 MiB): bytes that may be unacknowledged; then a write waits, also while the servers are away
    """
    if not is_log(url):
        return saver.save(url, **options)
    from ringmain.engines import nats_save

    return nats_save.save(url, **options)


@overload
def relay(
    source: str,
    destination: str,
    *,
    connect: bool = False,
    listen: bool = False,
    listen_once: bool = False,
    one_way: bool = False,
    source_tls: TlsSettings | None = None,
    destination_tls: TlsSettings | None = None,
    accept_proxy: bool = False,
    send_proxy: Literal["v1", "v2"] | None = None,
    linger: float = LINGER,
    max_connections: int = 1,
    **options: Unpack[ConnectionOptions],
) -> Relayer: ...


@overload
def relay(
    source: str,
    destination: str,
    *,
    reconnect: bool,
    delimiter: bytes = b"",
    connect: bool = False,
    one_way: bool = False,
    source_tls: TlsSettings | None = None,
    destination_tls: TlsSettings | None = None,
    accept_proxy: bool = False,
    send_proxy: Literal["v1", "v2"] | None = None,
    linger: float = LINGER,
    max_connections: int = 1,
    **options: Unpack[ConnectionOptions],
) -> Relayer: ...


@overload
def relay(
    source: str,
    destination: str,
    *,
    delimiter: bytes,
    connect: bool = False,
    listen_once: bool = False,
    source_tls: TlsSettings | None = None,
    destination_tls: TlsSettings | None = None,
    accept_proxy: bool = False,
    linger: float = LINGER,
    max_connections: int = 1,
    credentials: str | None = None,
    create_stream: str | None = None,
    framing: Framing | None = None,
    long_records: Literal["raise", "skip"] = LONG_RECORDS,
    message_size: int = MESSAGE_SIZE,
    max_in_flight: int = MAX_IN_FLIGHT,
    **options: Unpack[ConnectionOptions],
) -> "LogRelayer": ...


@documented(ConnectionOptions)
def relay(source: str, destination: str, **options: Any) -> "Relayer | LogRelayer":
    r"""Relay between two endpoints: listen at `source`, and for each client in turn connect to `destination`.

    await ringmain.relay("tcp://:9000", "tcps://host:4000", destination_tls=ringmain.TlsSettings(cafile="ca.pem"))

    async with ringmain.relay("tcp://127.0.0.1:0", "tcp://host:4000") as relayer:
        print(relayer.port)
        await relayer.serve()

    Without `async`: `with`, and `relayer.serve()`; a running event loop then stands still. If one end listens, each of
    its clients gets a connection of its own to the other end. If neither does, one connection to each is relayed. With
    `max_connections` many clients are served at once: none waits for another, nor for its connection to the other end.
    Where both ends listen, their clients are paired in the order in which they come. A tcps:// end is
    encrypted. A relayer is opened once.

    Bytes go both ways, or with `one_way` from the source to the destination only; answers are dropped. When one side
    ends, the other is told (FIN, close_notify) and may go on sending. Any other end of a side, also a TLS stream
    without close_notify, resets the other; so does leaving the `with`. A side that takes nothing makes only its own
    direction wait, with no more memory than a ring (8 MiB; with many clients 1 MiB each). After `idle_timeout` without
    a byte either way both sides are reset. Raises a `RingmainError` when an endpoint is malformed or cannot be opened,
    and when its only connection breaks. A listener logs a warning and serves the next client.

    With `reconnect`, which needs `one_way`, the loss of a destination is a warning, and the relayer connects to it
    again as `ringmain.save` describes, `delimiter` included. What was not acknowledged goes to the next connection, the
    source waits meanwhile, and the stream ends as the source ends it. With `connect` the relayer also connects to the
    source again however its connection has ended, and each of its connections gets one of the destination's.

    A `nats://` or `tls://` destination is the subject of a NATS JetStream stream, as for `save`: what clients send goes
    into it as messages of whole records of one client each. A type checker knows the `LogRelayer` by `delimiter`, b""
    included. A client that has ended properly is answered with a proper end once the stream has acknowledged all that
    it sent, else it is reset. Many have shorter records: all together have 256 MiB for those that are longer than a
    block. Nothing goes back, and `listen`, `one_way`, `send_proxy` and `reconnect` have no meaning.

    The keywords, with their defaults:

    connect (False): connect to the source instead of listening there
    listen (False): wait for clients at the destination instead of connecting to it
    listen_once (False): end after the first client
    one_way (False): from the source to the destination only
    source_tls (None): a `ringmain.TlsSettings` for a tcps:// source; None is one with the defaults
    destination_tls (None): the same for a tcps:// destination
    accept_proxy (False): expect a PROXY protocol header of either version from clients at the source, before TLS
    send_proxy (None): send one of version "v1" or "v2" to the destination, before TLS
    linger (0.001): seconds that a byte may wait for others while data floods in, which saves much CPU; 0 is off
    max_connections (1): how many clients are served at once, each with a connection of its own to the other side
    reconnect (False): connect again after a loss
    delimiter (b""): 1 to 16 bytes at which records end, for `reconnect`; to a NATS stream b"\n" if there is no framing
    credentials (None): a file with a JWT and its seed
    create_stream (None): "NAME", or "NAME:3" with replicas: create this stream, for a trial
    framing (None): how records tell where they end, as of `ringmain.load`
    long_records ("raise"): what happens to a record that is too large for a message; "skip" skips it
    message_size (256 KiB): bytes of a message, unless one record is longer
    max_in_flight (16 MiB): bytes that may be unacknowledged; then all wait, also while the servers are away
    """
    if not is_log(destination):
        return relayer.relay(source, destination, **options)
    from ringmain.engines import nats_relay

    return nats_relay.relay(source, destination, **options)

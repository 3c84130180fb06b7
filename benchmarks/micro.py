"""The core by itself, one operation each: what `test_micro.py` times and `instructions.py` counts."""

import os
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ringmain._counters import Counters
from ringmain._plain_receiver import PlainReceiver
from ringmain._pump import Pump
from ringmain._pump_loop import PumpLoop
from ringmain._receiver import Receiver
from ringmain._ring import Ring
from ringmain._tls import Session
from ringmain._tls_receiver import TlsReceiver

BLOCK = 256 << 10
PIECE = 32 << 10  # what a socket pair or a pipe takes at once everywhere
LINE = b'{"event_type":"flow","flow_id":7919,"src_ip":"192.0.2.1","dest_port":443,"bytes":31}\n'
Turn = Callable[[], object]


class _Link:
    """A link whose loop never turns: each operation is a callback, called by hand."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop: Any = self
        self.fd = sock.fileno()
        self.session = Session(sock) if isinstance(sock, ssl.SSLSocket) else None

    def _ignore(self, *_: object) -> None: ...

    watch_readable = ignore_readable = when_writable = call_soon = call_soon_threadsafe = _ignore


def _fill(ring: Ring, data: bytes) -> None:
    view = ring.reserve()
    assert view is not None
    view[: len(data)] = data
    ring.commit(len(data))


def reserve_and_commit(_: ExitStack) -> Turn:
    """Do one read's worth of bookkeeping: claim a window, declare some of it filled, take that out."""
    ring = Ring(8 << 20, BLOCK)

    def turn() -> None:
        ring.reserve()
        ring.commit(64)
        ring.take()

    return turn


def reserve_alone(_: ExitStack) -> Turn:
    """Reserve again and again, which may be done and must cost nothing."""
    return Ring(8 << 20, BLOCK).reserve


def take_when_there_is_nothing(_: ExitStack) -> Turn:
    """Ask for a block that is not there, as a consumer does that is faster than the network."""
    return Ring(8 << 20, BLOCK).take


def hand_out_a_block_and_take_it_back(_: ExitStack) -> Turn:
    """See a whole block of 256 KiB from claim to release; the bytes themselves are not touched."""
    ring = Ring(8 << 20, BLOCK)

    def turn() -> None:
        ring.reserve()
        ring.commit(BLOCK)
        block = ring.take()
        assert block is not None
        block.release()

    return turn


def cut_at_the_last_newline(_: ExitStack) -> Turn:
    """Cut a block of lines whose last one is incomplete: find the cut, hand out, carry the rest over."""
    ring = Ring(8 << 20, BLOCK, b"\n")
    data = (LINE * (BLOCK // len(LINE) + 1))[: BLOCK - 128]

    def turn() -> None:
        _fill(ring, data)
        block = ring.take()
        assert block is not None
        block.release()
        ring.drop()

    return turn


def look_for_a_newline_that_is_not_there(_: ExitStack) -> Turn:
    """Search a whole block that has no delimiter: the worst case of a cut."""
    ring = Ring(8 << 20, BLOCK, b"\n")
    data = b"x" * (BLOCK - 128)

    def turn() -> None:
        _fill(ring, data)
        assert ring.take() is None
        ring.drop()

    return turn


def _receive(receiver: Receiver, send: Callable[[bytes], object]) -> Turn:
    receiver.start()
    piece = bytes(PIECE)

    def turn() -> None:
        send(piece)
        receiver.on_readable()
        block = receiver.take()
        assert block is not None
        assert len(block) == PIECE
        block.release()

    return turn


def receive_plain(stack: ExitStack) -> Turn:
    """Receive 32 KiB from a socket into a block, and take it; without a low-water mark."""
    ours, peer = (stack.enter_context(sock) for sock in socket.socketpair())
    ours.setblocking(False)
    receiver = PlainReceiver(_Link(ours), Ring(8 << 20, BLOCK), Counters(), 0.0)
    stack.callback(receiver.stop)
    return _receive(receiver, peer.sendall)


def receive_tls(stack: ExitStack) -> Turn:
    """Receive 32 KiB in two records of TLS 1.3, decrypted into a block, and take it."""
    ours, peer = _handshaken(stack)
    receiver = TlsReceiver(_Link(ours), Ring(8 << 20, BLOCK), Counters(), 0.0)
    stack.callback(receiver.stop)
    return _receive(receiver, peer.sendall)


def _handshaken(stack: ExitStack) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    import trustme

    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trustme.CA().issue_cert("localhost").configure_cert(server)
    server.num_tickets = 0
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    pair = [stack.enter_context(sock) for sock in socket.socketpair()]
    for sock in pair:
        sock.setblocking(False)
    ours = server.wrap_socket(pair[0], server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False)
    peer = client.wrap_socket(pair[1], do_handshake_on_connect=False)
    waiting = [peer, ours]
    while waiting:
        for sock in list(waiting):
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(sock)
    return stack.enter_context(ours), stack.enter_context(peer)


def pump_a_file_to_a_pipe(stack: ExitStack) -> Turn:
    """Send 32 KiB of a file by the kernel path: a pump from its making to its end."""
    path = Path(stack.enter_context(TemporaryDirectory())) / "file"
    path.write_bytes(bytes(PIECE))
    file = stack.enter_context(path.open("rb"))
    source, sink = os.pipe()
    stack.callback(os.close, source)
    stack.callback(os.close, sink)

    def turn() -> None:
        pump = Pump(file.fileno(), sink, Counters(), offset=0)
        PumpLoop(lambda run: run()).add(pump, lambda: None)
        assert pump.counters.bytes_out == PIECE
        os.read(source, PIECE)

    return turn


WORKLOADS: dict[str, Callable[[ExitStack], Turn]] = {
    make.__name__: make
    for make in (
        reserve_and_commit,
        reserve_alone,
        take_when_there_is_nothing,
        hand_out_a_block_and_take_it_back,
        cut_at_the_last_newline,
        look_for_a_newline_that_is_not_there,
        receive_plain,
        receive_tls,
        pump_a_file_to_a_pipe,
    )
}

"""Receivers that others stop, close and collect while they are at it."""

import asyncio
import gc
import random
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Certificates

from ringmain._counters import Counters
from ringmain._plain_receiver import PlainReceiver
from ringmain._receiver import Receiver
from ringmain._ring import Ring
from ringmain._tls import Session
from ringmain._tls_receiver import TlsReceiver
from ringmain.net.link import Link

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_receiver_may_be_taken_apart_after_the_blocks_that_it_waits_for(run: Run) -> None:
    async def receive(ring: Ring, kept: list[Any], count: int) -> Receiver:
        """Take and keep so many blocks of a connection."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for sock in (ours, theirs):
                sock.setblocking(False)
            theirs.send(bytes(100_000))
            receiver = PlainReceiver(Link(ours, "the peer"), ring, Counters(), 0.0)
            receiver.start()
            while len(kept) < count or (count == 4 and not receiver.paused):
                await asyncio.sleep(0)
                while len(kept) < count and (block := receiver.take()) is not None:
                    kept.append(block)
            if not receiver.paused:
                receiver.stop()
            return receiver

    async def main() -> None:
        kept: list[Any] = []
        ring = Ring(4 * 4096, 4096)
        await receive(ring, kept, 2)
        kept += [await receive(ring, kept, 4), kept]  # the collector begins with what is older than the receiver
        assert kept[-2].paused
        del kept, ring
        gc.collect()
        for _ in range(3):  # where it would go on, now that a block is free
            await asyncio.sleep(0)

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


class Unwatched:
    """A link whose loop calls nothing, so that threads may share it."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop: Any = self
        self.fd = sock.fileno()
        self.session = Session(sock) if isinstance(sock, ssl.SSLSocket) else None

    def ignore(self, *_: object) -> None: ...

    watch_readable = when_writable = ignore_readable = call_soon = call_soon_threadsafe = ignore


def test_a_tls_receiver_may_be_stopped_and_closed_by_another_thread_while_it_decrypts(
    certificates: Certificates,
) -> None:
    to_client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    to_client.load_cert_chain(certificates.server)
    to_server = ssl.create_default_context(cafile=str(certificates.ca))
    chance = random.Random(1)

    def send(sock: socket.socket) -> None:
        try:
            with to_client.wrap_socket(sock, server_side=True) as tls:
                while True:
                    tls.sendall(bytes(1 << 20))
        except OSError:
            pass  # it was closed

    for _ in range(50):
        ours, theirs = socket.socketpair()
        sender = threading.Thread(target=send, args=[theirs])
        sender.start()
        tls = to_server.wrap_socket(ours, server_hostname="localhost", suppress_ragged_eofs=False)
        tls.setblocking(False)
        receiver = TlsReceiver(Unwatched(tls), Ring(8 << 20, 1 << 20), Counters(), 0.0)
        receiver.start()
        timer = threading.Timer(chance.uniform(0, 0.01), lambda of=receiver, at=tls: (of.stop(), at.close()))
        timer.start()
        while receiver.verdict is None:
            receiver.on_readable()
            while (block := receiver.take()) is not None:
                block.release()
        timer.join()
        sender.join()
        assert receiver.verdict == "stopped"


class Cycle:
    """Call something when the collector comes to it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.itself, self.call = self, call

    def __del__(self) -> None:
        self.call()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_receiver_may_be_stopped_by_the_collector_that_making_a_block_calls(
    certificates: Certificates, tls: bool
) -> None:
    ours, theirs = socket.socketpair()
    if tls:
        to_client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        to_client.load_cert_chain(certificates.server)
        to_server = ssl.create_default_context(cafile=str(certificates.ca))
        with ThreadPoolExecutor() as pool:
            wrapping = pool.submit(to_client.wrap_socket, theirs, server_side=True)
            ours = to_server.wrap_socket(ours, server_hostname="localhost", suppress_ragged_eofs=False)
            theirs = wrapping.result()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"for nobody")
        receiver = (TlsReceiver if tls else PlainReceiver)(Unwatched(ours), Ring(8 << 20, 1 << 20), Counters(), 0.0)
        receiver.start()
        gc.collect()
        gc.disable()
        Cycle(receiver.stop)
        before = gc.get_threshold()
        gc.set_threshold(1)
        gc.enable()
        try:
            receiver.on_readable()
        finally:
            gc.set_threshold(*before)
        assert receiver.verdict == "stopped"
        if sys.version_info < (3, 12):  # from then on the collector runs between two instructions of Python only
            assert receiver.counters.bytes_in == 0

"""TLS peers that want an answer before more of theirs can be read, while their socket takes none."""

import _ssl
import asyncio
import contextlib
import ctypes
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import peers
import pytest
from conftest import Certificates
from merging import Sockets, Sums, merger, until

from ringmain._counters import Counters
from ringmain._ring import Ring

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def ask_for_key_update(sock: ssl.SSLSocket) -> None:
    """Send a key update that wants one in return, which Python has no word for."""
    library = ctypes.CDLL(_ssl.__file__)
    # PySSLSocket: the head of an object, the socket, the connection.
    inside = id(sock._sslobj) + 16 + ctypes.sizeof(ctypes.c_void_p)  # type: ignore[attr-defined]
    connection = ctypes.c_void_p.from_address(inside)
    assert library.SSL_key_update(connection, 1) == 1
    assert library.SSL_do_handshake(connection) == 1


def fill(sock: socket.socket) -> int:
    """Send below TLS until the kernel takes no more; return how much."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += socket.socket.send(sock, b"?" * 4096)
    return sent


def is_received(sock: socket.socket) -> bool:
    """Tell whether the other side's kernel has all that was sent."""
    return peers.unacknowledged(sock) == 0


@pytest.mark.parametrize("then", ["reads", "is reset", "is stopped"])
def test_a_peer_that_takes_no_answer_is_not_read_and_keeps_nobody_waiting(
    run: Run, certificates: Certificates, then: str
) -> None:
    async def main() -> None:
        sums, sent, filled = Sums(), b"", 0
        merging = merger(Ring(1 << 16, 1 << 14))
        with Sockets(certificates) as sockets:
            (peer, link), (other_peer, other_link) = sockets.connect(tls=True, loose=True), sockets.connect()
            assert isinstance(peer, ssl.SSLSocket)
            member, other = (sums.watch(merging.add(it, Counters())) for it in (link, other_link))

            async def pass_on(number: int) -> None:
                """Take a record of the other peer, by when whatever of the first can be read was."""
                before = sums.sizes[other]
                other_peer.sendall(b"%d\n" % number)
                while sums.sizes[other] == before:
                    await merging.wait()
                    while sums.take(merging):
                        pass

            for number in range(500):  # the kernel takes more once it has passed some on
                filled += fill(link.sock)
                ask_for_key_update(peer)
                peer.sendall(b"record %d\n" % number)
                sent += b"record %d\n" % number
                await until(lambda: is_received(peer) and link.unread() == 0)
                await pass_on(number)
                await pass_on(number)
                if member.counters.bytes_in < len(sent):
                    break
            read = member.counters.bytes_in
            assert read < len(sent)
            assert member.verdict is None
            for number in range(20):
                await pass_on(number)
            assert member.counters.bytes_in == read
            if then == "reads":

                def drain() -> None:
                    left = filled
                    while left:
                        left -= len(socket.socket.recv(peer, min(left, 1 << 16)))

                await asyncio.to_thread(drain)
                more = b"and more\n" * 10_000
                sockets.send(peer, more)
                other_peer.shutdown(socket.SHUT_WR)
                await sums.take_all(merging)
                assert sums.digests[member].hexdigest() == peers.sha256(sent + more)
                assert member.verdict == "ended"
            else:
                if then == "is reset":
                    peers.close_with_reset(peer)
                else:
                    member.stop()
                    peer.close()
                other_peer.shutdown(socket.SHUT_WR)
                await sums.take_all(merging)
                assert member.verdict == ("reset" if then == "is reset" else "stopped")
                assert sums.digests[member].hexdigest() == peers.sha256(sent[:read])
        merging.close()

    run(main())

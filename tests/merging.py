"""Many connections into one merger: what they send, who sends it, and what came of each."""

import asyncio
import contextlib
import hashlib
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers
from conftest import Certificates

from ringmain._cutter import Cutter
from ringmain._delimiter import Delimiter
from ringmain._member import Member
from ringmain._merge import Merger
from ringmain._ring import Ring
from ringmain.net.link import Link


def records(seed: int, count: int, sizes: list[int], delimiter: bytes = b"\n") -> list[bytes]:
    """Return records of these sizes, the delimiter not counted, in any order."""
    chance = random.Random(seed)
    return [chance.randbytes(chance.choice(sizes)).replace(delimiter[-1:], b"_") + delimiter for _ in range(count)]


def merger(ring: Ring, cutter: Cutter | bytes = b"\n", max_record: int = 4 << 20, **options: Any) -> Merger:
    """Return a merger of the running loop."""
    cutter = Delimiter(cutter) if isinstance(cutter, bytes) else cutter
    return Merger(asyncio.get_running_loop(), ring, cutter, max_record, **options)


class Sockets:
    """Both ends of connections; ours do not block, and are closed at the end."""

    def __init__(self, certificates: Certificates | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self._certificates = certificates
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Sockets":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for thread in self._threads:
            thread.join(peers.TIMEOUT)
            assert not thread.is_alive()

    def connect(self, *, tls: bool = False, loose: bool = False) -> tuple[socket.socket, Link]:
        """Return the peer's end and the link at ours; a peer that is `loose` is closed by who asked for it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = peers.connect(listener.getsockname()[1])
            ours, _ = listener.accept()
        if tls:
            assert self._certificates is not None
            to_client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            to_client.load_cert_chain(self._certificates.server)
            to_client.num_tickets = 0
            to_server = ssl.create_default_context(cafile=str(self._certificates.ca))
            with ThreadPoolExecutor() as pool:
                wrapping = pool.submit(to_server.wrap_socket, peer, server_hostname="localhost")
                ours = to_client.wrap_socket(ours, server_side=True, suppress_ragged_eofs=False)
                peer = wrapping.result()
        ours.setblocking(False)
        link = Link(ours, "the peer")
        self._stack.callback(link.close)
        if not loose:
            self._stack.enter_context(peer)
        return peer, link

    def send(self, peer: socket.socket, data: bytes, chance: random.Random | None = None) -> None:
        """Send data on a thread, in pieces of any size where there is chance, and then a proper end."""

        def run() -> None:
            with contextlib.suppress(OSError), peer:  # the test may be over
                view = memoryview(data)
                while len(view):
                    size = len(view) if chance is None else chance.choice([1, 10, 1000, 100_000])
                    peer.sendall(view[:size])
                    view = view[size:]
                if isinstance(peer, ssl.SSLSocket):
                    peer.unwrap()

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()


class Sums:
    """What came of each member."""

    def __init__(self) -> None:
        self.digests: dict[Member, Any] = {}
        self.sizes: dict[Member, int] = {}
        self.ended: list[Member] = []

    def watch(self, member: Member) -> Member:
        """Count a member from its beginning on."""
        self.digests[member], self.sizes[member] = hashlib.sha256(), 0
        member.on_end = lambda: self.ended.append(member)
        return member

    def take(self, merging: Merger, end: bytes = b"\n") -> bool:
        """Take what comes next; False where there is nothing."""
        found = merging.take_tagged()
        if found is None:
            return False
        member, view = found
        assert view[-len(end) :] == end
        self.count(member, view)
        view.release()
        return True

    def count(self, member: Member, view: memoryview) -> None:
        """Account for bytes of a member."""
        self.digests[member].update(view)
        self.sizes[member] += len(view)

    async def take_all(self, merging: Merger, end: bytes = b"\n") -> None:
        """Take until all members have ended."""
        while True:
            if self.take(merging, end):
                continue
            if len(self.ended) == len(self.digests):
                return
            await merging.wait()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is true; the test's own limit ends it."""
    while not condition():  # noqa: ASYNC110 - of state that tells nobody
        await asyncio.sleep(0)


def taken(merging: Merger) -> bytes:
    """Return all that there is to take right now."""
    got = b""
    while (view := merging.take()) is not None:
        with view:
            got += view
    return got


def every_split(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield both parts of data, for each place where it can be split."""
    for size in range(1, len(data)):
        yield data[:size], data[size:]

"""What ringmain is measured against in the same rounds: Python's own sockets, on a thread, with nothing clever."""

import asyncio
import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TypeVar

from ringmain._counters import Counters
from ringmain.bench.engines import Budget
from ringmain.bench.meter import Meter
from ringmain.bench.plan import Plan
from ringmain.net.link import Link

Result = TypeVar("Result")

_WINDOW = 256 << 10


async def receive(_: Plan, link: Link, __: memoryview, counters: Callable[[Counters], Meter], position: int) -> None:
    """Receive to the end of a connection, and close it."""
    count = Counters()
    meter = counters(count)
    window = bytearray(_WINDOW)

    def work() -> None:
        while size := _until_done(link.sock, lambda: link.sock.recv_into(window)):
            count.bytes_in += size
            count.reads += 1
        _unwrap(link.sock)

    await _on_thread(link.sock, work)
    meter.end(position)
    link.close()


async def send(
    plan: Plan, link: Link, payload: memoryview, counters: Callable[[Counters], Meter], position: int
) -> None:
    """Send what the plan says, `payload` in each message, end the connection properly, and close it."""
    count = Counters()
    meter = counters(count)
    budget = Budget(plan)

    def work() -> None:
        while True:
            size, pause = budget.take()
            budget.pause(pause)
            if size == 0:
                return
            link.sock.sendall(payload[:size])
            count.bytes_out += size
            count.writes += 1

    def finish() -> None:
        if not _unwrap(link.sock):
            link.sock.shutdown(socket.SHUT_WR)
            link.sock.recv(1)  # the end of the other side, which has everything then

    await _on_thread(link.sock, work, budget.stop)
    meter.end(position)
    await _on_thread(link.sock, finish)
    link.close()


def _until_done(sock: socket.socket, call: Callable[[], Result]) -> Result:
    """Call what may find nothing to read, until it has: what TLS reads by never waits (`_read_ahead`)."""
    while True:
        try:
            return call()
        except ssl.SSLWantReadError:
            arrival = select.poll()
            arrival.register(sock, select.POLLIN)
            arrival.poll()


def _unwrap(sock: socket.socket) -> bool:
    """End TLS both ways, and wait for the other side's end; False where there is none."""
    if not isinstance(sock, ssl.SSLSocket):
        return False
    _until_done(sock, sock.unwrap)
    return True


async def _on_thread(sock: socket.socket, work: Callable[[], None], stop: Callable[[], None] = lambda: None) -> None:
    """Let a thread use the socket, and wait for it; when cancelled, break the connection off and `stop` its pauses."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    errors: list[OSError] = []

    def run() -> None:
        try:
            sock.setblocking(True)
            work()
        except OSError as error:
            errors.append(error)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=run, name="ringmain-bench-reference", daemon=True).start()
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        stop()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        await done
        raise
    if errors:
        raise errors[0]

"""Load-test someone else's receiver with a file in a loop, or someone else's outflow, and tell what got through."""

import asyncio
import contextlib
import functools
import math
import mmap
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from ringmain._records import after
from ringmain._ring import Ring
from ringmain.bench.engines import Budget
from ringmain.bench.plan import Plan, interval_for
from ringmain.bench.replay_result import Test
from ringmain.bench.tcp_info import bytes_acknowledged
from ringmain.endpoint import Endpoint
from ringmain.errors import InputError, TimedOutError, reason
from ringmain.flow.blocks import Flow
from ringmain.flow.idle_timeout import Deadline
from ringmain.flow.inflow import Inflow
from ringmain.flow.outflow import Outflow
from ringmain.net.dial import dial
from ringmain.net.failures import failure_of
from ringmain.net.gate import listen
from ringmain.net.link import Link
from ringmain.outcome import Verdict
from ringmain.settings import BLOCK_SIZE, LINGER, RING_SIZE, Settings

_NEWLINE = 10
# How far a paced sender may run ahead after it could not keep up, in seconds.
_BURST = 0.1
# A sender whose kernel takes everything at once lets others have the loop this often.
_TURN = 0.01
# What a paced sender waits at least, since timers are no finer, and at most, since the peer may leave meanwhile.
_LEAST_PAUSE = 0.001
_LONGEST_PAUSE = 0.2


class Recording:
    """A file that is sent again and again. `data` is all of it as it is in memory, or with `whole` its whole lines.

    Raises InputError. The memory goes when the last view of it does.
    """

    def __init__(self, path: str, *, whole: bool) -> None:
        try:
            with Path(path).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # mmap's way to say so
            raise InputError(f"read {path}", "it is empty", "choose another --input") from error
        except OSError as error:
            raise InputError(f"read {path}", reason(error), "choose a regular file as --input") from error
        size = mapped.rfind(b"\n") + 1 if whole else len(mapped)
        if size == 0:
            raise InputError(f"read {path}", "no line ends in it", "leave out --records-per-second")
        self.data = memoryview(mapped)[:size]
        self.records = after(self.data, _NEWLINE, 0, sys.maxsize)[1]

    def records_in(self, size: int) -> int:
        """Return how many records end within the first `size` bytes that were sent."""
        times, rest = divmod(size, len(self.data))
        return times * self.records + after(self.data[:rest], _NEWLINE, 0, sys.maxsize)[1]


@contextlib.asynccontextmanager
async def connections(
    endpoint: Endpoint, settings: Settings, *, listening: bool, announced: Callable[[Any], Any]
) -> AsyncIterator[Callable[[], Awaitable[Link]]]:
    """Yield what returns the next connection to test, once the one before it is closed.

    `announced` is entered for as long as clients may come.
    """
    context: ssl.SSLContext | None = None
    if endpoint.tls or settings.tls:
        from ringmain.net.tls import client_context, server_context

        context = (server_context if listening else client_context)(settings)
    if not listening:
        yield functools.partial(dial, endpoint, settings, context)
        return
    gate = await listen(endpoint, settings)
    served: list[Link] = []

    async def next_one() -> Link:
        while served:
            gate.done(served.pop())
        served.append(await gate.next_connection(context))
        return served[0]

    try:
        with announced(gate):
            yield next_one
    finally:
        gate.close()


async def send(
    test: Test, recording: Recording, plan: Plan, records_per_second: float | None, idle_timeout: float | None
) -> None:
    """Send a recording in a loop until the plan is over, and end the connection properly."""
    link = test.link
    outflow = Outflow(link)
    before = bytes_acknowledged(link.sock)
    meter = test.measured(outflow.counters, plan.interval, sending=True)
    if records_per_second is None:
        pieces = _at_full_speed(recording, Budget(plan))
    else:
        pieces = _paced(recording, plan, records_per_second)
    what, turn = f"bench to {link.peer}", 0.0
    try:
        async with Deadline(idle_timeout, outflow.progress, what, "it took nothing", "is the peer still reading?"):
            for piece, pause in pieces:
                if pause or time.monotonic() > turn:
                    await asyncio.sleep(pause)
                    turn = time.monotonic() + _TURN
                if outflow.failure is not None:
                    raise outflow.failure
                if len(piece) and not outflow.gather(piece):
                    await outflow.send(piece)
            await outflow.finish()
        test.verdict = Verdict.ENDED
    except TimedOutError as error:
        test.fail(error)
    except OSError as error:
        test.fail(failure_of(error, what))
    finally:
        meter.end(0)
        size = outflow.counters.bytes_out
        test.records = recording.records_in(size)
        if test.verdict is Verdict.ENDED:
            test.acknowledged = size
        elif link.tls_version is None:
            after_it = bytes_acknowledged(link.sock)
            test.acknowledged = None if before is None or after_it is None else min(size, after_it - before)
        if test.acknowledged is not None:
            test.acknowledged_records = recording.records_in(test.acknowledged)
        if test.verdict is Verdict.ENDED:
            outflow.close()
        else:
            outflow.abort()


def _at_full_speed(recording: Recording, budget: Budget) -> Iterator[tuple[memoryview, float]]:
    """Yield what to send next, and how many seconds to wait before that."""
    position = 0
    while (size := budget.take()[0]) > 0:
        while size > 0:
            piece = recording.data[position : position + size]
            yield piece, 0.0
            size -= len(piece)
            position = (position + len(piece)) % len(recording.data)


def _paced(recording: Recording, plan: Plan, rate: float) -> Iterator[tuple[memoryview, float]]:
    """Yield the same by whole records, so many a second."""
    origin = time.monotonic()
    over = None if plan.seconds is None else origin + plan.seconds
    left = plan.size
    position = done = 0
    most = max(1, int(rate * _BURST))
    while True:
        now = time.monotonic()
        if over is not None and now >= over:
            return
        due = int((now - origin) * rate) - done
        if due < 1:
            pause = min(_LONGEST_PAUSE, (done + 1) / rate - (now - origin), math.inf if over is None else over - now)
            yield recording.data[:0], max(_LEAST_PAUSE, pause)
            continue
        if due > most:  # what was missed is not made up for
            origin += (due - most) / rate
            due = most
        end, found = after(recording.data, _NEWLINE, position, due)
        if left is not None and end - position > left:
            end = after(recording.data[: position + left], _NEWLINE, position, due)[0]
            over = now
        if left is not None:
            left -= end - position
        done += found
        yield recording.data[position:end], 0.0
        position = end % len(recording.data)


async def receive(test: Test, seconds: float | None, idle_timeout: float | None) -> None:
    """Receive into blocks until the sender ends or the time is over."""
    flow = Flow(Ring(RING_SIZE, BLOCK_SIZE), LINGER, 1, False)
    inflow = Inflow(test.link, flow, idle_timeout, verb="bench")
    meter = test.measured(inflow.counters, interval_for(seconds), sending=False)
    try:
        async with asyncio.timeout(seconds):
            while (block := await inflow.next_block()) is not None:
                test.records += after(block, _NEWLINE, 0, sys.maxsize)[1]
                block.release()
    except TimeoutError:
        inflow.stop()
    finally:
        meter.end(0)
        test.error = inflow.failure()
        inflow.close()
        test.verdict = inflow.outcome().verdict

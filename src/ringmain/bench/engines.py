"""The ends of a measured stream: what sends it and what receives it, from blocks in memory or through a pipe."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from ringmain._counters import Counters
from ringmain._pump import Pump
from ringmain._ring import Ring
from ringmain.bench.meter import Meter
from ringmain.bench.plan import Plan
from ringmain.flow.blocks import Flow
from ringmain.flow.descriptor import Input, Output
from ringmain.flow.inflow import Inflow
from ringmain.flow.outflow import Outflow
from ringmain.net.link import Link
from ringmain.settings import BLOCK_SIZE, LINGER, PATH, RING_SIZE

# How far a sender may run ahead after a pause, and what it does not pause for, in seconds.
_BURST = 0.1
_SHORT = 0.001
# A sender whose kernel takes everything at once lets others have the loop this often.
_TURN = 0.01
_PIPE_PIECE = 1 << 20


class Budget:
    """How much a sender may send, and when: a token bucket, and the end of the measurement."""

    def __init__(self, plan: Plan) -> None:
        now = time.monotonic()
        self._counted_from = now + plan.omit
        self._over = None if plan.seconds is None else self._counted_from + plan.seconds
        self._left = plan.size or 0
        self._message_size = plan.message_size
        self._rate = plan.rate
        self._due = now
        self._stopped = threading.Event()

    def pause(self, seconds: float) -> None:
        """Let a thread wait, until `stop` at most."""
        if seconds > 0:
            self._stopped.wait(seconds)

    def stop(self) -> None:
        """End all pauses of threads."""
        self._stopped.set()

    def take(self) -> tuple[int, float]:
        """Return the size of the next message and how many seconds to wait before it; a size of 0 is the end."""
        now = time.monotonic()
        size = self._message_size
        if self._over is None and now >= self._counted_from:
            size = min(size, self._left)
            self._left -= size
        pause = 0.0
        if self._rate is not None:
            self._due = max(self._due, now - _BURST)
            pause = self._due - now
            self._due += size / self._rate
        if self._over is not None and now + max(0.0, pause) >= self._over:
            return 0, max(0.0, self._over - now)
        return size, pause if pause > _SHORT else 0.0


class Helper(threading.Thread):
    """The program at the other side of a pipe, whose end `fd` is its own. The CPU time it takes is not the stream's."""

    def __init__(self, fd: int, step: Callable[[], bool]) -> None:
        super().__init__(name="ringmain-bench-pipe", daemon=True)
        self._fd = fd
        self._step = step
        self._cpu = 0.0
        self.start()

    def cpu(self) -> float:
        """Return its CPU seconds so far."""
        return self._cpu

    def run(self) -> None:
        """Go on until there is nothing more to do, or the other side is gone."""
        try:
            while self._step():
                self._cpu = time.thread_time()
        except OSError:
            pass
        finally:
            os.close(self._fd)


async def receive(plan: Plan, link: Link, _: memoryview, counters: Callable[[Counters], Meter], position: int) -> None:
    """Receive to the end of a connection, and close it."""
    flow = Flow(Ring(RING_SIZE, BLOCK_SIZE), LINGER, 1, False)
    inflow = Inflow(link, flow, None, verb="bench")
    meter = counters(inflow.counters)
    try:
        if plan.through == "pipe":
            await _into_pipe(inflow, meter)
        else:
            while (block := await inflow.next_block()) is not None:
                block.release()
        meter.end(position)
        error = inflow.failure()
        if error is not None:
            raise error
    finally:
        inflow.close()


async def _into_pipe(inflow: Inflow, meter: Meter) -> None:
    source, sink = os.pipe()
    with ExitStack() as stack:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, null)
        reader = Helper(source, lambda: os.splice(source, null, _PIPE_PIECE) > 0)
        stack.callback(reader.join)
        stack.callback(os.close, sink)
        output = Output(sink, "a pipe")
        stack.callback(output.close)
        meter.helpers.append(reader.cpu)
        await inflow.copy_to(output, PATH)


async def send(
    plan: Plan, link: Link, payload: memoryview, counters: Callable[[Counters], Meter], position: int
) -> None:
    """Send what the plan says, `payload` in each message, end the connection properly, and close it."""
    outflow = Outflow(link)
    meter = counters(outflow.counters)
    try:
        await (_from_pipe if plan.through == "pipe" else _from_blocks)(outflow, payload, Budget(plan), meter)
        meter.end(position)
        await outflow.finish()
    finally:
        outflow.close()


async def _from_blocks(outflow: Outflow, payload: memoryview, budget: Budget, _: Meter) -> None:
    turn = 0.0
    while True:
        size, pause = budget.take()
        if pause or time.monotonic() > turn:
            await asyncio.sleep(pause)
            turn = time.monotonic() + _TURN
        if size == 0:
            await outflow.flush()
            return
        view = payload[:size]
        if not outflow.gather(view):
            await outflow.send(view)


async def _from_pipe(outflow: Outflow, payload: memoryview, budget: Budget, meter: Meter) -> None:
    source, sink = os.pipe()

    def write() -> bool:
        size, pause = budget.take()
        budget.pause(pause)
        view = payload[:size]
        while len(view):
            view = view[os.write(sink, view) :]
        return size > 0

    with ExitStack() as stack:
        writer = Helper(sink, write)
        stack.callback(writer.join)
        stack.callback(os.close, source)  # whoever still writes hears of it
        stack.callback(budget.stop)
        input_ = Input(source, "a pipe")
        stack.callback(input_.close)
        meter.helpers.append(writer.cpu)
        if outflow.link.tls_version is None:
            pump = Pump(input_.fd, outflow.link.fd, outflow.counters)
            await outflow.pump(pump)
            if pump.error is not None:
                raise input_.failure(pump.error)
            return
        while (view := await input_.read()) is not None and len(view):
            await outflow.send(view)

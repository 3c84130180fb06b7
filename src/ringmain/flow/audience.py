"""Who a saver of many serves: who is let in, what is due to each, and what becomes of it."""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import logging
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, SendError, TimedOutError, TlsError, reason
from ringmain.flow.clients import Clients, OnEnd
from ringmain.flow.outflow import Outflow
from ringmain.net.door import Door
from ringmain.net.gate import NoMoreClients
from ringmain.net.link import Link
from ringmain.net.readiness import finish
from ringmain.outcome import NOT_SERVED, Outcome
from ringmain.settings import Settings
from ringmain.waiting import let_go

log = logging.getLogger("ringmain")

# What a chunk takes besides its bytes, so that many tiny ones are bounded too; the least that it may be.
_OVERHEAD = 64

Wish = Callable[[], Coroutine[Any, Any, object]]


class Client:
    """One client: what is due to it, and a `wish` to be fulfilled once it has that. `work` sees to both.

    What is due are chunks of bytes that it shares with others. `peer` is its connection, which knows when it is lost.
    """

    def __init__(self, peer: Clients, outflow: Outflow) -> None:
        self.peer = peer
        self.outflow = outflow
        self.due_size = 0
        self.wish: Wish | None = None
        self.dropped: RingmainError | None = None  # why we have reset it
        self._due: collections.deque[bytes] = collections.deque()
        self._given = 0
        self._woken = asyncio.Event()

    @property
    def is_there(self) -> bool:
        """Whether its connection is open."""
        return self.peer.outflow is not None

    def is_full(self, size: int, limit: int) -> bool:
        """Tell whether so many bytes more are too much memory, where something is due to it already."""
        return self.due_size > 0 and self.due_size + size + (len(self._due) + 1) * _OVERHEAD > limit

    def give(self, chunk: bytes) -> None:
        """Let a chunk be due to it."""
        self._due.append(chunk)
        self.due_size += len(chunk)
        self._given += len(chunk)
        self._woken.set()

    def ask(self, wish: Wish) -> None:
        """Let a wish be fulfilled; it is None again afterwards."""
        self.wish = wish
        self._woken.set()

    def wake(self) -> None:
        """Let `work` look whether it is still there."""
        self._woken.set()

    async def work(self, changed: Callable[[], object]) -> None:
        """Send and fulfil until the connection is closed; call `changed` after each.

        Raises what has ended the connection, if that was an error.
        """
        while self.is_there:
            if self._due:
                await self.peer.send(memoryview(self._due[0]))
                self.due_size -= len(self._due.popleft())
            elif self.wish is not None:
                await self.wish()
                self.wish = None
            else:
                self._woken.clear()
                await self._woken.wait()
                await self.peer.send(memoryview(b""))  # which raises where the client has left
                continue
            changed()

    def let_go(self) -> None:
        """Let nothing be due to it any more."""
        self._due.clear()
        self.due_size = 0
        self.wish = None

    def missed(self) -> int:
        """Return how many bytes are known not to have reached it, once it is closed."""
        return max(0, self._given - self.outflow.counters.bytes_out) + self.outflow.undelivered


class Audience:
    """The clients at a gate, settings.max_connections at most, from the first call of `admit` on.

    Each has a task (`Client.work`). One that is lost is warned of, and the others go on. `on_coming` is called before a
    client is there, with what is to serve it then; `on_lost` when the last one has left. `on_end` is a weak reference
    to what hears of each.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        on_coming: Callable[[Client], object],
        on_end: Callable[[], OnEnd | None],
    ) -> None:
        self.on_lost: Callable[[], object] | None = None
        self.stopping = False
        self.gate: Door | None = None
        self._endpoint = endpoint
        self._settings = settings
        self._on_coming = on_coming
        self._on_end = on_end
        self._context: ssl.SSLContext | None = None
        self._clients: dict[Client, asyncio.Task[None]] = {}
        self._admitting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # that and those of clients, also of some who have left
        self._failure: BaseException | None = None  # of something else than a client
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._clients))

    def open(self, gate: Door | None, context: ssl.SSLContext | None) -> None:
        """Begin anew, with the gate that clients come by, and the TLS that they get."""
        self.gate, self._context = gate, context
        self._admitting = self._failure = None
        if self.stopping and gate is not None:
            gate.stop()

    def admit(self) -> None:
        """Let clients in from now on."""
        if self._admitting is None and self.gate is not None:
            self._admitting = self._begun(self._admit(self.gate))

    @property
    def admits(self) -> bool:
        """Whether others are let in."""
        return self._admitting is not None and not self._admitting.done()

    def admit_no_more(self) -> None:
        """Let nobody else in."""
        if self._admitting is not None and not self._admitting.get_loop().is_closed():
            self._admitting.cancel()

    def stop(self) -> None:
        """Let in nobody else, and end the pumps that are running."""
        self.stopping = True
        if self.gate is not None:
            self.gate.stop()
        for client in self:
            client.peer.stop()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when a condition of clients is true; raise what has gone wrong that is no fault of a client."""
        while not condition():
            self._raise_failure()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._raise_failure()

    def drop(self, client: Client, error: RingmainError) -> None:
        """Reset a client because of an error, and warn of it."""
        client.dropped = error
        self.reset(client)
        self._warn(client, error)

    def reset(self, client: Client) -> None:
        """Reset a client, if it is there: at once, unless a pump is still using its socket."""
        if client in self._clients:
            self._clients[client].cancel()
            if client.outflow.pumping is None:
                client.peer.close()

    def reset_all(self) -> None:
        """Reset all who are there."""
        with contextlib.ExitStack() as stack:  # what `on_end` raises leaves nobody open
            for client in self:
                stack.callback(self.reset, client)

    async def cancel(self) -> None:
        """Interrupt what is being done for those who are there, and reset them."""
        tasks = list(self._clients.values())
        for task in tasks:
            task.cancel()
        try:
            await let_go(tasks)
        finally:
            self.reset_all()

    async def over(self) -> None:
        """Return once nothing is being done any more, after `close`."""
        await let_go(list(self._tasks))

    def close(self) -> None:
        """Reset who is still there, and let nobody in."""
        self.admit_no_more()
        try:
            self.reset_all()
        finally:
            gate, self.gate = self.gate, None
            if gate is not None:
                gate.close()

    def abandon(self) -> None:
        """Reset who is there, also when the loop is closed; nobody hears of it."""
        self.admit_no_more()
        for client, task in self._clients.items():
            if not client.outflow.link.loop.is_closed():
                task.cancel()
            client.outflow.abort()

    async def _admit(self, gate: Door) -> None:
        with contextlib.suppress(NoMoreClients):
            while True:
                link = await gate.next_connection(self._context)
                try:
                    self._begin(link)
                except BaseException as error:
                    gate.done(link)
                    if not isinstance(error, OSError):
                        raise
                    failure = SendError(link.peer, f"cannot be served: {reason(error)}")
                    log.warning("%s", failure)
                    if gate.on_failed is not None:
                        gate.on_failed(link.peer, 0.0, failure, NOT_SERVED)

    def _begin(self, link: Link) -> None:
        peer = Clients(self._endpoint, self._settings, lambda: functools.partial(self._left, client), goes_on=False)
        peer.heeds_goodbye = True
        peer.begin(link)
        assert peer.outflow is not None
        client = Client(peer, peer.outflow)
        peer.on_lost = client.wake
        self._on_coming(client)
        self._clients[client] = self._begun(self._work(client))
        self._changed()

    def _begun(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    async def _work(self, client: Client) -> None:
        try:
            await client.work(self._changed)
        except (SendError, TimedOutError, TlsError) as error:
            self._warn(client, error)
        finally:
            client.peer.close()

    def _warn(self, client: Client, error: RingmainError) -> None:
        missed = f": {client.missed()} bytes at least did not reach it" if client.missed() else ""
        log.warning("%s%s", str(error), missed)  # who keeps records keeps no client

    def _left(self, client: Client, outcome: Outcome) -> None:
        """Hear that a client's connection is closed."""
        del self._clients[client]
        client.let_go()
        if self.gate is not None:
            self.gate.done(client.outflow.link)  # first: what `on_end` raises is not to keep the next client away
        self._changed()
        if not self._clients and self.on_lost is not None:
            self.on_lost()
        if (on_end := self._on_end()) is not None:
            on_end(dataclasses.replace(outcome, error=outcome.error or client.dropped))

    def _over(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            if task is self._admitting:
                self._admitting = None  # another call may have more luck
        self._changed()

    def _changed(self) -> None:
        if self._waiter is not None:
            finish(self._waiter)

    def _raise_failure(self) -> None:
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure

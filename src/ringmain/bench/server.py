"""The server of `ringmain bench`: one measurement at a time, for whoever asks."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import ssl
from typing import Any, NoReturn, Self

from ringmain.bench.meter import FIGURES, OF_TCP
from ringmain.bench.plan import PATIENCE, Plan
from ringmain.bench.streams import End
from ringmain.bench.wire import CONTROL, Wire, introduced, new_token, number_of, numbered
from ringmain.endpoint import Endpoint, plain_address
from ringmain.errors import RingmainError, TimedOutError, UsageError, reason
from ringmain.net.dial import prepare, shake_hands
from ringmain.net.link import Link
from ringmain.net.listeners import addresses_of, open_listeners
from ringmain.net.readiness import finish
from ringmain.net.resets import reset
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# A measurement in which nothing moved for so many seconds makes room for the next client who asks for one.
STANDSTILL = 10.0
# How many connections may be in doubt at once: who has not yet said what a connection is for, or what to measure.
MOST_IN_DOUBT = 256


def most_processes() -> int:
    """Return how many processes are started for a client: more than there are cores would measure their scheduling."""
    return max(8, 2 * len(os.sched_getaffinity(0)))


class Server:
    """Listens, and measures with one client at a time; others are told that it is busy.

    `addresses` and `port` tell where it listens.
    """

    def __init__(self, endpoint: Endpoint, settings: Settings, *, listen_once: bool) -> None:
        self.endpoint = endpoint
        self.listen_once = listen_once
        self._settings = settings
        self.tls = endpoint.tls or settings.tls
        self._present: _Present | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_doubt: dict[asyncio.Task[None], str] = {}  # the oldest first, with the peer

    async def __aenter__(self) -> Self:
        if self.tls:
            from ringmain.net.tls import server_context

            self._context: ssl.SSLContext | None = server_context(self._settings)
        else:
            self._context = None
        self._listeners = await open_listeners(self.endpoint, self._settings)
        self._over = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._listeners:
            sock.close()

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, as "127.0.0.1:43211" or "[::1]:43211"."""
        return addresses_of(self._listeners)

    @property
    def port(self) -> int:
        """The port listened at, the same for every address."""
        return int(self._listeners[0].getsockname()[1])

    @property
    def peers(self) -> list[str]:
        """Whose measurement goes on, if there is one."""
        return [self._present.peer] if self._present is not None else []

    async def serve(self) -> None:
        """Serve one client after another, or with `listen_once` return after the first measurement."""
        accepting = [asyncio.ensure_future(self._accept(sock)) for sock in self._listeners]
        try:
            await asyncio.wait([*accepting, self._over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in accepting:
                task.cancel()
            await asyncio.gather(*accepting, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        warned = False
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                if not warned:
                    log.warning("cannot accept a client: %s; waiting until that changes", reason(error))
                warned = True
                await asyncio.sleep(0.1)
                continue
            warned = False
            self._take(sock, plain_address(*address[:2]))

    def _take(self, sock: socket.socket, peer: str) -> None:
        """Welcome a connection; where too many are in doubt the oldest goes: who means it needs no time to say so."""
        if len(self._in_doubt) >= MOST_IN_DOUBT:
            oldest = next(iter(self._in_doubt))
            log.warning(
                "%s: it sent too little, and was turned away to make room for others", self._in_doubt.pop(oldest)
            )
            oldest.cancel()
        task = asyncio.ensure_future(self._welcome(sock, peer))
        self._in_doubt[task] = peer
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._in_doubt.pop(task, None)
        self._tasks.discard(task)

    async def _welcome(self, sock: socket.socket, peer: str) -> None:
        """Find out what a connection is for. It warns of what is wrong with it, and never raises."""
        try:
            prepare(sock, self._settings)
            async with asyncio.timeout(self._settings.handshake_timeout):
                token = await introduced(sock)
            if token == CONTROL:
                if self._context is not None:
                    sock = await shake_hands(sock, self._context, self._settings, peer)
                await self._serve_client(Wire(Link(sock, peer)))
                return
            if token is not None and self._present is not None and self._present.gets(sock, token):
                return
            log.warning("%s: not a ringmain bench client, or not of the present measurement", peer)
        except TimeoutError as error:
            log.warning("%s", error if isinstance(error, RingmainError) else f"{peer}: it sent nothing")
        except (RingmainError, OSError) as error:
            log.warning("%s", error if isinstance(error, RingmainError) else f"{peer}: {reason(error)}")
        except asyncio.CancelledError:
            reset(sock)
            raise
        reset(sock)

    async def _serve_client(self, wire: Wire) -> None:
        """Measure what a client asks for, and tell it the figures or what went wrong."""
        peer = wire.link.peer
        try:
            side = await self._measure(wire)
            await wire.send({"side": {name: side[name] for name in (*FIGURES, *OF_TCP)}})
            log.info("%s: measured %d streams for %.1f s", peer, len(side["sizes"]), side["seconds"])
            if self.listen_once:
                finish(self._over)
        except _BusyError as error:
            await self._tell(wire, error)
        except Exception as error:  # whatever a client has brought about, the next one is served
            if not isinstance(error, RingmainError):
                error = RingmainError(f"bench with {peer}", reason(error), "try again, perhaps with fewer streams")
            log.warning("%s", error)
            await self._tell(wire, error)
        finally:
            wire.close()

    async def _tell(self, wire: Wire, error: RingmainError) -> None:
        with contextlib.suppress(OSError, RingmainError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await wire.send({"error": str(error)})

    async def _measure(self, wire: Wire) -> dict[str, Any]:
        """Return the figures of our side of what a client asks for. While it only asks, others are served."""
        peer = wire.link.peer
        try:
            async with asyncio.timeout(PATIENCE):
                plan = Plan.read(await wire.receive())
        except TimeoutError as error:
            raise TimedOutError(
                f"bench with {peer}", "it does not say what to measure", "is it a ringmain bench?"
            ) from error
        if plan.processes and plan.parallel > most_processes():
            remedy = f"give at most {most_processes()} streams, or leave --processes out"
            raise UsageError(f"{plan.parallel} processes", "this server does not start so many", remedy)
        if self._present is not None:
            await self._present.make_room()
        if self._present is not None:
            raise _BusyError("the server is busy with another measurement", "", "try again later")
        self._in_doubt.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
        self._present = _Present(wire, plan)
        try:
            return await self._present.run(End(plan.at_server(), self._settings, peer, None, plan.reverse, self.tls))
        finally:
            self._present.close()
            self._present = None


class _BusyError(RingmainError):
    """Another client is served."""


class _Present:
    """The measurement that goes on: its streams, and when anything of it has moved last."""

    def __init__(self, wire: Wire, plan: Plan) -> None:
        self.peer = wire.link.peer
        self._wire = wire
        self._plan = plan
        self._token = new_token(secrets.token_hex)
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(plan.limit)
        self._waits_for = ("not all of its streams came", "is a firewall between?")
        self._socks: dict[int, socket.socket] = {}
        self._complete: asyncio.Future[None] = self._loop.create_future()
        self._is_ready = False
        self._go: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._moves()

    def gets(self, sock: socket.socket, token: str) -> bool:
        """Take a connection that is one of its streams; False if it is none, or one too many."""
        number = number_of(token)
        if number is None or number in self._socks or not number < self._plan.parallel:
            return False
        if self._complete.done() or not secrets.compare_digest(token, numbered(self._token, number)):
            return False
        self._socks[number] = sock
        self._moves()
        if len(self._socks) == self._plan.parallel:
            finish(self._complete)
        return True

    async def make_room(self) -> None:
        """End it for another client, if it stands still."""
        if self._loop.time() - self._moved < STANDSTILL:
            return
        with contextlib.suppress(RuntimeError):  # it has just run out
            self._waits_for = (f"nothing moved for {STANDSTILL:g} s, and another client came", "try again")
            self._limit.reschedule(self._loop.time())
        await asyncio.shield(self._over)

    async def run(self, end: End) -> dict[str, Any]:
        """Return the figures of this side; raise when the client leaves, or takes longer than its plan allows."""
        tasks: list[asyncio.Future[dict[str, Any]]] = []
        try:
            async with self._limit:
                await self._wire.send({"token": self._token})
                tasks = [asyncio.ensure_future(it) for it in (self._work(end), self._listen())]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                return next(task for task in tasks if task in done).result()
        except TimeoutError as error:
            if not self._limit.expired():
                raise
            raise TimedOutError(f"bench with {end.peer}", *self._waits_for) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, end: End) -> dict[str, Any]:
        await self._complete
        too_long = f"it takes longer than the {self._plan.limit:g} s that its plan allows"
        self._waits_for = (too_long, "is it still running?")

        async def ready() -> None:
            self._is_ready = True
            await self._wire.send({"ready": True})
            await self._go
            self._moves()

        def look(interval: dict[str, Any]) -> None:
            if sum(interval["sizes"]):
                self._moves()

        return await end.run([sock for _, sock in sorted(self._socks.items())], ready, look)

    async def _listen(self) -> NoReturn:
        """Hear the client say that it begins; raise when it leaves, or says anything else."""
        await self._wire.receive()
        if self._is_ready:
            finish(self._go)
            await self._wire.receive()
        raise self._wire.foreign("it says what it was not asked")

    def _moves(self) -> None:
        self._moved = self._loop.time()

    def close(self) -> None:
        """Reset the streams that did not move, and let those go on who wait for the end."""
        finish(self._complete)
        finish(self._over)
        for sock in self._socks.values():
            reset(sock)

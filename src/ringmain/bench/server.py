"""The server of `ringmain bench`: one measurement at a time, for whoever asks."""

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
from typing import Any, Self

from ringmain.bench.plan import Plan
from ringmain.bench.streams import End
from ringmain.bench.wire import CONTROL, LONGEST_QUESTION, TOKEN_SIZE, Wire, introduced
from ringmain.connection import Connection, finish, prepare, reset, shake_hands, watch_idle
from ringmain.endpoint import Endpoint, host_and_port
from ringmain.errors import RingmainError, TimedOutError, reason
from ringmain.listeners import addresses_of, open_listeners
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# How long a client may take for what it has to do next; a stream may stand still for as long.
PATIENCE = 10.0


class Server:
    """Listens, and measures with one client at a time; others are told that it is busy.

    `addresses` and `port` tell where it listens.
    """

    def __init__(self, endpoint: Endpoint, settings: Settings, *, listen_once: bool) -> None:
        self.endpoint = endpoint
        self.listen_once = listen_once
        self._settings = settings
        self.tls = endpoint.tls or settings.tls
        self._token = ""
        self._streams: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        if self.tls:
            from ringmain.tls import server_context

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
            task = asyncio.ensure_future(self._welcome(sock, host_and_port(*address[:2])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _welcome(self, sock: socket.socket, peer: str) -> None:
        """Find out what a connection is for. It warns of what is wrong with it, and never raises."""
        try:
            prepare(sock, self._settings)
            async with asyncio.timeout(self._settings.handshake_timeout):
                token = await introduced(sock)
            if token == CONTROL:
                if self._context is not None:
                    sock = await shake_hands(sock, self._context, self._settings, peer)
                await self._serve_client(Wire(Connection.of(sock, peer), LONGEST_QUESTION))
                return
            if token is not None and self._token and secrets.compare_digest(token, self._token):
                self._streams.put_nowait(sock)
                return
            log.warning("%s: not a ringmain bench client, or not of the present measurement", peer)
        except TimeoutError as error:
            log.warning("%s", error if isinstance(error, RingmainError) else f"{peer}: it says nothing")
        except (RingmainError, OSError) as error:
            log.warning("%s", error if isinstance(error, RingmainError) else f"{peer}: {reason(error)}")
        except asyncio.CancelledError:
            reset(sock)
            raise
        reset(sock)

    async def _serve_client(self, wire: Wire) -> None:
        """Measure what a client asks for, and tell it the figures or what went wrong."""
        if self._token:
            await self._tell(wire, {"error": "the server is busy with another measurement; try again later"})
            return
        self._token = secrets.token_hex(TOKEN_SIZE // 2)
        try:
            await self._measure(wire)
        except RingmainError as error:
            log.warning("%s", error)
            await self._tell(wire, {"error": str(error)})
        else:
            if self.listen_once:
                finish(self._over)
        finally:
            self._token = ""
            while not self._streams.empty():
                reset(self._streams.get_nowait())
            wire.close()

    async def _tell(self, wire: Wire, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, RingmainError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await wire.send(message)
        wire.close()

    async def _measure(self, wire: Wire) -> None:
        peer = wire.connection.peer
        plan = Plan.read(await self._next(wire))
        end = End(plan.at_server(), self._settings, peer, None, sending=plan.reverse, tls=self.tls)
        await wire.send({"token": self._token})
        socks: list[socket.socket] = []
        try:
            async with asyncio.timeout(PATIENCE):
                while len(socks) < plan.parallel:
                    socks.append(await self._streams.get())
        except TimeoutError as error:
            for sock in socks:
                reset(sock)
            raise TimedOutError(
                f"bench with {peer}", "not all of its streams came", "is a firewall between?"
            ) from error
        side = await self._run(end, socks, wire)
        await wire.send({"side": side})
        log.info("%s: measured %d streams for %.1f s", peer, plan.parallel, side["seconds"])

    async def _run(self, end: End, socks: list[socket.socket], wire: Wire) -> dict[str, Any]:
        """Move the bytes, for as long as any move."""
        moved: int | None = None

        async def ready() -> None:
            nonlocal moved
            await wire.send({"ready": True})
            await self._next(wire)
            moved = 0

        def look(interval: dict[str, Any]) -> None:
            nonlocal moved
            moved = (moved or 0) + sum(interval["sizes"])

        def expire() -> None:
            moving.cancel()

        moving = asyncio.ensure_future(end.run(socks, ready, look))
        stop = watch_idle(asyncio.get_running_loop(), PATIENCE, lambda: moved, expire)
        try:
            await asyncio.wait([moving])
        finally:
            moving.cancel()
            stop()
        if moving.cancelled():
            raise TimedOutError(f"bench with {end.peer}", f"no byte moved for {PATIENCE:g} s", "is it still running?")
        return moving.result()

    async def _next(self, wire: Wire) -> dict[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE):
                return await wire.receive()
        except TimeoutError as error:
            what = f"bench with {wire.connection.peer}"
            raise TimedOutError(what, f"it said nothing for {PATIENCE:g} s", "is it still running?") from error

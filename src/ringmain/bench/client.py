"""The client of `ringmain bench`: asks a server for a measurement, does its half, and joins both sides' figures."""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any

from ringmain.bench.meter import read_side
from ringmain.bench.plan import PATIENCE, Plan
from ringmain.bench.result import Measurement, about
from ringmain.bench.streams import End, OnInterval, Ready, together
from ringmain.bench.wire import CONTROL, TOKEN_SIZE, Wire, introduce, numbered
from ringmain.endpoint import Endpoint
from ringmain.errors import ReceiveError, RingmainError, TimedOutError
from ringmain.net.dial import dial
from ringmain.net.introduced import Introduced
from ringmain.net.link import Link
from ringmain.settings import Settings

# What a server may say went wrong: no more of it is told.
_LONGEST_REASON = 300


async def measure(
    endpoint: Endpoint,
    settings: Settings,
    plan: Plan,
    on_start: Callable[[dict[str, Any]], None] = lambda _: None,
    on_interval: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Measurement:
    """Measure with the server at the endpoint; raise a RingmainError when that fails, or bytes were lost."""
    started = about()
    tls = endpoint.tls or settings.tls
    wire = Wire(await _open(endpoint, settings, CONTROL, tls=tls))
    peer = wire.link.peer
    end = End(plan, settings, peer, endpoint.host, sending=not plan.reverse, tls=tls)

    async def ready() -> None:
        await _hear(wire, "ready")
        await wire.send({"go": True})
        on_start(started)

    try:
        await wire.send(plan.message())
        token = await _hear(wire, "token")
        if not isinstance(token, str) or not re.fullmatch(f"[0-9a-f]{{{TOKEN_SIZE}}}", token):
            raise wire.foreign()
        tokens = [numbered(token, number) for number in range(plan.parallel)]
        opened = await together([_open(endpoint, settings, it, tls=False) for it in tokens])
        try:
            local = await _moved(end, [link.sock for link in opened], ready, on_interval)
        except RingmainError as error:
            raise await _cause(wire, error) from error
        try:
            remote = read_side(await _hear(wire, "side"), plan.parallel)
        except ValueError as error:
            raise wire.foreign() from error
    finally:
        wire.close()
    measurement = Measurement(plan, endpoint, started, local, remote)
    sent, received = sum(measurement.sender["totals"]), sum(measurement.receiver["totals"])
    if sent != received:
        what = f"bench with {peer}"
        raise ReceiveError(
            what, f"{sent} bytes were sent and {received} received", "repeat it; if it happens again, please report it"
        )
    return measurement


async def _moved(end: End, socks: list[socket.socket], ready: Ready, on_interval: OnInterval) -> dict[str, Any]:
    """Return the figures of this side; raise TimedOutError when it takes longer than the plan allows."""
    try:
        async with asyncio.timeout(end.plan.limit) as limit:
            return await end.run(socks, ready, on_interval)
    except TimeoutError as error:
        if not limit.expired():
            raise
        why = f"it takes longer than the {end.plan.limit:g} s that the plan allows"
        raise TimedOutError(f"bench with {end.peer}", why, "is the server still running?") from error


async def _open(endpoint: Endpoint, settings: Settings, token: str, *, tls: bool) -> Link:
    context: ssl.SSLContext | None = None
    if tls:
        from ringmain.net.tls import client_context

        context = client_context(settings)

    async def preface(sock: Any, peer: str) -> Introduced:
        await introduce(sock, token, peer)
        return Introduced(peer)

    return await dial(endpoint, settings, context, preface)


async def _hear(wire: Wire, name: str) -> Any:
    """Return what the server has to say next; raise what it says went wrong."""
    try:
        async with asyncio.timeout(PATIENCE):
            message = await wire.receive()
    except TimeoutError as error:
        what = f"bench with {wire.link.peer}"
        raise TimedOutError(what, f"it said nothing for {PATIENCE:g} s", "is it a ringmain bench --server?") from error
    if name not in message:
        raise _refusal(wire, message) if "error" in message else wire.foreign()
    return message[name]


def _refusal(wire: Wire, message: dict[str, Any]) -> ReceiveError:
    """Return what a server says went wrong."""
    why = str(message["error"])[:_LONGEST_REASON]
    remedy = "" if "; " in why else "see the server's log"
    return ReceiveError(f"bench with {wire.link.peer}", why, remedy)


async def _cause(wire: Wire, error: RingmainError) -> RingmainError:
    """Return what the server says of a measurement that broke here, if it says anything; else the error."""
    with contextlib.suppress(TimeoutError, RingmainError):
        async with asyncio.timeout(1.0):
            message = await wire.receive()
        if "error" in message:
            return _refusal(wire, message)
    return error

"""The client of `ringmain bench`: asks a server for a measurement, does its half, and joins both sides' figures."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

from ringmain.bench.plan import Plan
from ringmain.bench.result import about
from ringmain.bench.streams import End, together
from ringmain.bench.wire import CONTROL, LONGEST_ANSWER, Wire, introduce
from ringmain.connection import Connection, dial
from ringmain.endpoint import Endpoint
from ringmain.errors import ReceiveError, RingmainError, TimedOutError
from ringmain.settings import Settings

# How long the server may take for what it has to do next, besides moving bytes.
_PATIENCE = 15.0


class Measurement:
    """What both sides of a measurement tell: `local` and `remote`, as `Meter.side` returns them.

    `plan` is what was measured, and `about` what was known before.
    """

    def __init__(
        self, plan: Plan, endpoint: Endpoint, started: dict[str, Any], local: dict[str, Any], remote: dict[str, Any]
    ) -> None:
        self.plan = plan
        self.about = started
        self.endpoint = endpoint
        self.local = local
        self.remote = remote
        self.sender, self.receiver = (remote, local) if plan.reverse else (local, remote)


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
    wire = Wire(await _open(endpoint, settings, CONTROL, tls=tls), LONGEST_ANSWER)
    peer = wire.connection.peer
    end = End(plan, settings, peer, endpoint.host, sending=not plan.reverse, tls=tls)

    async def ready() -> None:
        await _hear(wire, "ready")
        await wire.send({"go": True})
        on_start(started)

    try:
        await wire.send(plan.message())
        token = await _hear(wire, "token")
        opened = await together([_open(endpoint, settings, token, tls=False) for _ in range(plan.parallel)])
        try:
            local = await end.run([connection.sock for connection in opened], ready, on_interval)
        except RingmainError as error:
            raise await _cause(wire, error) from error
        remote = await _hear(wire, "side")
    finally:
        wire.close()
    measurement = Measurement(plan, endpoint, started, local, remote)
    sent, received = sum(measurement.sender["totals"]), sum(measurement.receiver["totals"])
    if sent != received:
        what = f"bench with {peer}"
        raise ReceiveError(what, f"{sent} bytes were sent and {received} received", "repeat it; is it a fault of ours?")
    return measurement


async def _open(endpoint: Endpoint, settings: Settings, token: str, *, tls: bool) -> Connection:
    context: ssl.SSLContext | None = None
    if tls:
        from ringmain.tls import client_context

        context = client_context(settings)

    async def preface(sock: Any, peer: str) -> str:
        await introduce(sock, token, peer)
        return peer

    return await dial(endpoint, settings, context, preface)


async def _hear(wire: Wire, name: str) -> Any:
    """Return what the server has to say next; raise what it says went wrong."""
    try:
        async with asyncio.timeout(_PATIENCE):
            message = await wire.receive()
    except TimeoutError as error:
        what = f"bench with {wire.connection.peer}"
        raise TimedOutError(what, f"it said nothing for {_PATIENCE:g} s", "is it a ringmain bench --server?") from error
    if name not in message:
        why = str(message.get("error", "a message is not understood"))
        raise ReceiveError(f"bench with {wire.connection.peer}", why, "see the server's log")
    return message[name]


async def _cause(wire: Wire, error: RingmainError) -> RingmainError:
    """Return what the server says of a measurement that broke here, if it says anything; else the error."""
    with contextlib.suppress(TimeoutError, RingmainError):
        async with asyncio.timeout(1.0):
            message = await wire.receive()
        if "error" in message:
            return ReceiveError(f"bench with {wire.connection.peer}", str(message["error"]), "see the server's log")
    return error

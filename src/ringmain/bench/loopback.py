"""What `ringmain bench` measures by itself: this machine with itself, each stream's ends in processes of their own."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

from ringmain.bench.client import measure
from ringmain.bench.plan import Plan
from ringmain.bench.result import Measurement
from ringmain.bench.server import Server
from ringmain.endpoint import Endpoint
from ringmain.settings import Settings

Measure = Callable[[Plan], Awaitable[Measurement]]

_THROUGHS: tuple[Literal["blocks", "pipe"], ...] = ("blocks", "pipe")


@contextlib.asynccontextmanager
async def loopback(plan: Plan) -> AsyncIterator[dict[str, tuple[Plan, Measure]]]:
    """Yield each test: its name, its plan, and what measures such a plan. The client's end is what is tested."""
    log = logging.getLogger("ringmain")
    level = log.level
    log.setLevel(logging.ERROR)  # that a certificate of our own is not verified by us is no news
    plain = Server(Endpoint("127.0.0.1", "0"), Settings(), listen_once=False)
    tls = Server(Endpoint("127.0.0.1", "0", True), Settings(self_signed=True), listen_once=False)
    try:
        async with plain, tls:
            serving = [asyncio.ensure_future(server.serve()) for server in (plain, tls)]
            try:
                yield {
                    f"{verb} {name} {preposition} {through}": (
                        dataclasses.replace(
                            plan, reverse=verb == "receive", through=through, processes=True, apart=True
                        ),
                        _measure_with(server),
                    )
                    for verb, preposition in (("receive", "to"), ("send", "from"))
                    for name, server in (("plain", plain), ("TLS", tls))
                    for through in _THROUGHS
                }
            finally:
                for task in serving:
                    task.cancel()
                await asyncio.gather(*serving, return_exceptions=True)
    finally:
        log.setLevel(level)


def _measure_with(server: Server) -> Measure:
    async def run(plan: Plan) -> Measurement:
        endpoint = Endpoint("127.0.0.1", str(server.port), server.endpoint.tls)
        return await measure(endpoint, Settings(insecure=True), plan)

    return run

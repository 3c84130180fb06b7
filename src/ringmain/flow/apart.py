"""The connections of a loader each to a place of its own, as many at once as it serves."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from ringmain.errors import OutputError, RingmainError, reason
from ringmain.flow import copying
from ringmain.flow.descriptor import ReaderLeft
from ringmain.flow.inflow import Inflow

# Moves all that an inflow brings to the place of the connection with that number, counted from 1. Raises OutputError or
# an OSError where that fails, ReaderLeft where nobody wants more.
Give = Callable[[Inflow, int], Awaitable[None]]


class Loading(copying.Loading, Protocol):
    """A loader, as this sees it."""

    @property
    def merges(self) -> bool:
        """Whether many connections are served at once."""

    def break_off(self, inflow: Inflow, error: RingmainError) -> None:
        """Reset an inflow whose bytes have nowhere to go; raise why where there is only one connection, else warn."""


async def each_by_itself(loader: Loading, give: Give) -> None:
    """Give each connection a place of its own; return once no other comes and all are over.

    One whose place fails is reset, with a warning where others may follow, and these go on. Each is closed after `give`
    has returned. Cancelled, it waits for those that are cancelled with it.
    """
    number = 0
    try:
        async with asyncio.TaskGroup() as group:
            async for connection in loader.connections():
                number += 1
                serving = group.create_task(_serve(loader, connection, number, give))
                del connection
                if not loader.merges:
                    await asyncio.wait([serving])  # the next connection would take its place
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _serve(loader: Loading, connection: copying.Loaded, number: int, give: Give) -> None:
    inflow = connection.inflow
    try:
        await give(inflow, number)
    except ReaderLeft:
        pass
    except RingmainError as error:
        loader.break_off(inflow, error)
        return
    except OSError as error:  # as without descriptors
        loader.break_off(inflow, OutputError("cannot be served", reason(error), "see ulimit -n"))
        return
    await inflow.hear_out()
    loader.end(inflow)

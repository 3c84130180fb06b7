"""Wait until a descriptor is ready for something, or look whether it is."""

import contextlib
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def future() -> "asyncio.Future[None]":
    """Return a future of the loop that is running."""
    import asyncio  # here: the command opens its output, and listens, before it imports an event loop

    return asyncio.get_running_loop().create_future()


def is_ready(fd: int, events: int) -> bool:
    """Tell whether a descriptor may be used without blocking. Not by `select`, which knows numbers below 1024 only."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(0))


async def until(fd: int, *, writable: bool = False, ready: "asyncio.Future[None] | None" = None) -> None:
    """Wait until a descriptor is readable, or writable, or someone else has done the `ready` Future.

    One waiter for a descriptor and direction at a time.
    """
    ready = ready or future()
    loop = ready.get_loop()
    add, remove = (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
    add(fd, finish, ready)
    try:
        await ready
    finally:
        remove(fd)


async def until_gone(fd: int) -> None:
    """Return when the other side of a socket or pipe is gone, also while nothing is read or written.

    A half-close does not count. Where there is nothing left to watch by it never returns: the next use finds out.
    """
    with contextlib.ExitStack() as stack:
        try:
            # An epoll of our own that asks for no event still hears of errors, and is itself readable then.
            watch = stack.enter_context(select.epoll())
            watch.register(fd, 0)
        except OSError:
            await future()
        await until(watch.fileno())


def finish(ready: "asyncio.Future[None]") -> None:
    """Let whoever awaits `ready` go on."""
    if not ready.done():
        ready.set_result(None)

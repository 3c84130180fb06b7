"""Drive a coroutine step by step: cancel it at the point where it waits for the n-th time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

# A call that waits more often than this is cancelled at its first points only.
_MOST = 80


class _Counted:
    """Await a coroutine, and tell each time that it is about to wait."""

    def __init__(self, work: Coroutine[Any, Any, Any], on_wait: Callable[[], None]) -> None:
        self._work, self._on_wait = work, on_wait

    def __await__(self) -> Generator[Any, Any, Any]:
        step, argument = self._work.send, None
        while True:
            try:
                future = step(argument)
            except StopIteration as stop:
                return stop.value
            self._on_wait()
            try:
                argument = yield future
                step = self._work.send
            except BaseException as error:
                argument, step = error, self._work.throw


async def cancelled_at(number: int, work: Coroutine[Any, Any, Any], times: int = 1) -> bool:
    """Run work in a task, which is cancelled where it waits for the `number`th time; tell whether it came to that.

    With more `times` it is cancelled where it waits next as well, to clean up. What it raises of its own is raised.
    """
    waits = cancels = 0

    def on_wait() -> None:
        nonlocal waits
        waits += 1
        if number <= waits < number + times:
            loop.call_soon(cancel)

    def cancel() -> None:
        nonlocal cancels
        cancels += task.cancel()

    async def counted() -> Any:
        return await _Counted(work, on_wait)

    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(counted())
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    assert not cancels, "it was cancelled, and went on as if it had not been"
    return False


async def at_every_point(attempt: Callable[[int], Awaitable[bool]]) -> int:
    """Call `attempt` with 1, 2, ... until it tells that its call was through before it waited so often; count them."""
    for number in range(1, _MOST + 1):
        if not await attempt(number):
            return number - 1
    return _MOST

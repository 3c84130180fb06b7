"""What the tests of rings share: filling one, and what the collector does in the middle of it."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

from ringmain._ring import Ring


def fill(ring: Ring, data: bytes) -> int:
    """Commit as much of data as fits one window; return how much."""
    view = ring.reserve()
    if view is None:
        return 0
    size = min(len(view), len(data))
    view[:size] = data[:size]
    view.release()
    ring.commit(size)
    return size


def fill_all(ring: Ring, data: bytes) -> None:
    while data:
        size = fill(ring, data)
        assert size
        data = data[size:]


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Let the collector run at every allocation (3.11), or before every second instruction (3.12 and later)."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1 << 20, 1 << 20)  # what is young is looked at; what hypothesis keeps is not
    gc.enable()
    try:
        yield
        assert [[] for _ in range(10)]  # something to be counted
    finally:
        gc.set_threshold(*before)


def one_and_an_error(items: list[Any]) -> Iterator[Any]:
    """Yield the last item, and fail: whoever gathers them drops it while the exception is on its way."""
    yield items.pop()
    raise ZeroDivisionError


class Cycle:
    """Garbage that only the collector finds, with a view; what it does then is up to `last_will`."""

    def __init__(self, view: memoryview | None, last_will: Callable[[], object] = lambda: None) -> None:
        self.view = view
        self.last_will = last_will
        self.itself = self

    def __del__(self) -> None:
        self.last_will()

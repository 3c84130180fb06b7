"""Data frames of any library, one a record batch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from ringmain.feeds._arrow_batches import Batches
    from ringmain.feeds._arrow_ipc import IpcBatches

Frame = TypeVar("Frame")


class Frames(Generic[Frame]):
    """What `frames` returns: an iterator of data frames, plain or asynchronous.

    After a ParseError it goes on with the next connection. `skipped` records of `skipped_size` bytes were left out.
    """

    def __init__(self, batches: "Batches | IpcBatches", frame_of: Callable[[Any], Frame]) -> None:
        self._batches = batches
        self._frame_of = frame_of

    def __repr__(self) -> str:
        return f"<Frames of {self._batches!r}>"

    @property
    def skipped(self) -> int:
        """How many records were left out."""
        return self._batches.skipped

    @property
    def skipped_size(self) -> int:
        """How many bytes they had."""
        return self._batches.skipped_size

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        return self._frame_of(next(self._batches))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        return self._frame_of(await anext(self._batches))

"""What a loader can be iterated over besides its blocks: its records, connections, and the blocks of one peer each."""

from collections.abc import Coroutine
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from ringmain.flow.blocks import Flow
from ringmain.flow.many import Many
from ringmain.flow.records import Blocks, Records
from ringmain.stream import Result, Stream

Item = TypeVar("Item")


class Runs(Protocol):
    """What a plain `with` has."""

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run the private loop of a plain `with` until the work is done."""


class Source(Runs, Protocol):
    """A loader, as these see it."""

    def next_connection(self) -> Coroutine[Any, Any, Stream | None]:
        """Return the next connection, or None."""

    @property
    def many(self) -> Many:
        """Those who are served at once."""


class Iterated:
    """What a loader has of these: it is a `Source`, and an iterator of `Blocks` itself."""

    flow: Flow

    def __aiter__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def _verdict(self) -> str | None:
        """Return how the stream of the last block has ended, None while it goes on."""
        raise NotImplementedError

    def records(self, *, headers: bool = False) -> Records:
        """Iterate over single records instead, those of all connections, for a loader with a delimiter or framing.

        for record in loader.records():
            handle(record)

        A record is a read-only memoryview without its delimiter or length, or with `headers` all that came of it. It
        is a part of its block, which it keeps: let it go, or copy it (`bytes(record)`), before you take many more.
        """
        return Records(cast(Blocks, self), self.flow.cutter, self._verdict, headers=headers)

    def connections(self) -> "Connections":
        """Iterate over the connections instead, each a `Stream` of blocks, for those who must not join them.

        async for connection in loader.connections():
            async for block in connection:
                parse(connection.peer, block)
        """
        return Connections(cast(Source, self))

    def tagged(self) -> "Tagged":
        """Iterate over (peer, block) instead: each block has whole records of one peer, "192.0.2.1:51234".

        For a loader with `max_connections` above 1.
        """
        return Tagged(cast(Source, self))


class Items(Generic[Item]):
    """An iterator, plain or asynchronous, that ends at None."""

    def __init__(self, loader: Runs) -> None:
        self._loader = loader

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._loader!r}>"

    async def _next(self) -> Item | None:
        raise NotImplementedError

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        item = await self._next()
        if item is None:
            raise StopAsyncIteration
        return item

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        try:
            return self._loader.run(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class Connections(Items[Stream]):
    """What `Loader.connections` returns: an iterator of streams, plain or asynchronous."""

    def __init__(self, loader: Source) -> None:
        super().__init__(loader)
        self._source = loader

    async def _next(self) -> Stream | None:
        return await self._source.next_connection()


class Tagged(Items[tuple[str, memoryview]]):
    """What `Loader.tagged` returns: an iterator of (peer, block), plain or asynchronous."""

    def __init__(self, loader: Source) -> None:
        super().__init__(loader)
        self._source = loader

    async def _next(self) -> tuple[str, memoryview] | None:
        many = self._source.many
        taken = await many.next_of(many.take_of_one)
        return (taken.link.peer, taken.block) if taken is not None else None

"""What feeds take of a log: they parse blocks ahead, so none is done before so many others were taken, or all were."""

import weakref
from typing import TYPE_CHECKING

from ringmain.engines.nats_message import Message, tag_of

if TYPE_CHECKING:
    from ringmain.engines.nats_loader import LogLoader


class Origin:
    """The connection that a message is of, as feeds tell of it. One object a connection, while anybody has it."""

    def __init__(self, key: str, peer: str) -> None:
        self.key = key
        self.peer = peer


class Ahead:
    """The blocks of a loader, in the words of `flow.many.Many`."""

    def __init__(self, loader: "LogLoader") -> None:
        self._loader = weakref.ref(loader)
        self._origins: weakref.WeakValueDictionary[str, Origin] = weakref.WeakValueDictionary()

    def take_of_one(self) -> tuple[Origin, int, memoryview] | None:
        """Return the next block if there is one already: whose, its offset there, and itself."""
        loader = self._the_loader
        return self._part(loader.take_ahead(max(1, loader.ring.block_count // 2)))

    async def next_of(self, _: object) -> tuple[Origin, int, memoryview] | None:
        """Return the same once there is one; whoever waits is done with all that it took."""
        return self._part(await self._the_loader.next_message())

    def leave(self, origin: object) -> None:
        """Give back what was taken of a connection; a block of it that is sent again counts as another's."""
        assert isinstance(origin, Origin)
        self._origins.pop(origin.key, None)
        self._the_loader.give_back(lambda message: self._key_of(message) == origin.key)

    def _part(self, message: Message | None) -> tuple[Origin, int, memoryview] | None:
        if message is None:
            return None
        tag, key = tag_of(message), self._key_of(message)
        if (origin := self._origins.get(key)) is None:
            self._origins[key] = origin = Origin(key, tag.peer or key)
        return origin, tag.offset, memoryview(message.data)

    @staticmethod
    def _key_of(message: Message) -> str:
        return tag_of(message).connection or f"message {message.sequence}"

    @property
    def _the_loader(self) -> "LogLoader":
        loader = self._loader()
        assert loader is not None, "whoever takes has the loader"
        return loader

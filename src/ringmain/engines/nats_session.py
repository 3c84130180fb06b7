"""What one connection to a NATS server is given of the messages of a publisher, until it is of no more use.

Invariant: of each lane one message is under way, and the next is sent once that is acknowledged. Servers promise no
order of two that are: a leader that hands over, or a stream that is full for a moment, refuses one and takes the next.
"""

import asyncio
import collections
import time
from collections.abc import Callable, Iterable
from typing import Any

from ringmain.waiting import let_go

_LOOK = 0.1
# What a message takes besides its bytes, so that empty ones are bounded too.
_OVERHEAD = 1024


class Message:
    """One message. `on_stored` is called once it is acknowledged."""

    __slots__ = ("first_sent", "headers", "is_stored", "lane", "on_stored", "payload", "subject")

    def __init__(
        self,
        subject: str,
        payload: bytes | memoryview,
        headers: dict[str, str],
        on_stored: Callable[[], object],
        lane: str = "",
    ) -> None:
        """Make one of a payload that is not changed; a view is released once it is acknowledged.

        All of the same lane are stored in the order in which they are put, those of others side by side.
        """
        self.subject = subject
        self.payload = payload
        self.headers = headers
        self.on_stored = on_stored
        self.lane = lane
        self.first_sent: float | None = None
        self.is_stored = False

    def release(self) -> None:
        """Give the memory back."""
        if isinstance(self.payload, memoryview):
            self.payload.release()

    @property
    def size(self) -> int:
        """What it counts for."""
        return len(self.payload) + _OVERHEAD


class Session:
    """What one connection to the server is given: `messages`, and then what is added.

    It ends when nothing was acknowledged for `patience` seconds though something should have been, too.
    """

    def __init__(
        self, client: Any, messages: Iterable[Message], patience: float, stored: Callable[[Message], object]
    ) -> None:
        # No limit but ours: nats-py counts messages.
        self._stream = client.jetstream(publish_async_max_pending=1 << 30)
        self._lanes: dict[str, collections.deque[Message]] = {}  # behind the one that is due or sent
        self._due: collections.deque[Message] = collections.deque()
        self._sent: set[Message] = set()
        self._patience = patience
        self._stored = stored
        self._over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._wake = asyncio.Event()
        self._moved_at = time.monotonic()
        self.has_moved = False
        self.longest_pause = 0.0
        for message in messages:
            self.add(message)

    def add(self, message: Message) -> None:
        """Send a message after the others of its lane."""
        waiting = self._lanes.get(message.lane)
        if waiting is None:
            self._lanes[message.lane] = collections.deque()
            self._due.append(message)
            self._wake.set()
        else:
            waiting.append(message)

    def lose(self) -> None:
        """Hear that the connection is lost."""
        self.end(None)

    def end(self, trouble: Exception | None) -> None:
        """Send no more, for what went wrong."""
        if not self._over.done():
            self._over.set_result(trouble)

    async def run(self) -> Exception | None:
        """Send until something goes wrong; return that, or None where the connection is lost."""
        sending = asyncio.ensure_future(self._send())
        try:
            while not self._over.done():
                await asyncio.wait([self._over], timeout=_LOOK)
                if self._sent and self._pause() > self._patience:
                    self.end(TimeoutError(f"nothing was acknowledged for {self._patience:g} s"))
            return self._over.result()
        finally:
            self.end(None)
            self._wake.set()
            sending.cancel()  # which nats-py may swallow: then it ends after this message
            await let_go([sending])

    async def _send(self) -> None:
        try:
            while not self._over.done():
                if not self._due:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                message = self._due.popleft()
                if message.is_stored:  # as the connection before this one has heard meanwhile
                    self._go_on(message.lane)
                    continue
                now = time.monotonic()
                if not self._sent:
                    self._moved_at = now
                self._sent.add(message)
                message.first_sent = message.first_sent or now
                answer = await self._stream.publish_async(message.subject, message.payload, headers=message.headers)
                answer.add_done_callback(lambda answer, message=message: self._hear(answer, message))
        except Exception as error:
            self.end(error)

    def _go_on(self, lane: str) -> None:
        """Send the next message of a lane."""
        if waiting := self._lanes[lane]:
            self._due.append(waiting.popleft())
            self._wake.set()
        else:
            del self._lanes[lane]

    def _hear(self, answer: "asyncio.Future[Any]", message: Message) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if error is not None:
            self.end(error if isinstance(error, Exception) else None)
            return
        self._sent.discard(message)
        self.longest_pause = max(self.longest_pause, self._pause())
        self._moved_at = time.monotonic()
        self.has_moved = True
        self._go_on(message.lane)
        self._stored(message)

    def _pause(self) -> float:
        """Return for how long nothing was acknowledged, while something is to be."""
        return time.monotonic() - self._moved_at

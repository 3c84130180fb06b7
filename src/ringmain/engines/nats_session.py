"""What one connection to a NATS server is given of the messages of a publisher, until it is of no more use.

Invariant: no message is stored before another of its lane that was put before it. Servers promise no order of two that
are under way: a leader that hands over, or a stream that is full for a moment, refuses one and takes the next. So of
each lane one message is under way, and the next is sent once that is acknowledged, or else all are a chain: each tells
the stream which message must be the last one that it has, and is refused if another is. Then
- all that is behind a refused message is refused, too, and nothing is sent until all that is under way is answered;
- messages that others have put into the stream in between have all that is under way refused. It is sent again one by
  one, and a chain is tried later;
- what a connection has sent and was not answered may still be stored by the server, each message once the one before
  it in the chain is. So the next connection sends these in the same order, as a chain or one at a time, before others.
"""

import asyncio
import collections
import itertools
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import nats.errors
import nats.js.api
import nats.js.errors

from ringmain.waiting import let_go

_LOOK = 0.1
# What a message takes besides its bytes, so that empty ones are bounded too.
_OVERHEAD = 1024
_EXPECTED = "Nats-Expected-Last-Msg-Id"
_OTHER_LAST = 10070  # the server's err_code for a stream whose last message is another one
# How long messages are sent one by one after a chain was refused: longer each time, since what is under way then is
# sent in vain.
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_numbers = itertools.count(1)  # of all messages, in the order in which they are sent


class Message:
    """One message. `on_stored` is called once it is acknowledged."""

    __slots__ = ("first_sent", "headers", "is_stored", "lane", "number", "on_stored", "payload", "subject")

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
        self.number = 0  # under which it was sent first, if nobody knows what became of it since
        self.is_stored = False

    def release(self) -> None:
        """Give the memory back."""
        if isinstance(self.payload, memoryview):
            self.payload.release()

    @property
    def size(self) -> int:
        """What it counts for."""
        return len(self.payload) + _OVERHEAD


class Chains:
    """Whether messages may be a chain: if the stream bears it, and but some time after one was refused."""

    def __init__(self) -> None:
        self._at = 0.0
        self._pause = _PAUSE

    def may_begin(self) -> bool:
        """Tell whether it is time for one."""
        return time.monotonic() >= self._at

    def pause(self) -> None:
        """Have none for a while."""
        self._at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


class _Lane:
    """Messages that are stored in order: those that wait, and how many are under way."""

    __slots__ = ("chain", "is_due", "under_way", "waiting")

    def __init__(self) -> None:
        self.waiting: collections.deque[Message] = collections.deque()
        self.under_way = 0
        self.chain = 0  # that the last one is of
        self.is_due = False


class Session:
    """What one connection to the server is given: `messages`, and then what is added.

    It ends when nothing was answered for `patience` seconds though something should have been, too. chains: None for a
    stream that bears none.
    """

    def __init__(
        self,
        client: Any,
        messages: Iterable[Message],
        patience: float,
        stored: Callable[[Message], object],
        chains: Chains | None,
    ) -> None:
        self._client = client
        self._lanes: dict[str, _Lane] = {}
        self._due: collections.deque[_Lane] = collections.deque()  # where a message may be sent
        self._sent: dict[int, tuple[_Lane, Message]] = {}  # by numbers, which answers tell
        self._refused: dict[int, Message] = {}  # while there are some nothing is sent
        self._patience = patience
        self._stored = stored
        self._chains = chains
        self._chain = 0  # the number of the first message of the one that is being sent, if any
        self._last = ""  # the id of the message that was sent last
        self._over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._trouble: Exception | None = None
        self._wake = asyncio.Event()
        self._moved_at = time.monotonic()
        self.has_moved = False
        self.longest_pause = 0.0
        # What was sent and not answered, in that order: a lane of its own, before all others.
        doubtful = sorted((it for it in messages if it.number), key=lambda it: it.number)
        self._doubtful = dict.fromkeys(doubtful)
        self._again = _Lane()
        self._again.waiting.extend(doubtful)
        self._look_at(self._again)
        for message in messages:
            if not message.number:
                self.add(message)

    def add(self, message: Message) -> None:
        """Send a message after the others of its lane."""
        lane = self._lanes.get(message.lane)
        if lane is None:
            lane = self._lanes[message.lane] = _Lane()
        lane.waiting.append(message)
        self._look_at(lane)

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
                    self.end(self._trouble or TimeoutError(f"nothing was acknowledged for {self._patience:g} s"))
            return self._over.result()
        finally:
            self.end(None)
            self._wake.set()
            sending.cancel()  # which nats-py may swallow: then it ends after this message
            await let_go([sending])

    async def _send(self) -> None:
        try:
            inbox = await self._client.hear_answers(self._hear)
            while not self._over.done():
                if not self._due:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                lane = self._due.popleft()
                lane.is_due = False
                if not self._may_send(lane):  # any more
                    continue
                message = lane.waiting.popleft()
                if message.is_stored:  # as the connection before this one has heard meanwhile
                    self._settle(lane, message)
                    continue
                headers = self._headers_for(lane, message)
                self._sent[message.number] = lane, message
                lane.under_way += 1
                self._look_at(lane)
                await self._client.send(message.subject, message.payload, f"{inbox}.{message.number}", headers)
        except Exception as error:
            self.end(error)

    def _headers_for(self, lane: _Lane, message: Message) -> dict[str, str]:
        """Return the headers of a message that is sent next, and note that it is."""
        now = time.monotonic()
        message.first_sent = message.first_sent or now
        message.number = message.number or next(_numbers)
        if not self._sent:
            self._moved_at = now
            self._chain = 0  # nothing is left of it that others could get between
        expected = self._last if self._chain else ""
        if not self._chain and self._chains is not None and self._chains.may_begin():
            self._chain = message.number
        self._last = message.headers["Nats-Msg-Id"]
        lane.chain = self._chain
        return {**message.headers, _EXPECTED: expected} if expected else message.headers

    def _may_send(self, lane: _Lane) -> bool:
        is_next = not lane.under_way or 0 < self._chain == lane.chain
        in_turn = lane is self._again or not self._doubtful
        return bool(lane.waiting) and is_next and in_turn and not self._refused

    def _look_at(self, lane: _Lane) -> None:
        """Have the next message of a lane sent, in turn with the others, if it may be."""
        if not lane.is_due and self._may_send(lane):
            lane.is_due = True
            self._due.append(lane)
            self._wake.set()

    def _look_at_all(self) -> None:
        for lane in (self._again, *self._lanes.values()):
            self._look_at(lane)

    def _settle(self, lane: _Lane, message: Message) -> None:
        """Go on behind a message that is stored; forget a lane that is empty."""
        if lane is self._again:
            del self._doubtful[message]
            if not self._doubtful:
                self._look_at_all()
        elif not lane.waiting and not lane.under_way and not self._refused:
            del self._lanes[message.lane]
        self._look_at(lane)

    def _hear(self, subject: str, data: bytes, headers: bytes | None) -> None:
        """Hear what the stream answers, or that there is none."""
        try:
            if (number := int(subject.rpartition(".")[2])) not in self._sent:
                return
            error = _error_in(data, headers)
            lane, message = self._sent.pop(number)
            lane.under_way -= 1
            if error is None:
                self.longest_pause = max(self.longest_pause, self._pause())
                self.has_moved = True
                self._stored(message)
                self._settle(lane, message)
            else:
                self._refused[number] = message
                if getattr(error, "err_code", None) != _OTHER_LAST:
                    self._trouble = self._trouble or error
            self._moved_at = time.monotonic()
            if self._refused and not self._sent:
                self._go_back()
        except Exception as error:
            self.end(error)

    def _go_back(self) -> None:
        """Take back what was refused, now that all is answered: send it one by one, if nothing else is wrong."""
        again = bool(self._doubtful)
        for number in sorted(self._refused, reverse=True):
            message = self._refused.pop(number)
            lane = self._again if again else self._lanes[message.lane]
            lane.waiting.appendleft(message)
            if not again:
                message.number = 0
        self._lanes = {name: lane for name, lane in self._lanes.items() if lane.waiting}
        if self._chain and self._chains is not None:
            self._chain = 0
            self._chains.pause()
        if self._trouble is not None:
            self.end(self._trouble)
        else:
            self._look_at_all()

    def _pause(self) -> float:
        """Return for how long nothing was answered, while something is to be."""
        return time.monotonic() - self._moved_at


def _error_in(data: bytes, headers: bytes | None) -> Any:
    """Return the error that is answered to a message, None where it is stored."""
    if headers is not None:  # the server's own, to a subject that nobody hears
        return nats.js.errors.NoStreamResponseError()
    try:
        answer = json.loads(data)
        if "error" in answer:
            nats.js.errors.APIError.from_error(answer["error"])
        nats.js.api.PubAck.from_response(answer)
    except nats.js.errors.APIError as error:
        return error
    except (ValueError, TypeError, LookupError, AttributeError):
        return nats.errors.Error(f"nats: somebody who is no stream has answered {data[:80]!r}")
    return None

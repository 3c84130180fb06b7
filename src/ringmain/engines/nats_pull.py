"""A durable pull consumer of JetStream: messages come for as many bytes as there is room, and are acknowledged or not.

What nats-py has for this asks for numbers of messages only, and not for bytes; so the requests are made here, as
https://docs.nats.io/nats-concepts/jetstream/consumers describes them. Two of them are open at a time, each for half of
the room. What comes is kept alive by telling the server that work goes on, for as long as the loop runs.
"""

import asyncio
import itertools
import json
import logging
from collections import deque
from typing import Any

from nats.errors import Error as NatsError

from ringmain.engines.nats_consumer import Wanted, consumer_of
from ringmain.engines.nats_failures import may_pass
from ringmain.engines.nats_message import Message, tag_of
from ringmain.engines.nats_server import NatsServer
from ringmain.errors import NotFoundError, RingmainError, TimedOutError, UsageError, reason
from ringmain.net.readiness import finish

log = logging.getLogger("ringmain")

_MOST_AT_ONCE = 500  # messages a request, however small
_OVERHEAD = 64 << 10  # subject, reply and headers of one message, at most
_EXPIRES = 5.0
# The server says when a request is over. One that it has forgotten, as with a leader that died, is given up after this.
_FORGOTTEN = _EXPIRES + 2.0
_PAUSE = 0.25  # after a refusal that may pass
_SHORTEST_LOOK, _LONGEST_LOOK = 0.02, 1.0  # whether all is done, where it is to end
_ACK_WAIT = 30.0  # as servers have it


class _Request:
    """A request for messages that is open at the server: how many may still come, and whether any has since."""

    __slots__ = ("count", "deadline", "served", "subject")

    def __init__(self, subject: str, count: int, deadline: float) -> None:
        self.subject = subject
        self.count = count
        self.deadline = deadline
        self.served = False


class Puller:
    """Take messages of a stream: `next` waits for one, `ack` and `nak` say what became of it.

    At most `room` bytes are here that nobody has taken, or two of the largest messages that the server lets through.
    """

    def __init__(self, server: NatsServer, wanted: Wanted, room: int) -> None:
        self.size = 0  # of all that wait here
        self.what = f"stream {wanted.stream} at {server.endpoint.cluster}"
        self._server = server
        self._wanted = wanted
        self._share = room // 2
        self._messages: deque[Message] = deque()
        self._taken: dict[Message, None] = {}  # and neither acknowledged nor given back
        self._tells: deque[tuple[str, bytes]] = deque()  # what became of others, on its way to the server
        self._requests: deque[_Request] = deque()
        self._numbers = itertools.count()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: RingmainError | None = None
        self._stopped = False
        self._seen = 0  # the last sequence that the consumer has come to, as far as is known here
        self._pause_until = self._look_at = 0.0
        self._look_delay = _SHORTEST_LOOK
        self._woken = False
        self._in_doubt = False  # whether the consumer is still there
        self._patient = False  # as somebody was told already
        self._advancing: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._subscription: Any = None

    @property
    def fullness(self) -> float:
        """The part of the room that is filled, from 0 to 1."""
        return min(1.0, self.size / (2 * self._share))

    async def open(self) -> None:
        """Find the consumer, or make it; raise RingmainError. Whoever has opened the server closes it."""
        self._loop = asyncio.get_running_loop()
        client = self._server.client
        self._jetstream = client.jetstream()
        info = await consumer_of(self._server, self._jetstream, self._wanted, self.what)
        config = info.config
        self._seen = info.delivered.stream_seq
        self._filters = config.filter_subjects or [config.filter_subject or ">"]
        self._ack_wait = min([config.ack_wait or _ACK_WAIT, *(config.backoff or [])])
        self._share = max(self._share, client.max_payload + _OVERHEAD)
        self._inbox = client.new_inbox()
        subscribing = client.subscribe(
            f"{self._inbox}.*", cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        self._subscription = await self._ask(subscribing)
        self._server.on_back = self._forget_requests
        self._server.on_over = self._wake
        self._keeping = self._loop.create_task(self._keep())

    async def next(self, idle_timeout: float | None = None, *, ends: bool = False) -> Message | None:
        """Return the next message, once there is one; None after `stop`, or once all up to `until_sequence` is done.

        Those that tell how a connection has ended are left out, unless `ends` asks for them.
        Raises TimedOutError after so many seconds without one, or what ends all.
        """
        since = self._loop.time()
        while True:
            self._woken = False
            await self._advance()
            if (message := self._take(ends)) is not None:
                return message
            if self._stopped:
                return None
            if (failure := self._failure or self._server.failure) is not None:
                raise failure
            if self._in_doubt:
                self._in_doubt = False
                await self._ask_patiently(self._jetstream.consumer_info(self._wanted.stream, self._wanted.consumer))
            elif await self._is_done():
                return None
            if idle_timeout is not None and self._loop.time() - since >= idle_timeout:
                why = f"no message for {idle_timeout:g} s"
                raise TimedOutError(self.what, why, "is anything still published?", limit="idle_timeout")
            await self._wait(None if idle_timeout is None else since + idle_timeout)

    def take(self) -> Message | None:
        """Return the next message if there is one already."""
        message = self._take(ends=False)
        self._kick()
        return message

    def ack(self, message: Message) -> None:
        """Tell the server, as soon as the loop goes on, that a message is done."""
        self._tell(message, b"")

    def nak(self, message: Message, seconds: float = 0.0) -> None:
        """Give a message back: the server sends it to whoever asks, after so many seconds."""
        self._tell(message, b'-NAK {"delay": %d}' % (seconds * 1e9) if seconds else b"-NAK")

    def stop(self) -> None:
        """Let `next` return None from now on."""
        self._stopped = True
        self._wake()

    async def close(self) -> None:
        """Give back all that was neither acknowledged nor given back, and ask for no more."""
        self.abandon()
        if self._subscription is None or self._server.failure is not None or not self._server.client.is_connected:
            return
        try:
            async with asyncio.timeout(_EXPIRES):
                await self._send_tells()  # first: what is done is not to come again, however slow the rest is
                await self._subscription.drain()  # which lets come what is on its way
                for message in [*self._taken, *self._messages]:
                    self.nak(message)
                self._messages.clear()
                await self._send_tells()
                await self._server.client.flush()
        except Exception as error:  # the server sends them again all the same, once their time is over
            log.info("%s: %s", self.what, reason(error))

    def abandon(self) -> None:
        """Ask for no more, without a word to the server."""
        self._stopped = True
        for task in (self._keeping, self._advancing):
            if task is not None and not self._loop.is_closed():
                task.cancel()

    async def _ask(self, request: Any) -> Any:
        return await self._server.ask(request, self.what)

    async def _ask_patiently(self, request: Any) -> Any:
        """Return an answer, or None where the servers cannot tell now, as between two leaders."""
        try:
            answer = await self._ask(request)
        except RingmainError as error:
            if not may_pass(error):
                raise
            if not self._patient:
                self._patient = True
                log.warning("%s; trying again", error)
            self._pause_until = self._loop.time() + _PAUSE
            return None
        self._patient = False
        return answer

    # What is asked for, and told

    async def _advance(self) -> None:
        """Tell what became of messages, and ask for more where there is room for it."""
        await self._send_tells()
        if self._loop.time() < self._pause_until or not self._server.client.is_connected:
            return
        while not self._stopped and (count := self._count_wanted()):
            request = _Request(f"{self._inbox}.{next(self._numbers)}", count, self._loop.time() + _FORGOTTEN)
            self._requests.append(request)
            wanted = {"batch": count, "max_bytes": self._share, "expires": int(_EXPIRES * 1e9)}
            name = f"$JS.API.CONSUMER.MSG.NEXT.{self._wanted.stream}.{self._wanted.consumer}"
            await self._publish(name, json.dumps(wanted).encode(), request.subject)

    def _count_wanted(self) -> int:
        """Return how many messages to ask for: 0 where that has been done, or there is no room."""
        if len(self._requests) == 2 or self.size + len(self._requests) * self._share > self._share:
            return 0
        if self._wanted.until_sequence is None:
            return _MOST_AT_ONCE
        left = self._wanted.until_sequence - self._seen - sum(it.count for it in self._requests)
        return min(left, _MOST_AT_ONCE) if left > 0 else int(not self._requests)  # for one that is sent again

    def _kick(self) -> None:
        """Advance as soon as the loop goes on."""
        if self._advancing is None or self._advancing.done():
            self._advancing = self._loop.create_task(self._advance())

    def _tell(self, message: Message, word: bytes) -> None:
        self._taken.pop(message, None)
        self._tells.append((message.raw.reply, word))

    async def _send_tells(self) -> None:
        while self._tells:
            reply, word = self._tells[0]
            await self._publish(reply, word)
            if self._tells and self._tells[0] == (reply, word):
                self._tells.popleft()

    async def _publish(self, subject: str, data: bytes, reply: str = "") -> None:
        try:
            await self._server.client.publish(subject, data, reply=reply)
        except (OSError, NatsError) as error:  # it is lost with the connection, which is told of by others
            log.info("%s: %s", self.what, reason(error))

    async def _keep(self) -> None:
        """Tell the server that work goes on, for all that has come and is not done."""
        while True:
            await asyncio.sleep(self._ack_wait / 3)
            for message in [*self._taken, *self._messages]:
                now = self._loop.time()
                if self._server.client.is_connected and now < message.due:
                    await self._publish(message.raw.reply, b"+WPI")
                    message.due = now + self._ack_wait

    def _forget_requests(self) -> None:
        """Begin anew on another connection: its server knows nothing of what was asked for."""
        self._requests.clear()
        self._wake()

    # What comes

    async def _on_message(self, raw: Any) -> None:
        if raw.reply:
            message = Message(raw, self._loop.time() + self._ack_wait)
            self._messages.append(message)
            self.size += len(message.data)
            self._seen = max(self._seen, message.sequence)
            self._look_delay, self._look_at = _SHORTEST_LOOK, 0.0
            for request in self._requests:  # in turns, and nothing tells which of them this message is for
                request.served = True
            if self._requests:
                self._requests[0].count -= 1
                if self._requests[0].count == 0:
                    self._requests.popleft()
        else:  # it is no message of the stream: it says how a request has ended
            self._on_status(raw.subject, raw.headers or {})
        self._wake()

    def _on_status(self, subject: str, headers: dict[str, str]) -> None:
        request = next((it for it in self._requests if it.subject == subject), None)
        if request is not None:
            self._requests.remove(request)
        status, words = headers.get("Status", ""), headers.get("Description", "")
        what = f"consumer {self._wanted.consumer} of {self.what}"
        if words == "Message Size Exceeds MaxBytes":
            if request is not None and not request.served:  # not even one: it is from before max_payload was lowered
                self._share *= 2
        elif words == "Consumer Deleted":
            self._failure = NotFoundError(what, "somebody has deleted it", "start again to make another")
        elif status == "400" or "push based" in words or words.startswith("Exceeded MaxRequest"):
            self._failure = UsageError(what, words, "make it without such limits, or choose another consumer=")
        elif status not in ("404", "408"):  # a leader that has changed, or nobody who answers
            self._in_doubt = True
            self._pause_until = self._loop.time() + _PAUSE

    def _take(self, ends: bool) -> Message | None:
        """Return the next message that is there."""
        until = self._wanted.until_sequence
        while self._messages and not self._stopped:
            message = self._messages.popleft()
            self.size -= len(message.data)
            if self._loop.time() > message.due:  # the loop stood still: the server has given it to others by now
                continue
            if until is not None and message.sequence > until:
                self.nak(message, _LONGEST_LOOK)
            elif not message.data and not (ends and tag_of(message).verdict):
                self.ack(message)
            else:
                self._taken[message] = None
                return message
        return None

    async def _is_done(self) -> bool:
        """Tell whether everybody is done with all up to `until_sequence`; looked for from time to time."""
        until, now = self._wanted.until_sequence, self._loop.time()
        if until is None or self._taken or now < self._look_at:
            return False
        self._look_at, self._look_delay = now + self._look_delay, min(2 * self._look_delay, _LONGEST_LOOK)
        stream = self._wanted.stream
        info = await self._ask_patiently(self._jetstream.consumer_info(stream, self._wanted.consumer))
        floor = info.ack_floor.stream_seq if info is not None else 0
        if info is None or floor >= until:
            return info is not None
        about = await self._ask_patiently(self._jetstream.stream_info(stream))
        if about is None or about.state.last_seq < until:
            return False
        for subject in self._filters:  # is any message above the floor one of those?
            try:
                message = await self._ask_patiently(
                    self._jetstream.get_msg(stream, seq=floor + 1, subject=subject, next=True)
                )
            except NotFoundError:
                continue
            if message is None or message.seq <= until:
                return False
        return True

    async def _wait(self, deadline: float | None) -> None:
        """Return once something has come, or it is time to look, or to ask again."""
        now = self._loop.time()
        times = [it.deadline for it in self._requests]
        times += [it for it in (deadline, self._pause_until, self._look_at) if it is not None and it > now]
        if not self._woken:
            self._waiter = waiter = self._loop.create_future()
            timer = self._loop.call_at(min(times), finish, waiter) if times else None
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        now = self._loop.time()
        self._requests = deque(it for it in self._requests if it.deadline > now)

    def _wake(self) -> None:
        self._woken = True  # also where nobody waits yet
        if self._waiter is not None:
            finish(self._waiter)

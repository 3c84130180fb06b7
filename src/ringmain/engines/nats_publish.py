"""Messages into a NATS stream: each once and in order, however often the server is lost on the way.

Invariants:
- A message is held from `put` until the stream has acknowledged it, and all that are held have at most `max_in_flight`
  bytes. Who puts more waits, first come, first served.
- What a connection to the server is given begins with the oldest message that is not acknowledged, and goes on in the
  order of `put`. Whatever goes wrong (it is lost, an error is answered, nothing is acknowledged) ends that connection,
  and the next one begins anew: a message that was stored is told from its `Nats-Msg-Id`.
- nats-py keeps what it has not sent yet for the connection that it makes by itself after one is lost, which would bring
  new messages before lost ones: so each connection is a client of its own, and none connects again.
"""

import asyncio
import collections
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import ringmain.engines.nats_server as nats_server
from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_papers import Papers
from ringmain.engines.nats_stream import Stream, check_stream, check_subject, open_stream
from ringmain.errors import ConnectError, RecordTooLongError, ResolveError, RingmainError, SendError, TimedOutError
from ringmain.settings import Settings
from ringmain.waiting import let_go

log = logging.getLogger("ringmain")

# Without an acknowledgement for so long, all that is not acknowledged is sent again; longer where the server was seen
# to take longer, or what is sent in vain would keep it from ever coming to an end.
_PATIENCE = 2.0
_MOST_PATIENCE = 60.0
# Nothing new is sent after so long without one: what went before may be lost, and a new leader, which takes longer than
# that to be found, would store what comes later first.
_HOLD = 0.5
_LOOK = 0.1
_RETRY_DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0)
# What a message takes besides its bytes, so that empty ones are bounded too.
_OVERHEAD = 1024
# How long the end of this waits for a server to take leave.
_FAREWELL = 1.0
# Connections that are being closed, each for as long as a server takes that may not answer.
_CLOSING = 3
_TOO_LARGE = 10054  # the server's err_code


class Message:
    """One message. `on_stored` is called once it is acknowledged."""

    __slots__ = ("first_sent", "headers", "is_stored", "on_stored", "payload", "subject")

    def __init__(
        self, subject: str, payload: bytes | memoryview, headers: dict[str, str], on_stored: Callable[[], object]
    ) -> None:
        """Make one of a payload that is not changed; a view is released once it is acknowledged."""
        self.subject = subject
        self.payload = payload
        self.headers = headers
        self.on_stored = on_stored
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


class Publisher:
    """`async with`: put messages into the stream that takes the subjects of an endpoint.

    Once open, `stream` tells of it. `stored` counts the bytes that were acknowledged. An outage is waited out, with a
    warning; what can never go on, as a permission that is missing, is raised by every `put` from then on, and `failed`
    is called.
    """

    def __init__(
        self,
        endpoint: LogEndpoint,
        settings: Settings,
        credentials: str | None = None,
        *,
        max_in_flight: int,
        create_stream: str | None = None,
    ) -> None:
        check_subject(endpoint.name)
        if create_stream is not None:
            check_stream(create_stream)
        self.endpoint = endpoint
        self.stored = 0
        self.failure: RingmainError | None = None
        self.failed: Callable[[], object] = lambda: None
        self.stream = Stream("", 0, 0.0)
        self._settings = settings
        self.papers = Papers(settings, credentials)
        self.papers.on_others = self._begin_anew
        self._create_stream = create_stream
        self._limit = max_in_flight
        self._held: dict[Message, None] = {}  # in the order of `put`
        self._size = 0
        self._putting = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self._server: nats_server.NatsServer | None = None
        self._task: asyncio.Task[None] | None = None
        self._session: _Session | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._patience = _PATIENCE
        self.reconnects = self.connect_failures = 0  # after a loss
        self._out_since: float | None = None  # when an outage began, of which was warned

    async def __aenter__(self) -> "Publisher":
        """Connect, trying again `settings.retry` times, and look for the stream; raise RingmainError."""
        server = nats_server.NatsServer(self.endpoint, self._settings, self.papers, reconnects=False)
        await server.open()
        try:
            self.stream = await open_stream(server, self._create_stream)
        except BaseException:
            await server.close()
            raise
        self._server = server
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection; what is not acknowledged by now is given up."""
        if self._task is not None:
            self._task.cancel()
            await let_go([self._task])
            self._leave()  # where it was cancelled before it had begun
        if self._closing:
            await asyncio.wait(self._closing, timeout=_FAREWELL)
        for message in self._held:
            message.release()
        self._held.clear()

    @property
    def is_lost(self) -> bool:
        """Whether there is no connection to a server."""
        return self._server is None

    @property
    def fullness(self) -> float:
        """The part of `max_in_flight` that is not acknowledged yet, from 0 to 1."""
        return min(1.0, self._size / self._limit)

    async def put(self, message: Message) -> None:
        """Have a message sent, once there is room for it. Cancelled, it is not."""
        async with self._putting:
            while self.failure is None and self._held and self._size + message.size > self._limit:
                self._room = asyncio.get_running_loop().create_future()
                await self._room
            if self.failure is not None:
                raise self.failure
            self._held[message] = None
            self._size += message.size
            if self._session is not None:
                self._session.add(message)

    async def _run(self) -> None:
        """Send all that is put, by one connection after another."""
        try:
            while True:
                try:
                    if self._server is not None:
                        await self._send_by(self._server)
                finally:
                    self._leave()
                while len(self._closing) >= _CLOSING:
                    await asyncio.wait(self._closing, return_when=asyncio.FIRST_COMPLETED)
                self._server = await self._connect_again()
        except RingmainError as error:
            self._fail(error)
        except Exception as error:
            self._fail(SendError(f"publish to {self.endpoint}", repr(error), "please report this"))

    async def _send_by(self, server: "nats_server.NatsServer") -> None:
        """Send by one connection, until it is of no more use; raise what can never go on."""
        what = f"publish to {self.endpoint}"
        if server.client.max_payload < self.stream.max_message:
            why = f"its max_payload is {server.client.max_payload} bytes, that of the first server was larger"
            raise RecordTooLongError(what, why, "give all servers the same")
        self._tell_of_the_forgotten()
        self._session = session = _Session(server.client, list(self._held), self._patience, self._stored)
        server.on_lost, server.on_refusal = session.lose, session.end
        try:
            trouble = await server.ask(session.run(), what)
        finally:
            self._session = None
        if not session.has_moved:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        else:
            self._patience = max(_PATIENCE, min(_MOST_PATIENCE, 2 * session.longest_pause))
        if trouble is None:  # it was lost, as the server's end of it has told
            self._out_since = self._out_since or time.monotonic()
            return
        if getattr(trouble, "err_code", None) == _TOO_LARGE:
            raise RecordTooLongError(what, _words(trouble), "raise the stream's max_msg_size, or lower message_size=")
        if self._out_since is None:
            self._out_since = time.monotonic()
            log.warning("%s: %s; %d bytes are sent again until they are stored", what, _words(trouble), self._size)
        await asyncio.sleep(_HOLD)

    def _begin_anew(self) -> None:
        """Send by another connection, which is made by what was read since."""
        if self._session is not None:
            self._session.lose()

    async def _connect_again(self) -> "nats_server.NatsServer":
        """Return a new connection, however long that takes; raise what can never go on."""
        settings, attempt = dataclasses.replace(self._settings, retry=0), 0
        while True:
            server = nats_server.NatsServer(self.endpoint, settings, self.papers, reconnects=False)
            try:
                await server.open()
            except (ResolveError, ConnectError, TimedOutError) as error:
                self.connect_failures += 1
                log.info("%s", error)
                await asyncio.sleep(_RETRY_DELAYS[min(attempt, len(_RETRY_DELAYS) - 1)])
                attempt += 1
            else:
                self.reconnects += 1
                return server

    def _tell_of_the_forgotten(self) -> None:
        """Warn of messages that are sent again after the stream has forgotten that it may have them."""
        window, now = self.stream.duplicate_window, time.monotonic()
        ages = [now - message.first_sent for message in self._held if message.first_sent is not None]
        if late := [age for age in ages if age > window]:
            log.warning(
                "%s: %d messages are sent again after %.0f s, the stream remembers them for %g s: they may be in it "
                "twice; raise its duplicate window (nats stream edit %s --dupe-window)",
                *(self.endpoint, len(late), max(late), window, self.stream.name),
            )

    def _leave(self) -> None:
        """Close the connection, which may take its time, while the next one is made."""
        server, self._server = self._server, None
        if server is None:
            return
        task = asyncio.get_running_loop().create_task(server.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _stored(self, message: Message) -> None:
        """Let go of a message that was acknowledged, by whichever connection."""
        if message.is_stored or message not in self._held:
            return
        del self._held[message]
        self._size -= message.size
        self.stored += len(message.payload)
        message.is_stored = True
        message.release()
        if self._out_since is not None:
            log.warning(
                "%s: messages are stored again, after %.1f s", self.endpoint, time.monotonic() - self._out_since
            )
            self._out_since = None
        self._make_room()
        message.on_stored()

    def _fail(self, error: RingmainError) -> None:
        self.failure = error
        self._make_room()
        self.failed()

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class _Session:
    """What one connection to the server is given: `messages`, and then what is added."""

    def __init__(
        self, client: Any, messages: list[Message], patience: float, stored: Callable[[Message], object]
    ) -> None:
        # No limit but ours: nats-py counts messages.
        self._stream = client.jetstream(publish_async_max_pending=1 << 30)
        self._due = collections.deque(messages)
        self._sent: set[Message] = set()
        self._patience = patience
        self._stored = stored
        self._over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._wake = asyncio.Event()
        self._moved_at = time.monotonic()
        self.has_moved = False
        self.longest_pause = 0.0

    def add(self, message: Message) -> None:
        """Send a message after the others."""
        self._due.append(message)
        self._wake.set()

    def lose(self) -> None:
        """Hear that the connection is lost."""
        self.end(None)

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
                if not self._due or (self._sent and self._pause() > _HOLD):
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                message = self._due.popleft()
                if message.is_stored:  # as the connection before this one has heard meanwhile
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
        self._wake.set()
        self._stored(message)

    def _pause(self) -> float:
        """Return for how long nothing was acknowledged, while something is to be."""
        return time.monotonic() - self._moved_at

    def end(self, trouble: Exception | None) -> None:
        """Send no more, for what went wrong."""
        if not self._over.done():
            self._over.set_result(trouble)


def _words(error: Exception) -> str:
    return str(getattr(error, "description", None) or error or type(error).__name__).removeprefix("nats: ")

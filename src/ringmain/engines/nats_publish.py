"""Messages into a NATS stream: each once and in order, however often the server is lost on the way.

Invariants:
- A message is held from `put` until the stream has acknowledged it, and all that are held have at most `max_in_flight`
  bytes. Who puts more waits, first come, first served.
- Whatever goes wrong with a connection to the server (it is lost, an error is answered, nothing is acknowledged) ends
  it, and the next one is given all that is held anew: a message that was stored is told from its `Nats-Msg-Id`.
- nats-py keeps what it has not sent yet for the connection that it makes by itself after one is lost, which would bring
  new messages before lost ones: so each connection is a client of its own, and none connects again.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable

import ringmain.engines.nats_server as nats_server
from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_failures import may_pass
from ringmain.engines.nats_papers import Papers
from ringmain.engines.nats_session import Chains, Message, Session
from ringmain.engines.nats_stream import Stream, check_stream, check_subject, open_stream, pattern_of, stream_for, takes
from ringmain.errors import NotFoundError, RecordTooLongError, RingmainError, SendError
from ringmain.net.backoff import Backoff, Tally
from ringmain.settings import Settings
from ringmain.waiting import let_go

log = logging.getLogger("ringmain")

# Without an acknowledgement for so long, all that is not acknowledged is sent again; longer where the server was seen
# to take longer, or what is sent in vain would keep it from ever coming to an end.
_PATIENCE = 2.0
_MOST_PATIENCE = 60.0
# The pause after an error that a server has answered.
_HOLD = 0.5
# How long the end of this waits for a server to take leave.
_FAREWELL = 1.0
# Connections that are being closed, each for as long as a server takes that may not answer.
_CLOSING = 3
# The longest pause between two tries to connect again.
_LONGEST_PAUSE = 2.0
# For so long no stream may take a subject that one took before, as while somebody makes it anew.
_GONE = 10.0
_TOO_LARGE = 10054  # the server's err_code


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
        self.stream = Stream("", (), 0, 0.0, chains=False)
        self._settings = settings
        self.papers = Papers(settings, credentials)
        self.papers.on_others = self._begin_anew
        self._create_stream = create_stream
        self._limit = max_in_flight
        self._held: dict[Message, None] = {}  # in the order of `put`
        self._subject = pattern_of(endpoint.name)  # or that of the message that was put last
        self._size = 0
        self._putting = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self._server: nats_server.NatsServer | None = None
        self._task: asyncio.Task[None] | None = None
        self._session: Session | None = None
        self._chains = Chains()
        self._closing: set[asyncio.Task[None]] = set()
        self._patience = _PATIENCE
        self.tally = Tally()
        self._out_since: float | None = None  # when an outage began, of which was warned
        self._gone_since: float | None = None  # since when no stream takes what was put, of which was warned

    async def __aenter__(self) -> "Publisher":
        """Connect, trying again `settings.retry` times, and look for the stream; raise RingmainError."""
        server = self._new_server(self._settings)
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
        try:
            if self._task is not None:
                self._task.cancel()
                await let_go([self._task])
                self._leave()  # where it was cancelled before it had begun
            if self._closing:
                await asyncio.wait(self._closing, timeout=_FAREWELL)
        finally:
            for message in self._held:
                message.release()
            self._held.clear()

    def abandon(self) -> None:
        """Close without a word to the server, on a loop that runs or does not any more."""
        server, self._server = self._server, None
        if server is not None:
            server.abandon()
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.cancel()

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
            self._subject = message.subject
            self._size += message.size
            if self._session is not None:
                self._session.add(message)

    async def until_taken(self, subject: str) -> None:
        """Return once it is known that a stream takes a subject of our pattern; raise NotFoundError if none does."""
        while not takes(self.stream, subject):
            if self.failure is not None:
                raise self.failure
            try:
                if self._server is not None:
                    await stream_for(self._server, subject)
                    return
            except RingmainError as error:
                if isinstance(error, NotFoundError) and not may_pass(error):
                    raise
            await asyncio.sleep(_HOLD)  # the server is away

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
        if self.tally.reconnects:
            await self._look_again(server)
        if server.is_lost:
            return
        if server.client.max_payload < self.stream.max_message:
            why = f"its max_payload is {server.client.max_payload} bytes, that of the first server was larger"
            raise RecordTooLongError(what, why, "give all servers the same")
        self._tell_of_the_forgotten()
        chains = self._chains if self.stream.chains else None
        self._session = session = Session(server.client, self._held, self._patience, self._stored, chains)
        server.on_lost = session.lose
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
            words = "%s: %s; %d bytes are sent again until they are stored: see nats stream info %s"
            log.warning(words, what, _words(trouble), self._size, self.stream.name)
        await asyncio.sleep(_HOLD)

    def _begin_anew(self) -> None:
        """Send by another connection, which is made by what was read since."""
        if self._session is not None:
            self._session.lose()

    async def _look_again(self, server: "nats_server.NatsServer") -> None:
        """Hear what has become of the stream in an outage; raise that it is gone, once it has been for long."""
        self.stream = self.stream._replace(chains=False)  # unless it is known that it may have them
        waiting = next((it.subject for it in self._held), None)
        try:
            self.stream = await stream_for(server, waiting or self._subject)
        except RingmainError as error:
            if waiting is None or may_pass(error) or server.is_lost:
                return
            now = time.monotonic()
            if not isinstance(error, NotFoundError) or now - (self._gone_since or now) > _GONE:
                raise
            if self._gone_since is None:
                self._gone_since = now
                log.warning("%s; looking for it for %g s", error, _GONE)
        else:
            self._gone_since = None

    def _new_server(self, settings: Settings) -> "nats_server.NatsServer":
        return nats_server.NatsServer(self.endpoint, settings, self.papers, reconnects=False, tally=self.tally)

    async def _connect_again(self) -> "nats_server.NatsServer":
        """Return a new connection, however long that takes, whatever the servers say: they may be set up just now."""
        settings, told = dataclasses.replace(self._settings, retry=0), set()

        async def connect() -> "nats_server.NatsServer":
            self.papers.read_changed()
            server = self._new_server(settings)
            await server.open()
            return server

        def goes_on(error: RingmainError) -> bool:
            if not nats_server.is_outage(error) and type(error) not in told:  # outages were told of
                told.add(type(error))
                log.warning("%s; trying again", error)
            return True

        server = await Backoff(_LONGEST_PAUSE).keep_trying(connect, goes_on, -1)
        self.tally.reconnects += 1
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


def _words(error: Exception) -> str:
    return str(getattr(error, "description", None) or error or type(error).__name__).removeprefix("nats: ")

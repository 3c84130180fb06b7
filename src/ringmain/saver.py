"""Save: bytes to one connection at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, cast

from ringmain._ring import Counters
from ringmain.blocking import Blocking, BlockingSaver
from ringmain.endpoint import Endpoint
from ringmain.flow.clients import Clients
from ringmain.flow.outflow import Outflow
from ringmain.net.dial import context_for, dial
from ringmain.net.failures import has_hole
from ringmain.net.gate import Listening
from ringmain.net.gate import listen as open_gate
from ringmain.outcome import Outcome
from ringmain.settings import Options, Settings, settings_for
from ringmain.waiting import Turn

if TYPE_CHECKING:
    from typing_extensions import Buffer

Result = TypeVar("Result")


def save(url: str, *, listen: bool = False, listen_once: bool = False, **options: Unpack[Options]) -> "Saver":
    """Send to the endpoint `url`: dial it, or with `listen` wait for clients there, one at a time.

    async with ringmain.save("tcp://127.0.0.1:8000") as saver:
        await saver.write(buffer)

    The same without `async` and `await`; an event loop that runs in this thread stands still meanwhile. Leaving the
    block sends FIN (and close_notify under TLS) and waits until the peer's kernel has acknowledged every byte, and
    until a TLS 1.3 server that asks for our certificate has answered: with its first record, its end or an alert, 5 s
    at most. Leaving it by an exception resets the peer, so that a part never looks like the whole. A listener whose
    client leaves logs a warning and goes on with the next client where the last one left; with `listen_once`, which
    implies `listen`, that is an error. For the other keywords see `ringmain.Options`. Raises a `RingmainError` on
    malformed arguments, when the endpoint cannot be opened, and when the one connection there is breaks.
    """
    return Saver(Endpoint.parse(url), settings_for(save, Options, options), listen=listen, listen_once=listen_once)


class Saver(Listening, Blocking):
    """What `save` returns: a context manager, plain or asynchronous, with `write`. One task at a time may write.

    `addresses` and `port` tell where it listens. `on_end` is called with what became of each connection.
    """

    def __init__(self, endpoint: Endpoint, settings: Settings, *, listen: bool, listen_once: bool) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.listening = listen or listen_once
        self.listen_once = listen_once
        self._clients = Clients(endpoint, settings, goes_on=listen and not listen_once)
        self._turn = Turn("another task is already writing")

    def __repr__(self) -> str:
        tls = self.endpoint.tls or self.settings.tls
        where = f"{'tcps' if tls else 'tcp'}://{(self.addresses or [self.endpoint.address])[0]}"
        state = "listening" if self._gate is not None else "closed" if self.counters is None else "connected"
        return self._described(where, state, [] if self.counters is None else [self.counters.bytes_out])

    def __enter__(self) -> BlockingSaver:
        self._enter()
        return cast(BlockingSaver, self)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        context = context_for(self.endpoint, self.settings, listening=self.listening)
        if self.listening:
            self._gate = await open_gate(self.endpoint, self.settings)
        self._clients.open(self._gate, context)
        if not self.listening:
            self._clients.begin(await dial(self.endpoint, self.settings, context))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self._alone(self._clients.finish)
        finally:
            self._clients.close()
            self._gate = None  # `on_end` may still ask it

    def _leftovers(self) -> list[Callable[[], object]]:
        closers: list[Callable[[], object]] = [] if self._outflow is None else [self._outflow.abort]
        return closers if self._gate is None else [*closers, self._gate.close]

    @property
    def _outflow(self) -> Outflow | None:
        return self._clients.outflow

    @property
    def on_end(self) -> Callable[[Outcome], None] | None:
        """What is called with what became of each connection."""
        return self._clients.on_end

    @on_end.setter
    def on_end(self, call: Callable[[Outcome], None] | None) -> None:
        self._clients.on_end = call

    @property
    def on_lost(self) -> Callable[[], object] | None:
        """What is called when the present peer has gone, at whichever time."""
        return self._clients.on_lost

    @on_lost.setter
    def on_lost(self, call: Callable[[], object] | None) -> None:
        self._clients.on_lost = call

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two."""
        return self._outflow.counters if self._outflow is not None else None

    @property
    def unacknowledged_bytes(self) -> int:
        """How many of the bytes sent are not known to be with the present peer's kernel yet."""
        return self._outflow.link.unacknowledged() or 0 if self._outflow is not None else 0

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1."""
        return self._outflow.fullness if self._outflow is not None else 0.0

    def write(self, buffer: "Buffer") -> Coroutine[Any, Any, None]:
        """Send all of a contiguous buffer, which may be changed once this returns; to be awaited in `async with`.

        Large buffers go out uncopied, and this waits while the peer is slow. Small ones are copied and go out together
        at the end of this turn of the loop; if that fails, the next write or the end of the block raises. A listener
        that loses its client sends what that client's kernel never acknowledged to the next one. (Under TLS, where that
        cannot be told in terms of plain bytes: what our own kernel never took.)

        A write that is cancelled before a part of the buffer has gone out has done nothing. One that is cancelled later
        leaves a hole in the stream: every later write, and leaving the block, raises SendError and resets the peer.
        """
        if self._runner is None:
            return self._write(buffer)
        # Nothing is left to a later turn of a loop that may not turn for long.
        return self._awaited_or_done(self._write(buffer, gather=False))

    def wait_for_peer(self) -> Coroutine[Any, Any, None]:
        """Return once there is a peer to write to that has what a lost one never got; to be awaited in `async with`.

        If the present one is gone: raise, or warn and wait for the next client.
        """
        return self._awaited_or_done(self._alone(lambda: self._clients.send(memoryview(b""))))

    def end_connection(self) -> Coroutine[Any, Any, None]:
        """End the connection being served properly; to be awaited in `async with`. What is written then is another's.

        A listener's next client gets what the last one's kernel had not acknowledged when that failed.
        """
        return self._awaited_or_done(self._alone(self._clients.end))

    def break_off(self, *, at_once: bool = False) -> Coroutine[Any, Any, None]:
        """Reset the peer, if there is one, once it has all that was written, or `at_once`; to be awaited likewise.

        A listener's next client gets what the last one's kernel had not acknowledged.
        """
        return self._awaited_or_done(self._break_off(at_once=at_once))

    def stop(self) -> bool:
        """Serve no other client: a write that waits for one raises SendError, `serve` ends after what is under way.

        May be called at any time, from any thread. False when there is no connection.
        """
        self._clients.stopping = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._clients.stop)
        return self._outflow is not None

    async def serve(self, give: Callable[[Outflow], Awaitable[bool | None]]) -> bool:
        """Give one client after another something of its own, until `stop`, or the one that there is to be.

        `give` gets what sends to the client, and returns whether it has sent the whole: then the connection is ended
        properly, else reset once all has got through, and always when this is cancelled. Where it returns None, having
        sent nothing, this returns False, and what is written goes to that client. An OSError that it raises is
        taken for the client's.
        """
        return await self._alone(lambda: self._clients.serve(give))

    async def _write(self, buffer: "Buffer", gather: bool = True) -> None:
        with self._turn:
            self._check_whole()
            view = memoryview(buffer)
            if view.nbytes == 0:
                return
            view = view.cast("B")
            if not (gather and self._clients.gather(view)):
                await self._clients.send(view)

    async def _break_off(self, *, at_once: bool) -> None:
        if not at_once:  # else also while another task writes
            await self._alone(self._clients.deliver)
        self._clients.break_off()

    async def _alone(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Await work that no other task may do at the same time."""
        with self._turn:
            self._check_whole()
            return await work()

    def _check_whole(self) -> None:
        if self._clients.torn:
            raise has_hole(f"save to {self.endpoint}")

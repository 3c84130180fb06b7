"""Save: bytes to one connection at a time, or to many at once."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast

from ringmain._counters import Counters
from ringmain._cutter import Cutter
from ringmain.blocking import Blocking
from ringmain.endpoint import Endpoint, as_url
from ringmain.errors import SendError, UsageError
from ringmain.flow.blocks import cutter_for
from ringmain.flow.broadcast import Broadcast
from ringmain.flow.clients import Clients, OnEnd
from ringmain.flow.outflow import Outflow
from ringmain.net.backoff import Tally
from ringmain.net.dial import context_for, dial
from ringmain.net.failures import has_hole
from ringmain.net.listening import Listening
from ringmain.net.redial import Redial
from ringmain.outcome import Outcome, total
from ringmain.plain import BlockingSaver
from ringmain.settings import Options, Settings, check_kind, settings_for
from ringmain.waiting import Turn

if TYPE_CHECKING:
    from typing_extensions import Buffer

Result = TypeVar("Result")


def save(
    url: str,
    *,
    listen: bool = False,
    listen_once: bool = False,
    max_connections: int = Settings.max_connections,
    slow: Literal["wait", "drop"] = Settings.slow,
    client_buffer: int = Settings.client_buffer,
    reconnect: bool = False,
    delimiter: bytes = b"",
    **options: Unpack[Options],
) -> "Saver":
    """Return what `ringmain.save` does for one endpoint; its docstring tells what the keywords are."""
    given = {"max_connections": max_connections, "slow": slow, "client_buffer": client_buffer}
    settings = settings_for(save, Options, options, **given)
    for name, value in {"listen": listen, "listen_once": listen_once, "reconnect": reconnect}.items():
        check_kind(name, value, bool)
    if reconnect and (listen or listen_once):
        remedy = "leave out reconnect=True: the next client gets what a lost one never got"
        raise UsageError(
            f"reconnect=True with {'listen' if listen else 'listen_once'}=True", "a listener connects to nobody", remedy
        )
    if delimiter and not reconnect:
        raise UsageError("delimiter=", "it says where a stream continues after a loss", "add reconnect=True")
    if max_connections > 1 and (listen_once or not listen):
        what = f"max_connections={max_connections}{' with listen_once=True' if listen_once else ''}"
        remedy = "leave one of them out" if listen_once else "add listen=True"
        raise UsageError(what, "there is only one connection", remedy)
    if max_connections == 1 and slow == "drop":
        raise UsageError("slow=drop", "there is only one client", "give max_connections= above 1 too")
    if settings.tls_auto:
        why = "clients that receive send nothing first, so TLS cannot be told from plain"
        raise UsageError(f"{settings.prefix}tls_auto=True", why, "leave it out")
    cutter = cutter_for(delimiter)
    return Saver(
        Endpoint.parse(url), settings, listen=listen, listen_once=listen_once, reconnect=reconnect, cutter=cutter
    )


class Saver(Listening, Blocking):
    """What `save` returns: a context manager, plain or asynchronous, with `write`. One task at a time may write.

    `addresses` and `port` tell where it listens. `on_end` is called with what became of each connection. Where many
    are served, what a method does to the peer it does to all who are there, side by side.
    """

    _verb = "save"

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        *,
        listen: bool,
        listen_once: bool,
        reconnect: bool = False,
        cutter: Cutter | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.listening = listen or listen_once
        self.listen_once = listen_once
        self.reconnect = reconnect
        self._redial: Redial | None = None
        self._tally = Tally()
        self.on_end: OnEnd | None = None
        hear = weakref.WeakMethod(self._one_ended)  # the loop, which knows the clients, must not keep a forgotten saver
        self._clients: Clients | Broadcast
        if settings.max_connections > 1:
            self._clients = Broadcast(endpoint, settings, hear)
        else:
            goes_on = reconnect or (listen and not listen_once)
            self._clients = Clients(endpoint, settings, hear, goes_on=goes_on, cutter=cutter)
        self._turn = Turn("another task is already writing")

    def __repr__(self) -> str:
        tls = self.endpoint.tls or self.settings.tls
        where = as_url((self.addresses or [self.endpoint.address])[0], tls=tls)
        state = "connected" if self.connections else "connecting" if self.try_number else "closed"
        if self._gate is not None:
            state = "listening"
        sizes = [] if self.counters is None else [self.counters.bytes_out]
        return self._described(where, state, sizes, self.connections)

    def __enter__(self) -> BlockingSaver:
        self._enter()
        return cast(BlockingSaver, self)

    async def _set_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context_for(self.endpoint, self.settings, listening=self.listening)
        if self.listening:
            self._gate = await self._listen(self.endpoint, self.settings)
        self._redial = Redial(self.endpoint, self.settings, tally=self._tally) if self.reconnect else None
        if isinstance(self._clients, Broadcast) or self.listening:
            self._clients.open(self._gate, self._context)
            return
        self._clients.open(self._redial, self._context)
        try:
            if self._redial is None:
                self._clients.begin(await dial(self.endpoint, self.settings, self._context, tally=self._tally))
            else:
                await self._clients.send(memoryview(b""))  # which waits for a connection
        except BaseException:
            self._clients.close()
            raise

    async def _tear_down(self, error: BaseException | None, *, broken_off: bool) -> None:  # noqa: ARG002
        try:
            if not broken_off:
                if self._turn.taken:  # also by one that was cancelled and has yet to hear of that
                    why, remedy = "another task has not ended its write", "await that before leaving the `with`"
                    raise SendError(f"save to {self.endpoint}", why, remedy)
                await self._alone(self._clients.finish)
        finally:
            try:
                self._clients.close()
            finally:
                self._gate = self._redial = None  # `on_end` may still ask it
                if isinstance(self._clients, Broadcast):
                    await self._clients.over()

    def _reset_all(self) -> None:
        try:
            self._clients.close()
        finally:
            self._gate = None  # which is closed

    def _leftovers(self) -> list[Callable[[], object]]:
        closers: list[Callable[[], object]] = [self._clients.abandon] if self.connections else []
        return closers if self._gate is None else [self._clients.abandon, self._gate.close]

    def _one_ended(self, outcome: Outcome) -> None:
        if self.on_end is not None:
            self.on_end(outcome)

    @property
    def connections(self) -> int:
        """How many connections are being served."""
        return len(self._clients.outflows)

    @property
    def try_number(self) -> int:
        """Which try to connect again is under way or comes next; 0 while there is a connection, or is to be none."""
        return self._redial.try_number if self._redial is not None else 0

    @property
    def reconnects(self) -> int:
        """How often another connection was made after a loss."""
        return self._tally.reconnects

    @property
    def connect_failures(self) -> int:
        """How many tries to connect have failed."""
        return self._tally.failures

    @property
    def on_lost(self) -> Callable[[], object] | None:
        """What is called when the present peer, of many the last one, has gone, at whichever time."""
        return self._clients.on_lost

    @on_lost.setter
    def on_lost(self, call: Callable[[], object] | None) -> None:
        self._clients.on_lost = call

    @property
    def counters(self) -> Counters | None:
        """The counters of the connection being served, or None between two; of many the sums of all."""
        outflows = self._clients.outflows
        if self.settings.max_connections == 1 or not outflows:
            return outflows[0].counters if outflows else None
        return total(outflow.counters for outflow in outflows)

    @property
    def unacknowledged_bytes(self) -> int:
        """How many of the bytes sent are not known to be with the present peer's kernel yet; of many all together.

        Of a UNIX socket those that its peer has not read.
        """
        return sum(min(it.link.untaken(), it.counters.bytes_out) for it in self._clients.outflows)

    @property
    def fullness(self) -> float:
        """The part of the kernel's send buffer that the peer has yet to take, from 0 to 1; of many the fullest."""
        return max((outflow.fullness for outflow in self._clients.outflows), default=0.0)

    def write(self, buffer: "Buffer") -> Coroutine[Any, Any, None]:
        """Send all of a contiguous buffer, which may be changed once this returns; to be awaited in `async with`.

        Large buffers go out uncopied, and this waits while the peer is slow. Small ones are copied and go out together
        at the end of this turn of the loop; if that fails, the next write or the end of the block raises. A listener
        that loses its client sends what that client's kernel never acknowledged to the next one. (Under TLS, where that
        cannot be told in terms of plain bytes: what our own kernel never took.)

        A write that is cancelled before a part of the buffer has gone out has done nothing. One that is cancelled later
        leaves a hole in the stream: every later write, and leaving the block, raises SendError and resets the peer.
        For many clients a part has gone out as soon as it is due to any of them.
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
        return self.connections > 0

    async def serve(self, give: Callable[[Outflow], Awaitable[bool | None]]) -> bool:
        """Give one client after another something of its own, until `stop`, or the one that there is to be.

        `give` gets what sends to the client, and returns whether it has sent the whole: then the connection is ended
        properly, else reset once all has got through, and always when this is cancelled. Where it returns None, having
        sent nothing, this returns False, and what is written goes to that client. An OSError that it raises is
        taken for the client's. Many clients are served side by side, and each must be given something.
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
                if not gather and self.settings.slow == "drop":
                    await asyncio.sleep(0)  # which is a turn for those whom it is due to

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

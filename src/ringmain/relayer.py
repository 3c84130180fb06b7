"""Relay: bytes between two connections, both ways, for one client at a time or many."""

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Literal, Unpack, cast

from ringmain._counters import Counters
from ringmain._cutter import Cutter
from ringmain.blocking import Blocking
from ringmain.endpoint import Endpoint, as_url
from ringmain.errors import ReceiveError, RingmainError, UsageError, reason
from ringmain.flow import kernel
from ringmain.flow.blocks import cutter_for, plain_flow
from ringmain.flow.passage import Passage
from ringmain.flow.path import may_pump
from ringmain.flow.persistent_passage import PersistentPassage
from ringmain.flow.serving import Serving
from ringmain.net.gate import NoMoreClients
from ringmain.net.link import Link
from ringmain.net.readiness import finish
from ringmain.net.relay_ends import End, Ends, check_options
from ringmain.outcome import RelayOutcome, total
from ringmain.plain import BlockingRelayer
from ringmain.settings import LINGER, PATH, ConnectionOptions, TlsSettings, check_kind, settings_for
from ringmain.waiting import let_go, unless

log = logging.getLogger("ringmain")

Way = Passage | PersistentPassage


def relay(
    source: str,
    destination: str,
    *,
    connect: bool = False,
    listen: bool = False,
    listen_once: bool = False,
    one_way: bool = False,
    source_tls: TlsSettings | None = None,
    destination_tls: TlsSettings | None = None,
    accept_proxy: bool = False,
    send_proxy: Literal["v1", "v2"] | None = None,
    linger: float = LINGER,
    max_connections: int = 1,
    reconnect: bool = False,
    delimiter: bytes = b"",
    **options: Unpack[ConnectionOptions],
) -> "Relayer":
    """Return what `ringmain.relay` does between two endpoints; its docstring tells what the keywords are."""
    check_kind("source_tls", source_tls, TlsSettings, or_none=True)
    check_kind("destination_tls", destination_tls, TlsSettings, or_none=True)
    check_options(
        *(connect, listen, listen_once, one_way, max_connections),
        accept_proxy=accept_proxy,
        send_proxy=send_proxy,
        reconnect=reconnect,
        delimiter=delimiter,
    )

    def end(name: str, url: str, tls: TlsSettings | None, listening: bool) -> End:
        settings = settings_for(
            relay,
            ConnectionOptions,
            options,
            **dataclasses.asdict(tls or TlsSettings()),
            prefix=f"{name}_tls.",
            max_connections=max_connections,
        )
        return End(Endpoint.parse(url), settings, listening=listening)

    ends = Ends(
        end("source", source, source_tls, not connect),
        end("destination", destination, destination_tls, listen),
        accept_proxy=accept_proxy,
        send_proxy=send_proxy,
        reconnect=reconnect,
    )
    return Relayer(ends, linger, listen_once=listen_once, one_way=one_way, cutter=cutter_for(delimiter))


class Relayer(Blocking):
    """What `relay` returns: to be awaited, or a context manager, plain or asynchronous, with `serve`."""

    _verb = "relay"

    def __init__(
        self, ends: Ends, linger: float, *, listen_once: bool, one_way: bool, cutter: Cutter | None = None
    ) -> None:
        self.source, self.destination = ends.source, ends.destination
        self.on_end: Callable[[RelayOutcome], None] | None = None
        self._ends = ends
        self._many = ends.source.settings.max_connections > 1
        # Those of one passage are the next one's too; of many each has its own, which have memory once bytes come.
        self._new_flow = functools.partial(plain_flow, linger, small=self._many)
        self._threads = kernel.PumpThreads() if self._many else None
        self._flows = None if self._many else (self._new_flow(), self._new_flow())
        self._one_way = one_way
        self._cutter = cutter
        self._once = listen_once or not (ends.listening or ends.reconnect)
        self._finished = False
        self._passages: dict[Way, None] = {}
        self._serving: Serving | None = None

    def __repr__(self) -> str:
        where = " to ".join(
            as_url((end.addresses or [end.endpoint.address])[0], tls=end.tls) for end in (self.source, self.destination)
        )
        is_open = self._is_open and not self._ends.listening
        state = "listening" if self.addresses else "open" if is_open else "closed"
        sizes = [counters.bytes_out for counters in self.counters]
        return self._described(where, state, sizes, self.served)

    def __await__(self) -> Generator[Any, None, None]:
        return self._serve_all().__await__()

    async def _serve_all(self) -> None:
        async with self:
            await self._serve(PATH)

    def __enter__(self) -> BlockingRelayer:
        self._enter()
        return cast(BlockingRelayer, self)

    async def _set_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._ends.open()
        except BaseException:
            await self._tear_down(None, broken_off=True)
            raise

    async def _tear_down(self, error: BaseException | None, *, broken_off: bool) -> None:  # noqa: ARG002
        try:
            if self._serving is not None:  # in another task, which uses what is closed here
                self._reset_all()
                await let_go([self._serving.ended])
        finally:
            self._ends.close()
            if self._threads is not None:
                self._threads.close()

    def _reset_all(self) -> None:
        self._finished = True
        if self._serving is not None:
            self._serving.stopped.set()
            self._serving.left.set()
        self._ends.close()

    def _leftovers(self) -> list[Callable[[], object]]:
        return [self.source.close, self.destination.close]

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, as "127.0.0.1:43211", those of the source first."""
        return [*self.source.addresses, *self.destination.addresses]

    @property
    def port(self) -> int:
        """The port listened at, the source's where both ends listen."""
        return (self.destination if self.destination.listening and not self.source.listening else self.source).port

    @property
    def refused(self) -> int:
        """How many clients were turned away."""
        return self.source.refused + self.destination.refused

    @property
    def served(self) -> int:
        """How many clients are served right now, each with a connection to the other side."""
        return len(self._passages)

    @property
    def counters(self) -> list[Counters]:
        """The counters of the present connection: there, and, unless it is one-way, back. Empty between two.

        With `max_connections` the sums of all present ones.
        """
        ways = zip(*([direction.counters for direction in it.directions] for it in self._passages), strict=True)
        return [total(way) if self._many else way[0] for way in ways]

    @property
    def taken(self) -> list[int]:
        """How many bytes of the present connections were acknowledged: there, and, unless it is one-way, back."""
        ways = zip(*(passage.directions for passage in self._passages), strict=True)
        return [sum(direction.taken for direction in way) for way in ways]

    @property
    def fullness(self) -> float:
        """The part of what lies between the peers that is filled, from 0 to 1, in the fullest direction."""
        ways = (direction.fullness for passage in self._passages for direction in passage.directions)
        return max(ways, default=0.0)

    @property
    def waiting_for(self) -> list[tuple[str, int]]:
        """The addresses that `reconnect` has no connection to at the moment, each with the number of the next try."""
        return self._ends.waiting_for

    def reload_certificates(self) -> None:
        """Read the files of both ends again, as `Listening.reload_certificates` does."""
        self.source.reload_certificates()
        self.destination.reload_certificates()

    def serve(self, path: str = PATH) -> Coroutine[Any, Any, None]:
        """Relay for one client after another, or for many at once; to be awaited in `async with`.

        path ("auto"): "kernel" moves bytes inside the kernel or fails, "block" through blocks in memory.
        Cancelling it, or leaving the block meanwhile, which ends it, resets both peers of each present connection.
        """
        return self._awaited_or_done(self._serve(path))

    def stop(self) -> bool:
        """Serve no other client, and read no more: what has come is passed on, then both peers are reset.

        `serve` ends after that, or at once; one that is called later serves nobody. May be called at any time, from any
        thread. False when there is no connection.
        """
        self._finished = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hang_up)
        return bool(self._passages)

    def _hang_up(self) -> None:
        if self._serving is not None:
            self._serving.stopped.set()
        self._ends.stop()
        for passage in list(self._passages):
            passage.stop()

    async def _serve(self, path: str) -> None:
        if not self._is_open:
            raise UsageError("a relay", "it is not open", "use it inside `async with`")
        if self._serving is not None:
            raise RuntimeError("another task is already serving")
        if self._ends.reconnect and path == "kernel":
            raise UsageError("path=kernel", "what may have to be sent again is kept in blocks", "leave path= out")
        may_pump(path, tls=self.source.tls or self.destination.tls)
        self._serving = serving = Serving()
        try:
            while not self._finished and self._is_open and not serving.broken:
                await self._serve_next(serving, path)
            await serving.until_all_left()
        finally:
            try:
                await serving.break_off()
            finally:
                self._serving = None
                finish(serving.ended)

    async def _serve_next(self, serving: Serving, path: str) -> None:
        """Wait for the next client, unless `stop` comes first; see it through, or of many leave that to a task."""
        try:
            client = await unless(serving.stopped.wait(), self._ends.next_client(), self._ends.dismiss)
        except NoMoreClients:  # it was stopped
            return
        except RingmainError as error:
            if self._once or self._ends.dials_again:
                raise
            log.warning("%s", str(error))  # who keeps records keeps no passage
            return
        if client is None:
            return
        if self._many:
            serving.begin(self._serve_client(serving, client, path), functools.partial(self._ends.dismiss, client))
        else:
            await self._serve_client(serving, client, path)

    async def _serve_client(self, serving: Serving, client: Link, path: str) -> None:
        """Connect the other end for a client, unless `stop` comes first, and relay between the two."""
        links: tuple[Link, Link] | None = None
        try:
            connecting = self._ends.connect_for(client)
            links = await unless(serving.stopped.wait(), connecting, self._ends.discard)
        except NoMoreClients:
            pass
        except RingmainError as error:
            left = isinstance(error, ReceiveError)
            if self._ends.dials_again and not (left and self._ends.lost_source(error)):
                raise
            if self._once and not (left and self._ends.listening):
                raise
            if not self._ends.dials_again:
                log.warning("%s", str(error))
        finally:
            if links is None:
                self._ends.dismiss(client)
        if links is not None and self._finished:  # since it was connected, in this very turn of the loop
            self._ends.discard(links)
        elif links is not None and (passage := self._passage_between(links)) is not None:
            await self._see_through(serving, passage, path)

    async def _see_through(self, serving: Serving, passage: Way, path: str) -> None:
        """Relay one passage; raise what goes wrong where it is the one that counts, else warn."""
        self._passages[passage] = None
        failure: RingmainError | None = None
        try:
            await unless(serving.left.wait(), passage.run(path, self.source.settings.idle_timeout))
            self._finished |= self._once
        except RingmainError as error:
            failure = error
            moved = any(direction.counters.bytes_in for direction in passage.directions)
            if self._once and (moved or not self._ends.listening):
                raise
            if not self._ends.dials_again:
                log.warning("%s", str(error))  # who keeps records keeps no passage
            elif not (isinstance(passage, PersistentPassage) and passage.source_due and self._ends.lost_source(error)):
                raise
        except OSError as error:
            if not self._many:
                raise
            failure = _no_room(passage.source, error)
            log.warning("%s", failure)
        finally:
            self._release(passage, failure)
            del failure  # whose traceback holds this frame: a cycle would keep what is the passage's

    def _release(self, passage: Way, error: RingmainError | None) -> None:
        del self._passages[passage]
        self._ends.done((passage.source, passage.destination))
        if self.on_end is not None:
            self.on_end(passage.outcome(error))

    def _passage_between(self, links: tuple[Link, Link]) -> Way | None:
        """Return what goes between two connections; None, with both reset, where there is no room for one of many."""
        try:
            flows = self._flows or (self._new_flow(), self._new_flow())
            passage: Way
            if (redial := self._ends.redial_for(links[0])) is not None:
                end = self.destination
                passage = PersistentPassage(links, flows[0], redial, end.settings, end.context, self._cutter)
            else:
                passage = Passage(*links, flows, one_way=self._one_way, threads=self._threads)
        except BaseException as error:
            failure = _no_room(links[0], error)
            self._ends.discard(links, failure)
            if not (self._many and isinstance(error, OSError)):
                raise
            log.warning("%s", failure)
            return None
        self.source.watch_over(passage.source, passage)
        return passage


def _no_room(source: Link, error: BaseException) -> ReceiveError:
    """Return what is told where this system has no room to watch one of many."""
    return ReceiveError(source.peer, f"cannot be served: {reason(error)}")

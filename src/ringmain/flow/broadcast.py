"""What the many clients of a saver get: the same, from when each has come, or each something of its own."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from ringmain.endpoint import Endpoint
from ringmain.errors import SendError, UsageError
from ringmain.flow.audience import Audience, Client, Wish
from ringmain.flow.clients import OnEnd
from ringmain.flow.outflow import GATHER, SMALL, Outflow
from ringmain.net.door import Door
from ringmain.settings import Settings

# What is copied at once, for all clients.
_PIECE = 1 << 20


class Broadcast:
    """Give all clients at a gate what is sent, or each its own (`serve`); the same methods as `Clients` has.

    What is sent is copied once, in pieces of 1 MiB, into chunks that all clients share. A client that comes gets whole
    views, from the next one on; what one that is lost did not get is nobody else's. Without any client a view waits for
    one; so it does again if all who had a part of it are lost. One task at a time sends.

    With settings.slow "wait" a piece is handed out once all have taken what was before it. With "drop" up to
    settings.client_buffer bytes are due to each; who has no room for more is reset as soon as another one has taken
    all. Since chunks are shared, all that is due has client_buffer bytes, or one piece if that is more. While everybody
    is behind, `send` waits.
    """

    def __init__(self, endpoint: Endpoint, settings: Settings, on_end: Callable[[], OnEnd | None]) -> None:
        self.torn = False
        self._endpoint = endpoint
        self._limit = settings.client_buffer if settings.slow == "drop" else 0
        self._audience = Audience(endpoint, settings, self._is_coming, on_end)
        self._give: Callable[[Client], Wish] | None = None  # what each is to be given
        self._gathered = bytearray()  # whole small views, to be handed out at the end of this turn of the loop

    @property
    def outflows(self) -> list[Outflow]:
        """What sends to each of the present clients."""
        return [client.outflow for client in self._audience]

    @property
    def stopping(self) -> bool:
        """Whether no other client is to be served."""
        return self._audience.stopping

    @stopping.setter
    def stopping(self, stopping: bool) -> None:
        self._audience.stopping = stopping

    @property
    def on_lost(self) -> Callable[[], object] | None:
        """What is called when the last client has left."""
        return self._audience.on_lost

    @on_lost.setter
    def on_lost(self, call: Callable[[], object] | None) -> None:
        self._audience.on_lost = call

    def open(self, gate: Door | None, context: ssl.SSLContext | None) -> None:
        """Begin anew, with the gate that clients come by, and the TLS that they get."""
        self.torn = False
        self._audience.open(gate, context)

    def close(self) -> None:
        """Reset who is still there, and let nobody in."""
        self._gathered.clear()
        self._audience.close()

    async def over(self) -> None:
        """Return once nothing is being done any more, after `close`."""
        await self._audience.over()

    def abandon(self) -> None:
        """Reset who is there, also when the loop is closed; nobody hears of it."""
        self._audience.abandon()

    def stop(self) -> None:
        """Let in nobody else, and end the pumps that are running."""
        self._audience.stop()

    def gather(self, view: memoryview) -> bool:
        """Take a small view to be sent at the end of this turn of the loop; False when it has to be sent by `send`."""
        if len(view) > SMALL or len(self._gathered) + len(view) > GATHER or not len(self._audience):
            return False
        if not self._gathered:
            if any(client.is_full(GATHER, self._limit) for client in self._audience):
                return False
            asyncio.get_running_loop().call_soon(self._hand_out_gathered)
        self._gathered += view
        return True

    async def send(self, view: memoryview) -> None:
        """Return when all who are there have taken the view, or with "drop" when it is due to them; at least to one."""
        begun = False  # there may be a client that has a part
        try:
            while True:
                clients = await self._present()
                for offset in range(0, len(view), _PIECE):
                    piece = view[offset : offset + _PIECE]
                    await self._until_room(clients, len(piece))
                    chunk, begun = bytes(piece), True
                    self._hand_out(chunk, clients)
                if not self._limit:
                    await self._until_taken(clients)
                if any(client.is_there for client in clients):
                    return
                begun = False
        except BaseException:
            self.torn = begun
            raise

    async def serve(self, give: Callable[[Outflow], Awaitable[bool | None]]) -> bool:
        """See `Saver.serve`: each client is given its own, side by side."""

        async def given(client: Client) -> None:
            if not await client.peer.serve(give):
                why = "the function gave one of many clients nothing"
                raise UsageError("serve", why, "return True or False, or leave out max_connections=")
            client.peer.close()  # where a stop came before it was given anything

        self._give = lambda client: lambda: given(client)
        try:
            self._admit()
            for client in self._audience:
                client.ask(self._give(client))
            await self._audience.until(lambda: not self._audience.admits and not len(self._audience))
        finally:
            self._give = None
            await self._audience.cancel()
        return True

    async def finish(self) -> None:
        """End the connections of all, side by side."""
        if self._gathered and not len(self._audience):
            await self._present()
        self._audience.admit_no_more()
        await self._end()

    async def end(self) -> None:
        """End the connections of all who are there properly, side by side."""
        if not len(self._audience):
            raise UsageError("a saver", "there is no connection to end", "write to it first")
        await self._end()

    async def deliver(self) -> None:
        """Return once all who are there have every byte so far."""
        await self._ask_all(lambda client: client.peer.deliver)

    def break_off(self) -> None:
        """Reset all who are there."""
        self._hand_out_gathered()
        self._audience.reset_all()

    async def _present(self) -> list[Client]:
        """Return all who are there, at least one; raise SendError after a stop."""
        self._admit()
        await self._audience.until(lambda: len(self._audience) > 0 or not self._audience.admits)
        if not len(self._audience):
            raise SendError(f"save to {self._endpoint}", "it was stopped", "open another one")
        self._hand_out_gathered()
        return list(self._audience)

    def _admit(self) -> None:
        if self._audience.gate is None:
            raise UsageError("a saver", "it is not open", "use it inside `async with`")
        self._audience.admit()

    def _is_coming(self, client: Client) -> None:
        self._hand_out_gathered()  # which is not for this one
        if self._gathered:  # all whom it was for have left before it was handed out, and no other turn does that
            asyncio.get_running_loop().call_soon(self._hand_out_gathered)
        if self._give is not None:
            client.ask(self._give(client))

    def _hand_out_gathered(self) -> None:
        """Hand out what was gathered to all who are there; where nobody is, keep it."""
        if self._gathered and len(self._audience):
            chunk = bytes(self._gathered)
            self._gathered.clear()
            self._hand_out(chunk, list(self._audience))

    def _hand_out(self, chunk: bytes, clients: list[Client]) -> None:
        for client in clients:
            if client.is_there:
                client.give(chunk)

    async def _until_room(self, clients: list[Client], size: int) -> None:
        """Return once these clients have room for so many bytes; with "drop" reset those who hold others up."""
        if not self._limit:
            await self._until_taken(clients)
            return
        await asyncio.sleep(0)  # each takes what its kernel has room for

        def full() -> list[Client]:
            return [client for client in clients if client.is_full(size, self._limit)]

        def others_wait() -> bool:
            return any(client.due_size == 0 for client in self._audience)

        await self._audience.until(lambda: not full() or others_wait())
        for client in full():
            why = f"reset, since it is more than client_buffer={self._limit} bytes behind"
            remedy = "raise client_buffer=, or give slow=wait"
            self._audience.drop(client, SendError(f"save to {client.outflow.link.peer}", why, remedy))

    async def _until_taken(self, clients: list[Client]) -> None:
        await self._audience.until(lambda: not any(client.due_size for client in clients))

    async def _end(self) -> None:
        try:
            await self._ask_all(lambda client: client.peer.finish)
        except BaseException:
            self.break_off()
            raise

    async def _ask_all(self, wish: Callable[[Client], Wish]) -> None:
        """Let a wish be fulfilled for each who is there, side by side, after what is due to it."""
        self._hand_out_gathered()
        clients = list(self._audience)
        for client in clients:
            client.ask(wish(client))
        await self._audience.until(lambda: not any(client.wish for client in clients))

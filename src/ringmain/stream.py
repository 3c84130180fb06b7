"""One connection of a loader, as its users see it: an iterator of blocks."""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, Self, TypeVar

from ringmain._counters import Counters
from ringmain._ring import Ring
from ringmain.errors import RingmainError
from ringmain.flow.inflow import Inflow
from ringmain.flow.records import Records

Result = TypeVar("Result")


class Run(Protocol):
    """What runs the private loop of a plain `with`."""

    def __call__(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run it until the work is done."""


class Stream:
    """What one peer sends, as blocks: an asynchronous and, in a plain `with`, a plain iterator of memoryviews.

    `peer` is "host:port", `tls` "TLSv1.3" or the like and `cipher` the suite's name, both None without TLS. `counters`
    go on while bytes come, `offset` tells how many were taken, `verdict` is None until it has ended. The iteration
    raises the error of a stream that ended in any way but a proper end, after its last byte.
    """

    def __init__(
        self,
        inflow: Inflow,
        retire: Callable[[Inflow], RingmainError | None],
        run: Run,
        on_close: Callable[..., object] = Inflow.close,
    ) -> None:
        """Iterate over an inflow. `retire` closes it at its end and returns what became of it if that is an error.

        `on_close` closes it before, or resets it where it is called with `broken_off`.
        """
        self.inflow = inflow
        self.run = run
        self._retire = retire
        self._on_close = on_close

    @property
    def verdict(self) -> str | None:
        """How the stream ended: ended, truncated, reset, timed out, or stopped; None while it goes on."""
        return self.inflow.verdict

    @property
    def counters(self) -> Counters:
        """What came so far."""
        return self.inflow.counters

    @property
    def fullness(self) -> float:
        """The part of what lies between the peer and the consumer that is filled, from 0 to 1."""
        return self.inflow.fullness

    @property
    def offset(self) -> int:
        """Where in the stream the last block that was taken ends, in bytes."""
        return self.inflow.taken

    @property
    def ring(self) -> Ring:
        """The blocks that this and the other connections of its loader are received into."""
        return self.inflow.ring

    @property
    def peer(self) -> str:
        """The address of the peer, as "192.0.2.1:51234"."""
        return self.inflow.link.peer

    @property
    def tls(self) -> str | None:
        """The version of TLS in use, as "TLSv1.3"."""
        return self.inflow.link.tls_version

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the cipher suite in use."""
        return self.inflow.link.cipher

    def __repr__(self) -> str:
        tls = f" {self.tls}" if self.tls else ""
        return f"<Stream {self.peer}{tls} {self.verdict or 'running'}, {self.counters.bytes_in} bytes>"

    def close(self) -> None:
        """End the connection properly, wherever it is; what was not taken is lost. The iteration ends.

        Nothing is waited for. Does nothing once it has ended.
        """
        self._on_close(self.inflow)

    def abort(self) -> None:
        """Do the same, and reset the peer, so that it does not take what it has sent for received."""
        self._on_close(self.inflow, broken_off=True)

    @property
    def in_loop(self) -> bool:
        """Whether a loop runs that other threads must leave to it whatever touches this: that of an `async with`."""
        return self.inflow.link.loop.is_running()

    def records(self, *, headers: bool = False) -> Records:
        """Iterate over single records instead, with `headers` all that came of each, as `Loader.records` does."""
        return Records(self, self.ring.cutter, lambda: self.verdict, headers=headers)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> memoryview:
        inflow = self.inflow
        block = inflow.take() or await inflow.next_block()
        if block is not None:
            return block
        await inflow.hear_out()
        error = self._retire(inflow)
        if error is not None:
            raise error
        raise StopAsyncIteration

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> memoryview:
        if not self.in_loop and (block := self.inflow.take()) is not None:
            return block
        try:
            return self.run(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

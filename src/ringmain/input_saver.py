"""Save a whole input, as the command line does: a file to every client, any other input to one after another."""

from ringmain._pump import Pump
from ringmain.errors import RingmainError, UsageError
from ringmain.flow import kernel
from ringmain.flow.descriptor import Input
from ringmain.flow.outflow import Outflow
from ringmain.saver import Saver


class InputSaver(Saver):
    """A saver that reads what it sends from a descriptor, in the kernel where both ends allow it."""

    _source: Input | None = None  # what `copy_from` reads block by block

    def stop(self) -> bool:
        """Let `copy_from` end after what is under way, and serve no other client. False when nothing is open.

        The peer of a file that is cut short is reset; a stream, which has no end of its own, is ended properly.
        """
        self._stopping = True
        if self._sender is None:
            return False
        if self._sender.pumping is not None:
            self._sender.pumping.stop()
        return True

    async def copy_from(self, source: Input, path: str) -> None:
        """Send all of an input. A listener gives a regular file whole to every client, and goes on forever.

        path: auto, kernel or block. A stream that is to go on with the next client goes block by block, since what a
        lost client never acknowledged is kept for the next one. A file's own position is left alone.
        """
        goes_on = self.listening and not self.listen_once
        if goes_on and path == "kernel" and not source.is_file:
            raise UsageError("path=kernel", "a stream is to go on with the next client", "add listen_once=True")
        pumped = (source.is_file or not goes_on) and kernel.may_pump(path, source, tls=self._tls)
        if source.is_file or pumped:
            await self._send_to_each(source, path, pumped)
        else:
            await self._send_stream(source)

    async def _send_to_each(self, source: Input, path: str, pumped: bool) -> None:
        """Send the whole input to the one client that counts, or to one after another."""
        while not self._stopping:
            await self.wait_for_peer()
            sender = self._sender
            assert sender is not None
            try:
                if not (pumped and await self._pump(sender, source, path)):
                    if not source.is_file:
                        await self._send_stream(source)
                        return
                    await self._send_file(sender, source)
            except RingmainError as error:
                if not self._goes_on_after(error, sender.counters):
                    raise
                continue
            if not self.listening or self.listen_once:
                return

    async def _send_file(self, sender: Outflow, source: Input) -> None:
        position = source.position
        while not self._stopping:
            view = source.read_at(position)
            if not len(view):
                await self._end(sender)
                return
            position += len(view)
            sender.counters.bytes_in += len(view)
            sender.counters.reads += 1
            await self._guarded(sender, sender.send(view))
        await self._break_off(sender)

    async def _break_off(self, sender: Outflow) -> None:
        """Let what was read get through, then reset the peer: it must not take a part for the whole."""
        await self._guarded(sender, sender.deliver())
        self._release(sender)

    async def _send_stream(self, source: Input) -> None:
        self._source = source
        await self.recover()
        while (view := await source.read()) is None or len(view):
            if view is None:
                await self.recover()
            else:
                counters = self.counters
                if counters is not None:
                    counters.bytes_in += len(view)
                    counters.reads += 1
                await self._write(view)
        if self._stopping and source.has_end and self._sender is not None:
            await self._break_off(self._sender)

    async def _pump(self, sender: Outflow, source: Input, path: str) -> bool:
        """Send by the kernel path; False, with nothing sent, where the input cannot be spliced."""
        pump = Pump(
            source.fd,
            sender.link.fd,
            sender.counters,
            offset=source.position if source.is_file else -1,
            through=not (source.is_file or source.is_pipe),
        )
        if self._stopping:
            pump.stop()
        await self._guarded(sender, sender.pump(pump))
        if pump.refused:
            kernel.refused(path, source)
            return False
        if pump.failed == "source" and pump.error is not None:
            raise source.failure(pump.error)
        if pump.verdict == "ended" or not source.has_end:
            await self._end(sender)
        else:
            await self._break_off(sender)
        return True

    def _broke(self) -> None:
        if self._source is not None:
            self._source.wake()

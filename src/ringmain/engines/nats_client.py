"""nats-py's client, mended: what it says in the clear, what it copies, and how it closes."""

from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client


class _Uncopied:
    """A payload that nats-py, which joins a command by `+`, takes for bytes; `parts` of the command are not joined."""

    __slots__ = ("parts", "size")

    def __init__(self, *parts: bytes | memoryview, size: int) -> None:
        self.parts = parts
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __radd__(self, head: bytes) -> "_Uncopied":
        return _Uncopied(head, *self.parts, size=len(head) + self.size)

    def __add__(self, tail: bytes) -> "_Uncopied":
        return _Uncopied(*self.parts, tail, size=self.size + len(tail))


class NatsClient(Client):  # type: ignore[misc]  # nats-py counts as untyped
    """A client that says nothing in the clear where TLS is asked for: nats-py leaves that to what the server says.

    What is published by `send` is not copied, and what is answered to it is heard at once.
    """

    _transport: Any
    must_encrypt = False
    refusal = ""  # the error that the server has named last
    leaves_at_once = False  # without what is still to be sent
    _answers = 0
    _hear: Callable[[str, bytes, bytes | None], object]

    async def hear_answers(self, hear: Callable[[str, bytes, bytes | None], object]) -> str:
        """Have subject, data and headers heard of all that is answered below a subject of our own, and return that.

        nats-py hands each to a task by a queue, and `publish_async` has a future of its own for each: both take longer
        than to hear it, which must not raise.
        """
        inbox = str(self.new_inbox())
        self._hear = hear
        self._answers = (await self.subscribe(f"{inbox}.*"))._id
        return inbox

    async def send(self, subject: str, payload: bytes | memoryview, reply: str, headers: dict[str, str]) -> None:
        """Publish a payload, which must not change before it is sent."""
        view = memoryview(payload)
        await self.publish(subject, _Uncopied(view, size=len(view)), reply, headers)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        if sid == self._answers:
            self._hear(subject.decode(), data, headers)
        else:
            await super()._process_msg(sid, subject, reply, data, headers)

    async def _send_command(self, command: Any, priority: bool = False) -> None:
        if isinstance(command, _Uncopied):  # in parts, which are written by one system call
            *parts, command = command.parts
            self._pending += parts
            self._pending_data_size += sum(map(len, parts))
        await super()._send_command(command, priority)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self.must_encrypt and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise nats.errors.SecureConnWantedError
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        if self.tls is not None:  # which nats-py does not tell the protocol, so that asyncio warns at its end
            self._transport._io_writer.transport.get_protocol()._over_ssl = True
        return bytes(super()._connect_command())

    async def _process_err(self, words: str) -> None:
        """Hear an error that the server names: nats-py closes for good, unless it was for want of a PING."""
        if "permissions violation" in words.lower() or not self.is_connected:
            await super()._process_err(words)
        else:
            self.refusal = words.strip("'")
            await self._process_op_err(nats.errors.Error(f"nats: {self.refusal}"))

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # nats-py would write to what is closed, and wait for what never comes.
        if self.leaves_at_once or not self.is_connected:
            self.forget()
            self._transport = None
        await super()._close(status, do_cbs)

    def forget(self) -> None:
        """Close the socket at once, with all that is to be sent; the loop need not run."""
        self._pending.clear()
        self._pending_data_size = 0
        self.abort()

    def abort(self) -> None:
        """Close the socket at once; what is to be sent is kept for the next one, if any."""
        if self._transport is not None and self._transport:
            self._transport._io_writer.transport.abort()

    @property
    def tls(self) -> tuple[str, str] | None:
        """The version and the cipher suite of TLS, None without."""
        session = self._transport._io_writer.get_extra_info("ssl_object") if self._transport else None
        return None if session is None else (session.version(), session.cipher()[0])

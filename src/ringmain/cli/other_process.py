"""One of the processes of `ringmain load --processes`, as the one that has started it sees it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Protocol

from ringmain.cli.metrics import Told
from ringmain.errors import RingmainError, reason
from ringmain.net.channel import Channel, Message
from ringmain.net.gate import Gate
from ringmain.net.link import Link
from ringmain.net.readiness import finish, until
from ringmain.net.resets import reset


class Owner(Protocol):
    """Who has started it."""

    gate: Gate

    def record(self, row: dict[str, Any]) -> None:
        """Write the row of a connection."""

    def opened(self, process: "Process", name: str) -> None:
        """Hear which file it writes to."""

    def became_ready(self, process: "Process") -> None:
        """Hear that it can begin."""


class _Guest:
    """A client that was handed over, as the gate sees it: whether it is silent is asked, and known a moment later."""

    def __init__(self, number: int, channel: Channel) -> None:
        self.since = time.monotonic()
        self._number = number
        self._channel = channel
        self._silent: bool | None = None
        self._asked = False

    def is_silent(self) -> bool | None:
        """Return what was heard last, and ask again; who has begun is never silent again."""
        if self._silent is not False and not self._asked:
            self._asked = True
            self._channel.send({"ask": self._number})
        return self._silent

    def hear(self, silent: bool | None) -> None:
        """Take the answer."""
        self._asked, self._silent = False, silent

    def turn_away(self, seconds: float) -> None:
        """Have it ended, unless it has begun meanwhile."""
        self._channel.send({"turn_away": self._number, "seconds": seconds})


class Process:
    """One of the processes: who is served there, what it has moved and what became of it."""

    def __init__(self, number: int, owner: Owner) -> None:
        self.number = number
        self.guests: dict[int, tuple[Link, _Guest]] = {}
        self.moved = (0, 0, 0.0)
        self.figures: Told = {}
        self.serves = False  # it takes clients
        self.began = self.resumes = False
        self.error: RingmainError | None = None
        self._owner = owner
        self._process: subprocess.Popen[bytes] | None = None
        self._over = asyncio.get_running_loop().create_future()
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(ours, self._hear, self._ended)

    async def run(self, memory: int) -> int:
        """Start it, and return its exit code, or of a signal its negative, once all that it has told was heard."""
        try:
            self._process = _start(self._theirs.fileno(), memory)
        except OSError as error:
            self.error = RingmainError("start a process", reason(error), "see ulimit -u, or lower --processes")
            return 1
        self._theirs.close()
        await self._over
        pidfd = os.pidfd_open(self._process.pid)
        try:
            await until(pidfd)
        finally:
            os.close(pidfd)
        return self._process.wait()

    def end_of(self, code: int) -> str:
        """Return in words what that exit code says of it."""
        if self.error is not None:
            return f"cannot begin: {self.error}"
        return f"was ended by {_signal_name(-code)}" if code < 0 else f"has ended with code {code}"

    def take(self, number: int, link: Link, gate: Gate) -> None:
        """Hand a client over."""
        guest = _Guest(number, self.channel)
        self.guests[number] = link, guest
        self.channel.send({"guest": number, "peer": link.peer}, link.sock)
        gate.watch_over(link, guest)

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()  # which does nothing once it has ended

    def close(self) -> None:
        """End it, and give its places back."""
        self.kill()
        self._ended()
        self._theirs.close()
        self.channel.close()
        for link, _ in self.guests.values():
            self._owner.gate.done(link)

    def _ended(self) -> None:
        self.serves = False
        finish(self._over)

    def _hear(self, message: Message, sock: socket.socket | None) -> None:
        if sock is not None:
            reset(sock)
        if "ended" in message:
            link, _ = self.guests.pop(message["ended"])
            self._owner.gate.done(link)
        elif "silent" in message:
            if message["guest"] in self.guests:
                link, guest = self.guests[message["guest"]]
                guest.hear(message["silent"])
                if message["silent"] is False:  # which the gate may have been about to turn away
                    self._owner.gate.watch_over(link, guest)
        elif "output" in message:
            self._owner.opened(self, message["output"])
        elif "row" in message:
            self._owner.record(message["row"])
        elif "moved" in message:
            self.moved, self.figures = message["moved"], message.get("figures", {})
        elif "ready" in message:
            self.serves = self.began = True
            self.resumes = message["resumes"]
            self._owner.became_ready(self)
        elif "error" in message:
            self.error = RingmainError(message["error"])
            self.error.exit_code = message["exit_code"]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _start(channel: int, memory: int) -> "subprocess.Popen[bytes]":
    """Start a process; raise OSError. Not by uvloop, which leaves it all descriptors that we have inherited."""
    # "-P": else a module of the working directory takes the place of one of ours.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ringmain.cli.worker", str(channel)],
        stdin=memory,
        pass_fds=[channel],
        start_new_session=True,  # a terminal's ^C is for us alone
    )

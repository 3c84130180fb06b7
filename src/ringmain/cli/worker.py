"""python -m ringmain.cli.worker FD: one of the processes of `ringmain load --processes`, started by `processes`.

FD is its end of the channel; standard input is a file in memory with the mark of its output and, as JSON, what to do.
Besides what `handing` tells of it says {"row": {...}} for each connection, {"moved": [IN, OUT, FULLNESS]} where
they have changed, with {"figures": {...}} if those are wanted, and {"error": LINE, "exit_code": N} before it ends for
one. It hears of {"output": NAME}, the file to go on in, and answers with the one that it then writes to; and of
{"certificates": true}, to read them again.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import ringmain
from ringmain.cli.account import Account
from ringmain.cli.descriptors import allow_descriptors
from ringmain.cli.load import load_into
from ringmain.cli.outputs import reopen
from ringmain.cli.renewal import Renewal
from ringmain.cli.session import Session
from ringmain.cli.signals import Signals, terminating
from ringmain.cli.summary import Blame
from ringmain.cli.tls import uses_tls
from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError
from ringmain.flow.descriptor import open_output
from ringmain.flow.path import may_pump
from ringmain.flow.resuming import Mark, ResumableOutput
from ringmain.net.channel import Channel, Message
from ringmain.net.handing import HandedDoor
from ringmain.net.own_certificate import piped_passwords
from ringmain.progress import INTERVAL, Line, Look
from ringmain.settings import Settings
from ringmain.terminal import screen

log = logging.getLogger("ringmain")


class _Orders(Signals):
    """What the end of the channel does to the run: what SIGTERM does otherwise. Signals are for the parent alone."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.end: Callable[[], None] = lambda: None

    def watch(self, task: "asyncio.Task[None]", stop: Callable[[], bool], moved: Callable[[], object]) -> None:
        """Let `end` stop the task, once."""
        self.end = functools.partial(self.came, signal.SIGTERM, task, stop, moved)


class _Account(Account):
    """What goes to the parent, by a channel, once there is one."""

    channel: Channel | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Send the row of a connection."""
        if self.channel is not None:
            self.channel.send({"row": row})


class _Session(Session):
    """A run whose rows and progress go to the parent; its figures too, if `tells_figures`."""

    tells_figures = False
    account: _Account

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.account = _Account([], None, None)

    def tell_end(self, _: Blame | None) -> None:
        """Leave that to the parent."""

    async def show(self, look: Look, _: Line) -> None:
        """Tell what was moved, until cancelled."""
        told: Message = {"moved": (0, 0, 0.0)}
        while True:
            await asyncio.sleep(INTERVAL)
            if (channel := self.account.channel) is None or channel.is_behind:
                continue
            now = {"moved": look(), **({"figures": self.figures()} if self.tells_figures else {})}
            if now != told:
                told = now
                channel.send(now)


def _run(
    sock: socket.socket,
    session: _Session,
    endpoint: str,
    output: str,
    path: str,
    option: str,
    *,
    append: bool,
    **options: Any,
) -> int:
    """Load from the clients that come over a socket; return the exit code."""
    level = log.level
    log.setLevel(logging.CRITICAL)  # of what is wrong from the beginning the parent has told
    allow_descriptors(options["max_connections"], 1)
    tls = uses_tls(Endpoint.parse(endpoint), options)
    loader = ringmain.load(endpoint, **options)
    orders = _Orders()
    kind = functools.partial(ResumableOutput, mark=Mark(0), walk=loader.records(headers=True))
    with contextlib.closing(open_output(output, option, os.O_APPEND if append else 0, kind)) as sink:
        may_pump(path, sink, tls=tls, cut=True)

        def renew(message: Message) -> None:
            if "output" in message:
                reopen(sink, message["output"])
                if session.account.channel is not None:
                    session.account.channel.send({"output": sink.name})
            if "certificates" in message:
                Renewal([loader]).renew()

        async def open_door(_: Endpoint, settings: Settings) -> HandedDoor:
            door = HandedDoor(sock, settings, orders.end, renew)
            session.account.channel = door.channel
            await door.open(resumes=sink.is_file)
            log.setLevel(level)
            return door

        loader.open_gate = open_door
        return load_into(sink, path, loader, session, tls=tls, signals=orders)


def main() -> None:
    """Do what standard input says, and exit."""
    for number in terminating():
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    task = json.loads(os.pread(0, os.fstat(0).st_size, Mark.SIZE))
    task["delimiter"] = task["delimiter"].encode("latin-1")
    piped_passwords.update({path: line.encode("latin-1") for path, line in task.pop("passwords").items()})
    tells_figures = task.pop("tells_figures")
    screen.shared = sys.stderr.isatty()
    session = _Session(task)
    session.tells_figures = tells_figures
    try:
        code = _run(sock, session, **task)
        last = b""
    except RingmainError as error:
        code = error.exit_code
        last = json.dumps({"error": str(error), "exit_code": code}).encode()
    with contextlib.suppress(OSError):  # the parent is gone
        if session.account.channel is not None:
            session.account.channel.finish()
        sock.setblocking(True)
        if last:
            sock.send(last)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)  # without waiting for a name that is still being resolved, in a thread


if __name__ == "__main__":
    main()

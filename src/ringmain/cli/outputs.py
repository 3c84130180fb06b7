"""Where `ringmain load` puts each connection by itself: in a file of its own, or into a command."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Container
from typing import TYPE_CHECKING

from ringmain.cli.template import Template
from ringmain.errors import OutputError, printable, reason
from ringmain.flow.command import Command
from ringmain.flow.descriptor import Output, ReaderLeft, open_output
from ringmain.net.listeners import addresses_of
from ringmain.waiting import let_go, unless

if TYPE_CHECKING:
    from ringmain._counters import Counters
    from ringmain.flow.inflow import Inflow

log = logging.getLogger("ringmain")


class Files:
    """Write each connection to a file of its own. What one may not do to another: write to the same file meanwhile."""

    def __init__(self, template: Template, path: str, flags: int = 0) -> None:
        """Raise OutputError if no file can be made there. `flags` are those of `open_output`."""
        self._template = template
        self._path = path
        self._flags = flags | os.O_NONBLOCK  # a FIFO that nobody reads must not make all others wait
        self._open: dict[Output, tuple[str, int]] = {}  # and what the name of each is made of
        self._taken: set[tuple[int, int]] = set()
        folder = template.folder or "."
        what, remedy = f"make files in {folder}", f"choose another {template.option}"
        try:
            os.close(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise OutputError(what, reason(error), remedy) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(what, "permission denied", remedy)

    async def give(self, inflow: "Inflow", number: int) -> None:
        """Write all that a connection brings; raise OutputError."""
        name = self._template.name(inflow.link.peer, number)
        output = open_output(name, self._template.option, self._flags)
        try:
            if output.is_file and output.identity in self._taken:
                why, remedy = "another connection is being written there", "let {number} be a part of the name"
                raise OutputError(f"write to {name}", why, remedy)
            self._open[output] = inflow.link.peer, number
            self._taken.add(output.identity)
            try:
                output.begin()
                await inflow.copy_to(output, self._path)
            finally:
                self._taken.discard(output.identity)
                del self._open[output]
        finally:
            _close(output)

    def reopen(self) -> None:
        """Let each connection go on in the file that has its name now, or warn."""
        for output, (peer, number) in self._open.items():
            before = output.identity
            reopen(output, self._template.name(peer, number), self._taken)
            self._taken.discard(before)
            self._taken.add(output.identity)


def reopen(output: Output, name: str, taken: Container[tuple[int, int]] = ()) -> None:
    """Let an output go on in the file that has this name now, or warn: `Output.reopen`."""
    try:
        output.reopen(name, taken)
    except OutputError as error:
        log.warning("%s", error)


def _close(output: Output) -> None:
    try:
        output.close()
    except OSError as error:  # a network file system tells of a write that failed when it is closed
        raise OutputError(f"write to {output.name}", reason(error), "free space") from error


class Commands:
    """Run a command for each connection, with what that brings as its standard input.

    `exits` are the exit codes of those that have ended, by the counters of their connections.
    """

    def __init__(self, line: str, path: str, *, listening: bool) -> None:
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # as our parent had it: then no exit code is ever told
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.exits: dict[Counters, int] = {}
        self._line = line
        self._path = path
        self._listening = listening

    async def give(self, inflow: "Inflow", number: int) -> None:
        """Run a command until it ends; raise OutputError where that is not with 0, ReaderLeft where it was early."""
        command = self._start(inflow, number)

        async def copy() -> bool:
            await inflow.copy_to(command.input, self._path)
            return True

        early = True
        try:
            with contextlib.suppress(ReaderLeft):
                early = not await unless(command.exited(), copy())
            command.input.close()
            code = await command.exited()
        finally:
            if command.code is None:
                log.warning("%s: the command has not ended, and is stopped", inflow.link.peer)
            try:
                await let_go([asyncio.ensure_future(command.end())])
            finally:
                if command.code is not None:
                    self.exits[inflow.counters] = command.code
        if code:
            self._failed(inflow, code, early=early)
        if early:
            raise ReaderLeft

    def _start(self, inflow: "Inflow", number: int) -> Command:
        environment = {**os.environ, "RINGMAIN_PEER": printable(inflow.link.peer), "RINGMAIN_NUMBER": str(number)}
        environment.pop("RINGMAIN_LISTENER", None)  # ours may be of a command that somebody listens for
        environment.pop("RINGMAIN_KEY_PASSWORD", None)  # our key's, which is no business of theirs
        try:
            if self._listening:
                environment["RINGMAIN_LISTENER"] = addresses_of([inflow.link.sock])[0]
            return Command(self._line, environment)
        except OSError as error:
            remedy = "see ulimit -n and ulimit -u, or lower max_connections="
            raise OutputError("start the command", reason(error), remedy) from error

    def _failed(self, inflow: "Inflow", code: int, *, early: bool) -> None:
        why = f"it ended with {code}{' before the stream did' if early else ''}"
        error = OutputError("the command", why, "see its own messages, or run it by hand")
        if inflow.failure() is None:
            raise error
        log.warning("%s: %s", inflow.link.peer, str(error))  # what became of the connection is told besides

"""A command that a connection is given to: a process of the shell, whose standard input is a pipe of ours."""

import asyncio
import contextlib
import os
import signal
import subprocess

from ringmain.flow.descriptor import Output
from ringmain.net.readiness import until

# How long a command that is told to end may take, by SIGTERM, and then by SIGKILL.
_GRACE = 1.0
# How often is looked meanwhile whether anybody of its process group is left.
_LOOK = 0.02


class Command:
    """A command line that `/bin/sh -c` runs, with an environment of its own. Await `end` whatever happens.

    It inherits standard output and error and no other descriptor, and meets signals as the system has them: Python
    ignores SIGPIPE. It is a process group of its own: what a terminal sends (Ctrl-C) comes to us only, so that it gets
    all that was received first. `input` is the pipe, to be closed where the stream ends; `code` is None while it runs.
    """

    def __init__(self, line: str, environment: dict[str, str]) -> None:
        """Start it; raise OSError."""
        self.code: int | None = None
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self.input = _pipe(writer)
            try:
                self._process = _start(line, environment, reader)
                self._pidfd = _watch(self._process)
            except BaseException:
                self.input.close()
                raise
        finally:
            os.close(reader)

    async def exited(self) -> int:
        """Return its exit code once it has ended: 128 and its number for a signal, as shells do. One waiter."""
        if self.code is None:
            await until(self._pidfd)
            code = self._process.wait()
            os.close(self._pidfd)
            self.code = code if code >= 0 else 128 - code
        return self.code

    async def end(self) -> None:
        """Close its input, and if it is still running end it, with all of its process group.

        One that even SIGKILL does not end, as it waits for a disk or is another user's, is left behind.
        """
        self.input.close()
        if self.code is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):
                    await self.exited()
                    # Its number is no other group's as long as somebody is in it, of whose end no event tells.
                    while self._signal(0):  # noqa: ASYNC110
                        await asyncio.sleep(_LOOK)
                    return
        if self.code is None:
            os.close(self._pidfd)

    def _signal(self, number: int) -> bool:
        """Send a signal to all of its process group, 0 being none; tell whether anybody is left in it."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            pass
        return True


def _pipe(writer: int) -> Output:
    try:
        output = Output(writer, "the command's standard input", "--exec")
    except BaseException:
        os.close(writer)
        raise
    output.opened = writer
    return output


def _start(line: str, environment: dict[str, str], reader: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["/bin/sh", "-c", line], stdin=reader, env=environment, process_group=0)


def _watch(process: "subprocess.Popen[bytes]") -> int:
    """Return a descriptor that tells when a process has ended."""
    try:
        return os.pidfd_open(process.pid)
    except BaseException:
        process.kill()
        process.wait()
        raise

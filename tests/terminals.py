"""A terminal of so many columns, as a program and its user have it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from typing import Any

import peers
import pyte


class Terminal:
    """Run ringmain in a terminal, and look at what it shows. `fd` is the program's side."""

    def __init__(self, columns: int) -> None:
        self._ours, self.fd = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._screen = pyte.Screen(columns, 24)
        self._stream = pyte.ByteStream(self._screen)
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
        for fd in (self._ours, self.fd):
            os.close(fd)

    def start(self, *arguments: Any, **popen: Any) -> None:
        """Start ringmain with its standard error here."""
        popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **popen}
        self.process = subprocess.Popen([*peers.RINGMAIN, *map(str, arguments)], stderr=self.fd, **popen)

    def listening(self, *arguments: Any, **popen: Any) -> int:
        """Start it with port 0, and return the port that it tells."""
        self.start(*arguments, "tcp://127.0.0.1:0", **popen)
        self.until(lambda: self.text.startswith("listening on tcp://127.0.0.1:") and len(self.lines) > 0)
        return int(self.lines[0].rpartition(":")[2])

    @property
    def lines(self) -> list[str]:
        """What stands there, without what is blank below."""
        return self.text.split("\n")

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def look(self) -> None:
        """Take in what was written."""
        while select.select([self._ours], [], [], 0)[0]:
            self._stream.feed(os.read(self._ours, 4096))

    def until(self, condition: Any) -> None:
        """Wait for something to be shown."""
        deadline = time.monotonic() + peers.TIMEOUT
        while True:
            self.look()
            if condition():
                return
            assert time.monotonic() < deadline, self.text
            select.select([self._ours], [], [], 0.05)

    def wait(self) -> int:
        """Wait for the end; return the exit code, with all taken in."""
        assert self.process is not None
        self.until(lambda: self.process.poll() is not None)
        self.look()
        return self.process.returncode

"""A `ringmain load --processes`, the processes that it runs, and what they have written."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers


class Crew:
    """A load in two processes, or more, that write to files in a folder."""

    def __init__(
        self, bench: peers.Bench, *options: Any, connections: int = 100, processes: int = 2, **popen: Any
    ) -> None:
        self.files = [bench.folder / f"out-{number + 1}" for number in range(processes)]
        self.program, self.port = bench.listening(
            "load",
            *("--max-connections", connections, "--processes", processes),
            *("--output", bench.folder / "out-{process}", *options),
            **popen,
        )

    def workers(self) -> list[int]:
        """Return the processes that run."""
        return children_of(self.program.process.pid)

    def worker_of(self, file: Path) -> int | None:
        """Return the process that writes to a file, or None where there is none."""
        return next((pid for pid in self.workers() if writes_to(pid, file)), None)

    def lines(self, file: Path | None = None) -> list[bytes]:
        """Return the whole lines that were written, to all files or to one."""
        files = self.files if file is None else [file]
        return [line for it in files for line in it.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def greet(self, stack: contextlib.ExitStack, text: str) -> socket.socket:
        """Connect, send a line, and wait until it is written."""
        sock = stack.enter_context(peers.connect(self.port))
        line = text.encode() + b"\n"
        sock.sendall(line)
        peers.eventually(lambda: line in self.lines(), f"{text!r} in a file")
        return sock


def children_of(parent: int) -> list[int]:
    """Return the processes that a process has started and that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                found.append(int(path.parent.name))
    return found


def writes_to(pid: int, file: Path) -> bool:
    """Tell whether a process has a file open."""
    with contextlib.suppress(OSError):
        return any(fd.readlink() == file for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


def is_running(pid: int) -> bool:
    """Tell whether a process runs that may be nobody's child any more."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def all_ended(pids: list[int]) -> None:
    """Wait until none of the processes runs."""
    assert pids
    peers.eventually(lambda: not any(is_running(pid) for pid in pids), "the end of all processes")


def until_acknowledged(sock: socket.socket) -> None:
    """Wait until the other side's kernel has every byte."""
    peers.eventually(lambda: peers.unacknowledged(sock) == 0, "the acknowledgement")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)

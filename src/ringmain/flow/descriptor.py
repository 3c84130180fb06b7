"""What stands at the other side of the socket: a pipe, a file, a terminal, a device, or another socket.

Reading and writing never block the event loop for long and never change the flags of a descriptor that others share:
O_NONBLOCK belongs to the open file, so a pipe or terminal is opened once more by way of /proc, a socket is used with
MSG_DONTWAIT, and files and other devices are simply used. A pipe is made as large as it may be: that changes no flag.
"""

import contextlib
import fcntl
import os
import select
import socket
import stat
import sys
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

from ringmain._counters import Counters
from ringmain._pump import widen_pipe
from ringmain.errors import InputError, OutputError, reason
from ringmain.net.readiness import future, is_ready, until, until_gone

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

# What a pipe that polls as writable surely takes without blocking (PIPE_BUF of pipe(7)).
_PIPE_BUF = 4096
READ_SIZE = 256 << 10


class ReaderLeft(Exception):  # noqa: N818 - not an error: `load ... | head -1` ends well
    """Whoever read our output needs no more."""


class Descriptor:
    """A descriptor with a way to use it that does not block, opened once more where that is possible.

    `name` stands in error lines, `obstacle` says why splice is not to be used here ("is a terminal"), or nothing.
    """

    def __init__(self, fd: int, flags: int, name: str) -> None:
        mode = os.fstat(fd).st_mode
        self.fd = fd
        self.name = name
        self.is_file = stat.S_ISREG(mode)
        self.is_pipe = stat.S_ISFIFO(mode)
        self.is_socket = stat.S_ISSOCK(mode)
        self.has_end = self.is_file or stat.S_ISBLK(mode)  # so that a part of it can be told from the whole
        self.is_terminal = os.isatty(fd)
        self.may_block = self.is_pipe or self.is_socket or self.is_terminal
        # Both have flags of their own that others share, and splice may block there.
        self.obstacle = "is a terminal" if self.is_terminal else "is a socket" if self.is_socket else ""
        self._reopened = False
        self._poll: select.epoll | None = None
        self._socket = socket.socket(fileno=os.dup(fd)) if self.is_socket else None
        if self.is_pipe or self.is_terminal:
            try:
                self.fd = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                self._reopened = True
            except OSError:  # no /proc, or a pipe of another user
                self.fd = fd
        if self.is_pipe:
            widen_pipe(self.fd)

    @property
    def pipe_size(self) -> int:
        """How many bytes a pipe holds; the least that any does where the system does not say."""
        return fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else _PIPE_BUF

    def close(self) -> None:
        """Close what was opened here; the descriptor itself is left as it was found."""
        if self._reopened:
            self._reopened = False
            os.close(self.fd)
        if self._socket is not None:
            self._socket.close()
        if self._poll is not None:
            self._poll.close()

    async def _until_ready(self, events: int, ready: "asyncio.Future[None] | None" = None) -> None:
        """Wait until there is something to read, or room to write."""
        if self._reopened:
            await until(self.fd, writable=events == select.EPOLLOUT, ready=ready)
            return
        # uvloop sets O_NONBLOCK on whatever it watches (uv_poll_init), so it is given an epoll of our own instead.
        if self._poll is None:
            self._poll = select.epoll()
        self._poll.register(self.fd, events)
        try:
            await until(self._poll.fileno(), ready=ready)
        finally:
            self._poll.unregister(self.fd)


class Output(Descriptor):
    """Write to a descriptor. A file that `open_output` opened keeps what it has until `begin`, or if it appends.

    `option` is what the user chose it with.
    """

    def __init__(self, fd: int, name: str, option: str = "--output") -> None:
        super().__init__(fd, os.O_WRONLY, name)
        self.option = option
        self.opened: int | None = None  # the descriptor, where it is ours to close
        self.made: Path | None = None  # the file, where there was none before, until `begin`
        self._begun = False
        self.mid_line = False  # what was written last to a terminal has not ended a line
        self.appends = self.is_file and bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
        if self.appends:  # do_splice of the kernel's fs/splice.c answers EINVAL, sendfile too
            self.obstacle = "is open for appending"
        elif self.is_file and _is_standard_error(fd):
            # splice does not lock the position that they share: a line written meanwhile would set it back.
            self.obstacle = "is where standard error goes too"

    def begin(self) -> None:
        """Empty the file, unless it appends, now that nothing stands in the way of bytes for it; raise OutputError."""
        self.made = None
        self._begun = True
        if self.opened is not None and self.is_file and not self.appends:
            try:
                os.ftruncate(self.opened, 0)
            except OSError as error:
                raise OutputError(f"open {self.name}", reason(error), f"choose another {self.option}") from error

    @property
    def identity(self) -> tuple[int, int]:
        """The device and inode: which file it is."""
        return _identity(self.fd)

    def reopen(self, name: str, taken: Container[tuple[int, int]] = ()) -> None:
        """Go on in the file that has this name now, behind what it holds; raise OutputError and stay in the old one.

        Does nothing where that is the same file, or no regular file was opened here; refuses one whose `identity` is
        among `taken`. Each `write` is whole in either, and a pump may go on, since the descriptor keeps its number.
        """
        if self.opened is None or not self.is_file:
            return
        what, remedy = f"reopen {name}", f"it goes on in the file that was {self.name}"
        try:
            fd, made = _open_or_make(name, os.O_NONBLOCK | (os.O_APPEND if self.appends else 0))
        except OSError as error:
            raise OutputError(what, reason(error), remedy) from error
        try:
            if (identity := _identity(fd)) == self.identity:
                return
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OutputError(what, "it is not a regular file any more", remedy)
            if identity in taken:
                raise OutputError(what, "another connection is being written there", remedy)
            os.lseek(fd, 0, os.SEEK_END)
            old = os.dup(self.opened)
            os.dup2(fd, self.opened, inheritable=False)
        except OSError as error:  # of descriptors
            raise OutputError(what, reason(error), remedy) from error
        finally:
            os.close(fd)
        before, self.name = self.name, name
        if not self._begun:
            self.made = made
        try:
            os.close(old)
        except OSError as error:  # a network file system tells of a write that failed when it is closed
            raise OutputError(f"write to {before}", reason(error), "free space") from error

    def close(self) -> None:
        """Close what was opened here; remove a file that was made for bytes which never had a way to come."""
        super().close()
        fd, self.opened = self.opened, None
        if fd is None:
            return
        if self.made is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(fd), self.made.lstat()):
                    self.made.unlink()
        os.close(fd)

    async def write(self, view: memoryview, counters: Counters) -> None:
        """Write all of the view, counting it; raise ReaderLeft when nobody reads any more, else OutputError."""
        while len(view):
            try:
                size = self._write_some(view)
            except BlockingIOError:
                await self._until_ready(select.EPOLLOUT)
                continue
            except OSError as error:
                raise self.failure(error) from error
            counters.bytes_out += size
            counters.writes += 1
            if self.is_terminal and size:
                self.mid_line = view[size - 1] != ord("\n")
            view = view[size:]

    def failure(self, error: OSError) -> Exception:
        """Return what a failed write means: ReaderLeft or OutputError."""
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            return ReaderLeft()
        return OutputError(f"write to {self.name}", reason(error), f"free space or choose another {self.option}")

    async def reader_left(self) -> None:
        """Return when nobody reads any more, also while there is nothing to write. A file never comes to that."""
        if not self.may_block:
            await future()
        await until_gone(self.fd)

    def _write_some(self, view: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(view, socket.MSG_DONTWAIT)
        if self.may_block and not self._reopened:
            if not is_ready(self.fd, select.POLLOUT):
                raise BlockingIOError
            view = view[:_PIPE_BUF]
        return os.write(self.fd, view)


class Input(Descriptor):
    """Read from a descriptor. `option` is what the user chose it with."""

    def __init__(self, fd: int, name: str, option: str = "--input") -> None:
        super().__init__(fd, os.O_RDONLY, name)
        self.option = option
        self.position = os.lseek(fd, 0, os.SEEK_CUR) if self.is_file else 0
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._waiter: asyncio.Future[None] | None = None
        self._woken = self.stopped = False
        self.ended: float | None = None  # when there was nothing more to read, on the monotonic clock

    @property
    def size(self) -> int:
        """How many bytes of a regular file there are to read; 0 of what has no size."""
        return max(0, os.fstat(self.fd).st_size - self.position) if self.is_file else 0

    async def read(self) -> memoryview | None:
        """Return what is there, an empty view at the end, or None after `wake`. Good until the next call."""
        while not self.stopped:
            if self._woken:
                self._woken = False
                return None
            try:
                size = self._read_some()
            except BlockingIOError:
                self._waiter = future()
                await self._until_ready(select.EPOLLIN, self._waiter)
                continue
            except OSError as error:
                raise self.failure(error) from error
            return self._buffer[:size]
        return self._buffer[:0]

    def read_at(self, offset: int, buffer: memoryview) -> memoryview:
        """Return what a regular file holds at `offset`, empty at its end; its own position stays where it is."""
        try:
            return buffer[: os.preadv(self.fd, [buffer], offset)]
        except OSError as error:
            raise self.failure(error) from error

    def failure(self, error: OSError) -> InputError:
        """Return what a failed read means."""
        return InputError(f"read {self.name}", reason(error), f"choose another {self.option}")

    def wake(self) -> None:
        """Let the `read` that waits, or the next one, return None."""
        self._woken = True
        self._interrupt()

    def stop(self) -> None:
        """Let every `read` from now on return the end."""
        self.stopped = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _read_some(self) -> int:
        if self._socket is not None:
            return self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
        if self.may_block and not self._reopened and not is_ready(self.fd, select.POLLIN):
            raise BlockingIOError
        return os.readv(self.fd, [self._buffer])


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def open_output(
    path: str,
    option: str = "--output",
    flags: int = 0,
    kind: Callable[[int, str, str], Output] = Output,
) -> Output:
    """Open a file, "-" being standard output; raise OutputError. It keeps what it has until `Output.begin`."""
    if path == "-":
        return Output(_standard(1, OutputError, "standard output", "redirect it somewhere"), "standard output", option)
    try:
        fd, made = _open_or_make(path, flags)
    except OSError as error:
        raise OutputError(f"open {path}", reason(error), f"choose another {option}") from error
    output = kind(fd, path, option)
    output.opened, output.made = fd, made
    return output


def _open_or_make(path: str, flags: int) -> "tuple[int, Path | None]":
    """Open a file for writing; return its descriptor and, where there was none before, the file."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags), None
    except FileNotFoundError:
        from pathlib import Path

        made = Path(path).resolve()
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o666), made


def open_input(path: str, option: str = "--input") -> Input:
    """Open a file, "-" being standard input; raise InputError."""
    if path == "-":
        fd = _standard(0, InputError, "standard input", "redirect it from somewhere")
    else:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"open {path}", reason(error), f"choose another {option}") from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise InputError(f"read {path}", "is a directory", f"choose a file as {option}")
    return Input(fd, "standard input" if path == "-" else path, option)


def _is_standard_error(fd: int) -> bool:
    try:
        return os.path.sameopenfile(fd, 2)
    except OSError:  # there is none
        return False


def _standard(fd: int, error_class: type[InputError] | type[OutputError], name: str, remedy: str) -> int:
    try:
        os.fstat(fd)
    except OSError as error:
        raise error_class(name, "it is closed", remedy) from error
    if (sys.__stdin__, sys.__stdout__)[fd] is None:  # it was closed when Python started; something else took its number
        raise error_class(name, "it is closed", remedy)
    return fd

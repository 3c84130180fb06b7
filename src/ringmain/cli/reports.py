"""The files that a run writes beside its bytes: the port listened at, and a row for each connection."""

import errno
import json
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from ringmain.errors import OutputError, reason

log = logging.getLogger("ringmain")


class PortFile:
    """A file that holds the port while it is listened at. Readers see the old file or the new one, never a part."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._written: tuple[int, int, int] | None = None  # which file it is that we wrote

    def write(self, text: str) -> None:
        """Write it; raise OutputError."""
        try:
            if self._path.exists() and not self._path.is_file():  # to put a file in the place of /dev/stdout harms all
                raise OutputError(f"write {self._path}", "not a regular file", "choose another --port-file")
            fd, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            try:
                with os.fdopen(fd, "w") as file:
                    file.write(text)
                    file.flush()
                    os.fchmod(fd, 0o644)
                    self._written = _identity(os.fstat(fd))
                Path(temporary).replace(self._path)
            except BaseException:
                Path(temporary).unlink()
                raise
        except OSError as error:
            raise OutputError(f"write {self._path}", reason(error), "choose another --port-file") from error

    def remove(self) -> None:
        """Remove what was written, unless another process has put its own file there meanwhile."""
        written, self._written = self._written, None
        try:
            if written is not None and _identity(self._path.lstat()) == written:
                self._path.unlink()
        except OSError as error:
            if error.errno != errno.ENOENT:
                log.warning("cannot remove %s: %s", self._path, reason(error))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns


class StatsFile:
    """A file that gets one line of JSON for each connection: a whole line or none.

    A line that cannot be written costs a warning, one for as long as it goes on: the connections matter more. The file
    is made with the first line, so that a run that comes to nothing leaves none.
    """

    def __init__(self, path: str) -> None:
        """Raise OutputError where it cannot be written."""
        self._path = path
        self._failing = False
        self._fd: int | None = None
        try:
            self._fd = self._open(0)
        except FileNotFoundError:
            self._try_to_make()
        except OSError as error:
            raise self._failure(error) from error

    def append(self, row: dict[str, Any]) -> None:
        """Append a row, or warn."""
        try:
            if self._fd is None:
                self._fd = self._open(os.O_CREAT)
            _append_whole(self._fd, json.dumps(row).encode() + b"\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("write %s: %s; connections are served, and not reported", self._path, reason(error))
            self._failing = True

    def _open(self, flags: int) -> int:
        # A pipe is opened for reading too: it is not waited for whoever reads there, and rows lie in it meanwhile.
        pipe = Path(self._path).is_fifo()
        flags |= os.O_RDWR if pipe else os.O_WRONLY
        return os.open(self._path, flags | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)

    def _try_to_make(self) -> None:
        try:
            os.close(self._open(os.O_CREAT | os.O_EXCL))
            Path(self._path).unlink()
        except FileExistsError:
            pass
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"open {self._path}", reason(error), "choose another --stats-file")


def _append_whole(fd: int, line: bytes) -> None:
    """Write all of a line, or take back what was written and raise OSError. A pipe takes so short a line whole."""
    size = 0
    try:
        while size < len(line):
            size += os.write(fd, line[size:])
    except OSError:
        status = os.fstat(fd)
        if size and stat.S_ISREG(status.st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == status.st_size:
            os.ftruncate(fd, status.st_size - size)
        raise

"""The file that tells scripts which port is listened at. When it is written, and what with: `cli.session`."""

import errno
import logging
import os
from pathlib import Path

from ringmain.errors import OutputError, reason

log = logging.getLogger("ringmain")


class PortFile:
    """A file that holds the port while it is listened at. Readers see the old file or the new one, never a part."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._written: tuple[int, int, int] | None = None  # which file it is that we wrote

    def write(self, text: str) -> None:
        """Write it; raise OutputError."""
        import tempfile  # here, since most runs write none

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

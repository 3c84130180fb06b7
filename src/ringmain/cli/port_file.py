"""The file that tells scripts which port is listened at. When it is written, and what with: `cli.session`.

They wait for it: pathlib and tempfile would take longer to import than all else that is done here.
"""

import errno
import logging
import os

from ringmain.errors import OutputError, reason

log = logging.getLogger("ringmain")


class PortFile:
    """A file that holds the port while it is listened at. Readers see the old file or the new one, never a part."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._written: tuple[int, int, int] | None = None  # which file it is that we wrote

    def write(self, text: str) -> None:
        """Write it; raise OutputError."""
        try:
            # To put a file in the place of /dev/stdout would harm everybody.
            if os.path.exists(self._path) and not os.path.isfile(self._path):
                raise OutputError(f"write {self._path}", "not a regular file", "choose another --port-file")
            folder, name = os.path.split(self._path)
            temporary = os.path.join(folder, f".{name}.{os.urandom(8).hex()}")
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(fd, "w") as file:
                    file.write(text)
                    file.flush()
                    os.fchmod(fd, 0o644)
                    self._written = _identity(os.fstat(fd))
                os.replace(temporary, self._path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise OutputError(f"write {self._path}", reason(error), "choose another --port-file") from error

    def remove(self) -> None:
        """Remove what was written, unless another process has put its own file there meanwhile."""
        written, self._written = self._written, None
        try:
            if written is not None and _identity(os.lstat(self._path)) == written:
                os.unlink(self._path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                log.warning("cannot remove %s: %s", self._path, reason(error))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns

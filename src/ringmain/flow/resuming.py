"""A file that a process writes whole records to, and that another goes on with when that one dies."""

import logging
import mmap
import os
import struct
from pathlib import Path

from ringmain._ring import Counters
from ringmain._walk import Walk
from ringmain.errors import OutputError, reason
from ringmain.flow.descriptor import Output

log = logging.getLogger("ringmain")


class Mark:
    """How many bytes of a file are whole writes, kept at the beginning of a file in memory that outlives a process.

    None until the file was begun.
    """

    _FORMAT = "<q"
    SIZE = struct.calcsize(_FORMAT)
    UNSET = struct.pack(_FORMAT, -1)

    def __init__(self, fd: int) -> None:
        """Use the descriptor of the file in memory."""
        self._memory = mmap.mmap(fd, self.SIZE)

    @property
    def size(self) -> int | None:
        """The bytes."""
        (size,) = struct.unpack(self._FORMAT, self._memory)
        return size if size >= 0 else None

    @size.setter
    def size(self, size: int) -> None:
        self._memory[:] = struct.pack(self._FORMAT, size)


class ResumableOutput(Output):
    """Write whole records to a file, noting after each write how far they go; begin where a dead process left off.

    That may have been in the middle of a write: its whole records stay, and the record that is cut short is dropped, or
    the next one would seem a part of it.
    """

    def __init__(self, fd: int, name: str, option: str, mark: Mark, walk: Walk) -> None:
        super().__init__(fd, name, option)
        self._mark = mark
        self._walk = walk  # over whole records, headers included

    def begin(self) -> None:
        """Empty the file, or go to its end if it was begun before; raise OutputError."""
        size = self._mark.size
        if size is None or not self.is_file:
            super().begin()
            self._mark.size = 0
            return
        self.made = None
        try:
            self._mark.size = self._whole(size)
        except OSError as error:
            raise OutputError(f"go on with {self.name}", reason(error), f"choose another {self.option}") from error

    async def write(self, view: memoryview, counters: Counters) -> None:
        """Write all of the view, which are whole records."""
        size = len(view)
        await super().write(view, counters)
        self._mark.size = (self._mark.size or 0) + size

    def _whole(self, size: int) -> int:
        """Cut off what is behind the last whole record, go there, and return where that is."""
        end = os.fstat(self.fd).st_size
        size = min(size, end)  # somebody has put another file there, or emptied it
        with Path(f"/proc/self/fd/{self.fd}").open("rb", buffering=0) as file:
            rest = os.pread(file.fileno(), end - size, size)
        self._walk.enter(memoryview(rest), keeps_rest=False)
        while (record := self._walk.take()) is not None:
            size += len(record)
        if size < end:
            log.warning(
                "%s: dropped %d bytes of a record that a dead process has left unfinished", self.name, end - size
            )
            os.ftruncate(self.fd, size)
        return os.lseek(self.fd, size, os.SEEK_SET)

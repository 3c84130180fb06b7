"""A file that a process writes whole records to, and that another goes on with when that one dies."""

import contextlib
import logging
import mmap
import os
import struct
from collections.abc import Container
from pathlib import Path

from ringmain._counters import Counters
from ringmain._walk import Walk
from ringmain.errors import OutputError, reason
from ringmain.flow.descriptor import Output

log = logging.getLogger("ringmain")


class Mark:
    """How far the whole writes to which file go, kept at the beginning of a file in memory that outlives a process.

    `size` is None until one was begun, `file` its device and inode.
    """

    _FORMAT = "<qQQ"
    SIZE = struct.calcsize(_FORMAT)
    UNSET = struct.pack(_FORMAT, -1, 0, 0)

    def __init__(self, fd: int) -> None:
        """Use the descriptor of the file in memory."""
        self._memory = mmap.mmap(fd, self.SIZE)

    @property
    def size(self) -> int | None:
        """The bytes up to there."""
        size, _, _ = struct.unpack(self._FORMAT, self._memory)
        return size if size >= 0 else None

    @property
    def file(self) -> tuple[int, int]:
        """Which file."""
        _, device, inode = struct.unpack(self._FORMAT, self._memory)
        return device, inode

    def note(self, size: int, file: tuple[int, int]) -> None:
        """Set both at once."""
        self._memory[:] = struct.pack(self._FORMAT, size, *file)


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
        """Empty the file, or go to its end if one was begun before, or if it appends; raise OutputError."""
        size = self._mark.size
        if size is None or not self.is_file:
            super().begin()
        else:
            self.made = None
            try:
                self._cut_to_whole(size)
            except OSError as error:
                raise OutputError(f"go on with {self.name}", reason(error), f"choose another {self.option}") from error
        self._note()

    async def write(self, view: memoryview, counters: Counters) -> None:
        """Write all of the view, which are whole records."""
        await super().write(view, counters)
        if self.is_file:
            self._mark.note(os.lseek(self.fd, 0, os.SEEK_CUR), self._file)  # also where somebody has shortened it

    def reopen(self, name: str, taken: Container[tuple[int, int]] = ()) -> None:
        """Go on in another file, and note that, also where the one before has failed when it was closed."""
        try:
            super().reopen(name, taken)
        finally:
            if self._begun and self.identity != self._file:
                self._note()

    def _note(self) -> None:
        """Note where the file ends, and which it is."""
        self._file = self.identity
        self._mark.note(os.lseek(self.fd, 0, os.SEEK_END) if self.is_file else 0, self._file)

    def _read(self, start: int, end: int) -> bytes:
        """Return what the file has there, by way of its name where there is no /proc."""
        for path in (f"/proc/self/fd/{self.fd}", self.name):
            with contextlib.suppress(FileNotFoundError), Path(path).open("rb", buffering=0) as file:
                if os.path.sameopenfile(file.fileno(), self.fd):
                    return os.pread(file.fileno(), end - start, start)
        why = "it cannot be read, and may end within a record"
        raise OutputError(f"go on with {self.name}", why, "see that /proc is mounted")

    def _cut_to_whole(self, size: int) -> None:
        """Cut off what is behind the last whole record, where so much is known to be whole."""
        if self.identity != self._mark.file:
            return  # somebody has put another file there
        end = os.fstat(self.fd).st_size
        size = min(size, end)  # or has shortened it
        rest = self._read(size, end)
        self._walk.enter(memoryview(rest), keeps_rest=False)
        while (record := self._walk.take()) is not None:
            size += len(record)
        if size < end:
            log.warning(
                "%s: dropped %d bytes of a record that a dead process has left unfinished", self.name, end - size
            )
            os.ftruncate(self.fd, size)

"""Log lines on standard error, of which those who may connect cannot bring about more than so many a minute."""

import logging
import threading
import time
from typing import TextIO

from ringmain.cli.flags import as_flags
from ringmain.errors import printable
from ringmain.terminal import screen

# So many warnings of one kind are written a minute; then it is told how many more there were.
MOST = 10
MINUTE = 60.0


class _Minute:
    """The warnings of one kind in a minute."""

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.count = 0
        self.last = ""


class LogHandler(logging.StreamHandler[TextIO]):
    """Write lines to standard error. Of one kind are warnings from one place in the source, about one class of error.

    A peer that is refused, or breaks off, costs a line: without a bound whoever may connect could fill a disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Formatter("ringmain: %(message)s"))
        self._minutes: dict[tuple[object, ...], _Minute] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it only."""
        if record.levelno != logging.WARNING:  # -v asks for a line a connection
            self._write(record)
            return
        cause = record.args[0] if isinstance(record.args, tuple) and record.args else None
        kind = (record.pathname, record.lineno, type(cause))
        now = time.monotonic()
        minute = self._minutes.get(kind)
        if minute is None or now >= minute.ends:
            if minute is not None:
                self._tell_of_more(minute)
            minute = self._minutes[kind] = _Minute(now + MINUTE)
        minute.count += 1
        if minute.count <= MOST:
            self._write(record)
            return
        minute.last = record.getMessage()
        if minute.count == MOST + 1:
            timer = threading.Timer(minute.ends - now, self._tell_in_time, [minute])
            timer.daemon = True
            timer.start()

    def close(self) -> None:
        """Tell what was kept back."""
        for minute in self._minutes.values():
            self._tell_of_more(minute)
        super().close()

    def _tell_in_time(self, minute: _Minute) -> None:
        with self.lock:  # type: ignore[union-attr] # which a handler has
            self._tell_of_more(minute)

    def _tell_of_more(self, minute: _Minute) -> None:
        more, minute.count = minute.count - MOST, 0
        if more > 0:
            message = f"{more} more like this in the last minute: {minute.last}"
            self._write(logging.makeLogRecord({"msg": message}))

    def _write(self, record: logging.LogRecord) -> None:
        screen.clear()
        super().emit(record)


def set_up_log(quiet: bool, verbose: bool) -> None:
    """Let the log go to standard error: errors only, or how connections start and end too."""
    log = logging.getLogger("ringmain")
    log.handlers = [LogHandler()]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(as_flags(super().format(record)))

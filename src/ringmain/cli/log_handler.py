"""Log lines on standard error, of which those who may connect cannot bring about more than so many at a time."""

import contextlib
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
# With -v each connection may have its lines, and so many of one kind are written a second.
MOST_VERBOSE = 50
SECOND = 1.0


class _Span:
    """The lines of one kind in a minute, or a second: `most` are written."""

    def __init__(self, ends: float, most: int, name: str) -> None:
        self.ends = ends
        self.most = most
        self.name = name
        self.count = 0
        self.last = ""


class LogHandler(logging.StreamHandler[TextIO]):
    """Write lines to standard error. Of one kind are those from one place in the source, about one class of error.

    A peer that is refused, or breaks off, costs a line, with -v each that connects a few: without a bound whoever may
    connect could fill a disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Formatter("ringmain: %(message)s"))
        self._spans: dict[tuple[object, ...], _Span] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it only."""
        if record.levelno > logging.WARNING:  # which is what ends us
            self._write(record)
            return
        cause = record.args[0] if isinstance(record.args, tuple) and record.args else None
        kind = (record.pathname, record.lineno, type(cause))
        now = time.monotonic()
        span = self._spans.get(kind)
        if span is None or now >= span.ends:
            if span is not None:
                self._tell_of_more(span)
            warns = record.levelno == logging.WARNING
            span = _Span(now + MINUTE, MOST, "minute") if warns else _Span(now + SECOND, MOST_VERBOSE, "second")
            self._spans[kind] = span
        span.count += 1
        if span.count <= span.most:
            self._write(record)
            return
        span.last = record.getMessage()
        if span.count == span.most + 1:
            timer = threading.Timer(span.ends - now, self._tell_in_time, [span])
            timer.daemon = True
            with contextlib.suppress(RuntimeError):  # no thread may start: what is written next of this kind tells
                timer.start()

    def close(self) -> None:
        """Tell what was kept back."""
        for span in self._spans.values():
            self._tell_of_more(span)
        super().close()

    def _tell_in_time(self, span: _Span) -> None:
        with self.lock:  # type: ignore[union-attr] # which a handler has
            self._tell_of_more(span)

    def _tell_of_more(self, span: _Span) -> None:
        more, span.count = span.count - span.most, 0
        if more > 0:
            message = f"{more} more like this in the last {span.name}: {span.last}"
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

"""What becomes of a record that a parser refuses: `on_error`."""

import logging
import traceback
import weakref
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeAlias

from ringmain.errors import ParseError, UsageError, printable

log = logging.getLogger("ringmain")

OnError: TypeAlias = Literal["raise", "skip"] | Callable[[ParseError, bytes], object]

# A parser may quote the record, which can be as long as `max_record`.
_LONGEST_REASON = 300


class Origin(Protocol):
    """The connection that a record came from: a `Stream`, or the link of one of many. One object a connection."""

    @property
    def peer(self) -> str:
        """The address of the peer."""


class Bad(NamedTuple):
    """A record that a parser refused.

    `offset` bytes of its stream lie before it. It is `fatal` where nothing behind it can be read either.
    """

    offset: int
    record: memoryview
    cause: Exception | None
    why: str
    remedy: str = ""
    fatal: bool = False


class Refusals:
    """Raise, skip or ask, as `on_error` says; count what was skipped."""

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "skip") and not callable(on_error):
            raise UsageError(f"on_error={on_error!r}", "not known", 'choose "raise", "skip", or a function')
        self.on_error = on_error
        self.count = self.size = 0
        # The same of each connection, for as long as anybody has it.
        self._of: weakref.WeakKeyDictionary[Origin, tuple[int, int]] = weakref.WeakKeyDictionary()

    @property
    def most(self) -> int:
        """How many bad records of a block need be looked for at a time."""
        return 1 if self.on_error == "raise" else 1000

    def judge(self, stream: Origin, bad: Bad) -> Exception | None:
        """Return what is to be raised, or None where the record is skipped.

        What a function of the user's raises comes out of the iteration as it is.
        """
        error = ParseError(stream.peer, bad.offset, _told(bad.why), bad.remedy)
        if bad.cause is not None:
            error.__cause__ = bad.cause.with_traceback(None)  # its frames hold blocks, and itself
        if bad.fatal or self.on_error == "raise":
            return error
        if not isinstance(self.on_error, str):
            try:
                self.on_error(error, bytes(bad.record))
            except Exception as other:
                # Its frames lead to ours, which hold blocks: where it was raised is told in words.
                other.add_note("raised by on_error:\n" + "".join(traceback.format_tb(other.__traceback__)[1:]))
                return other.with_traceback(None)
        self._count(stream, len(bad.record), error)
        return None

    def _count(self, stream: Origin, size: int, error: ParseError) -> None:
        """Count a skipped record; warn of the 1st, 10th, 100th ... of a connection, so that no peer can flood a log."""
        self.count += 1
        self.size += size
        count, skipped = self._of.get(stream, (0, 0))
        count, skipped = count + 1, skipped + size
        self._of[stream] = count, skipped
        if self.on_error == "skip" and str(count).rstrip("0") == "1":
            log.warning("%s; skipped, with it %d records of %d bytes", error, count, skipped)


def _told(why: str) -> str:
    """Return the parser's words, which quote what a stranger sent, short and without what would control a terminal."""
    if len(why) > _LONGEST_REASON:
        why = why[:_LONGEST_REASON] + "..."
    return printable(why)

"""What the next client gets of what a lost one never had.

Whether it gets it: `Clients`. That a file goes whole to each: `copying.from_input`.
"""

from ringmain._cutter import Cutter
from ringmain.errors import RecordTooLongError
from ringmain.settings import MAX_RECORD


class Carry:
    """What the lost client's kernel had not acknowledged goes to the next client, once and in order.

    That is, in this order: what it was sent without an answer, what was never sent, and what was due to it from others
    before it. A sender that is given this keeps the first here while it sends; it costs a copy of every byte. With a
    `cutter` that begins with a whole record: what was acknowledged of it goes once more.
    """

    def __init__(self, cutter: Cutter | None = None) -> None:
        self.due = b""  # what the present client has to be sent before anything else
        self._unanswered = bytearray()  # what it was sent, from the beginning of a record on if there is a cutter
        self._cutter = cutter
        self._searched = 0  # no record ends in the first of it, so many bytes, which are acknowledged

    @property
    def is_idle(self) -> bool:
        """Tell whether what is written now may go out without a look at this."""
        return not self.due and self._searched <= MAX_RECORD

    def check_record(self, what: str) -> None:
        """Raise RecordTooLongError if what is kept for the sake of one record is more than one may have."""
        if self._searched > MAX_RECORD:
            why = f"no delimiter within {MAX_RECORD} bytes"
            raise RecordTooLongError(what, why, "give the one that records end with, or leave out delimiter=")

    def paid(self, size: int, of: int) -> None:
        """Owe that many bytes less, of so many that were due before the present client's sender accepted them.

        It may be lost by now, and what it never got be due before them.
        """
        begin = len(self.due) - of
        self.due = self.due[:begin] + self.due[begin + size :]

    def sent(self, view: memoryview) -> None:
        """Keep what the present client is sent."""
        self._unanswered += view

    def acknowledged(self, left: int) -> None:
        """Forget all that was sent but the last bytes, so many, which its kernel has not acknowledged."""
        surplus = len(self._unanswered) - left
        if self._cutter is not None and surplus > self._searched:
            end, surplus = surplus, self._cutter.last_end(self._unanswered, self._searched, surplus)
            self._searched = end - surplus
        elif self._cutter is not None:
            return
        if surplus > 0:
            del self._unanswered[:surplus]

    def lost(self, unsent: bytes) -> None:
        """Owe the next client what the present one never got; `unsent` is what was accepted for it and not sent."""
        self.due = bytes(self._unanswered) + unsent + self.due
        self._unanswered.clear()
        self._searched = 0

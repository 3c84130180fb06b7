"""What the next client gets of what a lost one never had.

Whether it gets it: `Clients`. That a file goes whole to each: `copying.from_input`.
"""


class Carry:
    """What the lost client's kernel had not acknowledged goes to the next client, once and in order.

    That is, in this order: what it was sent without an answer, what was never sent, and what was due to it from others
    before it. A sender that is given this keeps the first here while it sends; it costs a copy of every byte. A sender
    under TLS is not (`Outflow`): there what the kernel has taken is gone.
    """

    def __init__(self) -> None:
        self.due = b""  # what the present client has to be sent before anything else
        self._unanswered = bytearray()

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
        if surplus > 0:
            del self._unanswered[:surplus]

    def lost(self, unsent: bytes) -> None:
        """Owe the next client what the present one never got; `unsent` is what was accepted for it and not sent."""
        self.due = bytes(self._unanswered) + unsent + self.due
        self._unanswered.clear()

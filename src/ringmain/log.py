"""The lines of the log that every connection brings: that it has come about, and what became of it.

The words for what became of it are `Outcome.__str__`'s.
"""

import logging

from ringmain.outcome import Outcome, RelayOutcome

_log = logging.getLogger("ringmain")


def log_connected(peer: str, tls: str | None, cipher: str | None) -> None:
    """Tell of a connection that is ready for data."""
    _log.info("%s: connected%s", peer, f" with {tls}, {cipher}" if tls else "")


def log_ended(outcome: Outcome | RelayOutcome) -> None:
    """Tell what became of one, in the words of `Outcome.__str__`."""
    _log.info("%s", outcome)

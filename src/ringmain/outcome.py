"""What became of a connection."""

import enum


class Verdict(enum.StrEnum):
    """How a connection ended. All that came before it was handed over."""

    ENDED = "ended"  # properly
    TRUNCATED = "truncated"  # TLS without close_notify, or broken: bytes may be missing
    RESET = "reset"
    TIMED_OUT = "timed out"  # it stood still for `idle_timeout`
    STOPPED = "stopped"  # by this side

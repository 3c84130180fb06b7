"""How many files this process may open: as many as its event loop and its connections take."""

import contextlib
import logging
import os

from ringmain.errors import RingmainError, reason

log = logging.getLogger("ringmain")

# What a listener has open besides its connections, those of --metrics among it, and some to spare.
_OTHERS = 64
# What the event loop opens, and somewhat more.
_OF_THE_LOOP = 10


def allow_descriptors(connections: int, each: int) -> None:
    """Raise the soft limit on descriptors as far as connections need, so many `each`; warn where it stays below."""
    if connections == 1:
        return
    import resource

    needed = each * connections + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, OverflowError, ValueError):  # the kernel's own limit is lower, or it counts no further
        allowed = soft
    if allowed < needed:
        log.warning("--max-connections %d: this process may open %d files only; see ulimit -n", connections, allowed)


def check_room() -> None:
    """Raise RingmainError where there are no descriptors for the event loop: libuv would abort the process then."""
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(_OF_THE_LOOP):
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise RingmainError("ringmain cannot begin", reason(error), "see ulimit -n") from error
